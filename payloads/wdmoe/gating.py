"""Expert selection: which of the router's (token, expert) pairs are sent out, and with what weights.

Used by the base station, by quality passes and by the simulator alike. Importing it and checking settings
imports neither NumPy nor torch; a kind's code is loaded when a selector is made of it.

The *mass* of a pair is its share of the scores of its token's choice, ``scores[index] / sum``. It is not the
weight: a model may give every expert the same weight. The kinds that promise to keep quality promise mass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, Optional, Protocol

from payloads.wdmoe.routing import LayerView, Loads, Routing, Selection
from payloads.wdmoe.selectors.kinds import (
    COMMON_SETTINGS,
    REQUIRED,
    SELECTOR_KINDS,
    SelectorKind,
    Setting,
    Settings,
    kind_names,
)
from payloads.wdmoe.user_policy import check_user_policy, is_user_kind, make_user_selector

if TYPE_CHECKING:
    from numpy import bool_, floating, int64
    from numpy.typing import NDArray

__all__ = [
    "SELECTOR_KINDS",
    "Learner",
    "Selector",
    "SelectorKind",
    "Setting",
    "check_selection",
    "finish",
    "mass_of",
    "selector_of",
]


class Selector(Protocol):
    """Chooses experts for one trial or one quality pass.

    What it remembers it remembers for each layer on its own: a trial goes token by token, a quality pass layer
    by layer, and both must come to the same choices.
    """

    def select(self, view: LayerView) -> Selection:
        """Choose for the tokens of one layer."""


class Learner(Selector, Protocol):
    """A selector that learns from measured times: it is told of every layer before the next is decided."""

    def observe(self, layer: int, step: int, loads: Loads, seconds: NDArray[floating[Any]]) -> None:
        """Learn how long the dispatches of a layer took.

        Args:
            layer: The layer.
            step: The token step.
            loads: What was asked of the devices.
            seconds: (D,), measured; NaN where a device was asked nothing.
        """


def selector_of(settings: Settings) -> Selector:
    """Make a selector.

    Args:
        settings: ``kind`` and its settings, as :func:`check_selection` accepts them.

    Raises:
        KeyError: The kind is not known.
        UserPolicyError: The kind is a class in a file, and it cannot be made.
    """
    if is_user_kind(settings["kind"]):
        from payloads.wdmoe.guarded import Guarded

        return Guarded(make_user_selector(settings), settings["kind"])
    return SELECTOR_KINDS[settings["kind"]].make(settings)


def check_selection(settings: Settings) -> List[str]:
    """Return what is wrong with a policy's settings, one line each; an empty list if nothing is."""
    kind = settings.get("kind")
    if is_user_kind(kind):
        return check_user_policy(settings)
    if kind not in SELECTOR_KINDS:
        return [f"kind: expected one of {', '.join(kind_names())}, got {kind!r}"]
    known = {**COMMON_SETTINGS, **SELECTOR_KINDS[kind].settings}
    problems = []
    for name, setting in known.items():
        value = settings.get(name)
        # What is left out has its default; ``None`` is left out.
        if value is None and setting.default is not REQUIRED:
            continue
        if not setting.good(value):
            problems.append(f"{name}: expected {setting.expected}, got {value!r}")
    problems += [
        f"{name}: unknown setting of the kind {kind}"
        for name in settings
        if name != "kind" and name not in known
    ]
    return problems


def mass_of(routing: Routing) -> NDArray[floating[Any]]:
    """Return each pair's share of the scores of its token's choice.

    Returns:
        (N, k); each row sums to 1. Where a token's chosen scores are all 0, equal shares.
    """
    from payloads.wdmoe.selectors.rows import picked, row_sum

    chosen = picked(routing.scores, routing.index)
    total = row_sum(chosen)
    nothing = total <= 0
    if nothing.any():
        chosen = chosen + nothing
        total = row_sum(chosen)
    return chosen / total


def finish(
    routing: Routing,
    keep: NDArray[bool_],
    settings: Settings,
    index: Optional[NDArray[int64]] = None,
) -> Selection:
    """Make a selection of what a kind wants to keep: what all kinds share.

    A token never loses its last expert: where all would be dropped, the one with the largest mass stays. A token
    that loses and replaces nothing keeps its weights to the bit. An expert that took another's place gets the weight
    that the router would have given it: its part of the scores, unless the model weighs all experts alike.

    Args:
        routing: The router's choice.
        keep: (N, k), which pairs the kind keeps.
        settings: The kind's settings; of them ``renormalise`` counts: ``sum`` (default) scales the weights that a
            token keeps to the sum that all of its weights had, ``none`` leaves them, and a number from 0 to 1 goes
            that part of the way, as a power of the factor.
        index: (N, k), the experts, where the kind replaced some; the router's where it is left out.

    Returns:
        The selection.
    """
    from payloads.wdmoe.selectors.rows import row_any

    rows = (~row_any(keep)).nonzero()[0]
    if len(rows):
        keep = keep.copy()
        keep[rows, mass_of(routing)[rows].argmax(axis=1)] = True
    weights = routing.weights
    kept = weights
    if index is not None:
        rows = row_any(index != routing.index).nonzero()[0]
        if len(rows):
            kept = weights.copy()
            some = Routing(routing.index[rows], routing.weights[rows], routing.scores[rows])
            kept[rows] = _weighed(some, index[rows])
    if kept is weights and keep.all():
        return Selection(routing.index, keep, weights)
    return Selection(routing.index if index is None else index, keep, _scaled(kept * keep, weights, settings))


def _weighed(routing: Routing, index: NDArray[int64]) -> NDArray[floating[Any]]:
    """Return the weights of other experts than the router chose."""
    import numpy as np

    from payloads.wdmoe.selectors.rows import picked, row_any, row_sum

    weights, scores = routing.weights, routing.scores
    before = picked(scores, routing.index)
    after = picked(scores, index)
    total = row_sum(before)
    theirs = row_sum(weights) * after / (total + (total <= 0))
    # A model whose weights do not follow its scores weighs whatever expert is asked alike.
    alike = ~row_any(weights != weights[:, :1]) & row_any(before != before[:, :1])
    as_before = (index == routing.index) | alike[:, None] | (total <= 0)
    weighed: NDArray[floating[Any]] = np.where(as_before, weights, theirs).astype(weights.dtype)
    return weighed


def _scaled(
    kept: NDArray[floating[Any]], weights: NDArray[floating[Any]], settings: Settings
) -> NDArray[floating[Any]]:
    """Return the weights that are left, renormalised as the settings say."""
    how = settings.get("renormalise", "sum")
    if how == "none":
        return kept
    from payloads.wdmoe.selectors.rows import row_sum

    left = row_sum(kept)
    # Equal sums give the factor 1 exactly; a sum of zero has nothing to scale.
    factor = row_sum(weights) / (left + (left == 0))
    if how not in ("sum", None):
        factor = factor ** float(how)
    scaled: NDArray[floating[Any]] = kept * factor
    return scaled
