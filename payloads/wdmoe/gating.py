"""Expert selection: which of the router's (token, expert) pairs are sent out, and with what weights.

Pure functions on NumPy arrays, used by the base station and by the simulator alike. They call only
methods of the arrays, so that whoever merely checks a campaign file imports neither NumPy nor torch.

A kind of policy is a function ``(settings, index, weights) -> keep`` over the router's choice:
``index`` (N, k) holds expert numbers, ``weights`` (N, k) their weights, ``keep`` (N, k) is boolean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, NamedTuple

if TYPE_CHECKING:
    from numpy import bool_, floating, int64
    from numpy.typing import NDArray

__all__ = ["POLICY_KINDS", "PolicyKind", "Selection", "check_selection", "select"]

Settings = Mapping[str, Any]


class PolicyKind(NamedTuple):
    """A kind of expert selection.

    Attributes:
        keep: The function that decides.
        settings: Its own settings: name and what values are good, in words.
        check: Says whether a setting's value is good.
        source: Where it comes from.
    """

    keep: Callable[[Settings, NDArray[int64], NDArray[floating[Any]]], NDArray[bool_]]
    settings: Mapping[str, str]
    check: Callable[[str, Any], bool]
    source: str


class Selection(NamedTuple):
    """A selection for one layer's tokens.

    Attributes:
        keep: (N, k), which pairs are sent out; every token keeps at least one.
        weights: (N, k), the weights of the answers; 0 where a pair is dropped.
    """

    keep: NDArray[bool_]
    weights: NDArray[floating[Any]]


def select(settings: Settings, index: NDArray[int64], weights: NDArray[floating[Any]]) -> Selection:
    """Apply a policy to the router's choice.

    Args:
        settings: ``kind`` and the kind's own settings. ``renormalise`` (default true): the weights that a
            token keeps are scaled so that they sum to what all of its weights summed to. A token that
            loses nothing keeps its weights to the bit.
        index: (N, k) expert numbers.
        weights: (N, k) router weights, not negative.

    Returns:
        What to send out, and the weights. A token never loses its last expert: where a policy would drop
        all, the one with the largest weight stays.
    """
    keep = POLICY_KINDS[settings["kind"]].keep(settings, index, weights)
    keep = keep | (~keep.any(axis=1, keepdims=True) & (_rank(weights) == 0))
    kept = weights * keep
    if settings.get("renormalise", True) and not keep.all():
        left = kept.sum(axis=1, keepdims=True)
        total = weights.sum(axis=1, keepdims=True)
        # Equal sums give the factor 1 exactly; a sum of zero has nothing to scale.
        kept = kept * (total / (left + (left == 0)))
    return Selection(keep, kept)


def check_selection(settings: Settings) -> List[str]:
    """Return what is wrong with a policy's settings, one line each; an empty list if nothing is."""
    kind = settings.get("kind")
    if kind not in POLICY_KINDS:
        return [f"kind: expected one of {', '.join(sorted(POLICY_KINDS))}, got {kind!r}"]
    policy = POLICY_KINDS[kind]
    problems = [
        f"{name}: expected {expected}, got {settings.get(name)!r}"
        for name, expected in policy.settings.items()
        if not policy.check(name, settings.get(name))
    ]
    if not isinstance(settings.get("renormalise", True), bool):
        problems.append(f"renormalise: expected true or false, got {settings['renormalise']!r}")
    known = {"kind", "renormalise", *policy.settings}
    problems += [f"{name}: unknown setting of the kind {kind}" for name in settings if name not in known]
    return problems


def _rank(weights: NDArray[floating[Any]]) -> NDArray[int64]:
    """Return each weight's place in its row, 0 for the largest; of equal ones the first comes first."""
    order = (-weights).argsort(axis=1, kind="stable")
    return order.argsort(axis=1, kind="stable")


def _keep_top_k(settings: Settings, index: NDArray[int64], weights: NDArray[floating[Any]]) -> NDArray[bool_]:
    """Keep the ``k`` largest weights of every token; all, if the router picks no more."""
    most: int = settings["k"]
    return _rank(weights) < most


def _whole_number_above_zero(_: str, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


POLICY_KINDS: Dict[str, PolicyKind] = {
    "top_k": PolicyKind(
        keep=_keep_top_k,
        settings={"k": "a whole number of at least 1"},
        check=_whole_number_above_zero,
        source="the baseline of WDMoE: vanilla top-k",
    ),
}
