"""What becomes of a layer when a device is lost or late: the policy, pure. Settings are checked without NumPy or torch.

``fail``
    The trial fails, or the requests of the iteration do.
``replica``
    Another device that holds the expert is asked; ``then`` says what becomes of experts that nobody else holds.
``drop``
    The token does without; its other weights are renormalised. A token that would lose all of its experts gets the
    best reachable one by the router's scores.
``wait``
    The device is waited for, for ``wait_s`` in a layer, and asked again.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

if TYPE_CHECKING:
    from numpy import bool_, int64
    from numpy.typing import NDArray

    from payloads.wdmoe.routing import Routing, Selection

__all__ = [
    "EVENTS",
    "KINDS",
    "LossEvent",
    "LossPolicy",
    "Rescue",
    "check_loss",
    "rescue",
    "served_pairs",
]

KINDS = ("fail", "replica", "drop", "wait")
#: What ``replica`` does with experts that no other device holds.
THEN = ("fail", "drop", "wait")
#: What can happen, as the records spell it.
EVENTS = ("lost", "deadline", "refused", "rerouted", "dropped", "waited", "unfit", "readmitted", "failed")

DEADLINE_FACTOR = 10.0
DEADLINE_FLOOR_MS = 500.0
#: Where a late device means a failed trial, what is merely slow is given more time.
FAIL_FLOOR_MS = 20_000.0
WAIT_S = 20.0


class LossPolicy(NamedTuple):
    """What is done when a device is lost.

    Attributes:
        kind: One of :data:`KINDS`.
        then: What ``replica`` does where nobody else holds an expert, one of :data:`THEN`.
        deadline_factor: A dispatch may take so many times what the latency model expects, ...
        deadline_floor_ms: ... and this besides.
        wait_s: How long ``wait`` waits in one layer.
    """

    kind: str = "fail"
    then: str = "fail"
    deadline_factor: float = DEADLINE_FACTOR
    deadline_floor_ms: float = FAIL_FLOOR_MS
    wait_s: float = WAIT_S

    @classmethod
    def of(cls, settings: Optional[Mapping[str, Any]]) -> LossPolicy:
        """Return the policy of settings that :func:`check_loss` accepts; what is left out has its default."""
        given = {name: value for name, value in (settings or {}).items() if value is not None}
        kind = given.get("kind", "fail")
        floor_ms = FAIL_FLOOR_MS if kind == "fail" else DEADLINE_FLOOR_MS
        return cls(
            kind,
            given.get("then", "fail"),
            float(given.get("deadline_factor", DEADLINE_FACTOR)),
            float(given.get("deadline_floor_ms", floor_ms)),
            float(given.get("wait_s", WAIT_S)),
        )

    def final(self, others: bool) -> str:
        """Return what becomes of an expert whose device is gone: ``fail``, ``replica``, ``drop`` or ``wait``.

        Args:
            others: Whether another device that can be reached holds it.
        """
        if self.kind != "replica":
            return self.kind
        return "replica" if others else self.then

    def deadline_s(self, predicted_s: float) -> float:
        """Return how long a dispatch may take of which the latency model expects ``predicted_s``."""
        return self.deadline_floor_ms / 1e3 + self.deadline_factor * predicted_s


class LossEvent(NamedTuple):
    """Something that happened to a device, or that was done about it.

    Attributes:
        at_ns: When, on the base station's monotonic clock.
        request: The request that ran; ``None`` where there was none, or where there were several.
        step: Its token step; ``None`` likewise.
        layer: The layer; ``None`` between two iterations.
        device: The device.
        event: One of :data:`EVENTS`.
        detail: More of it, in a few words.
    """

    at_ns: int
    request: Optional[str]
    step: Optional[int]
    layer: Optional[int]
    device: str
    event: str
    detail: str


class Rescue(NamedTuple):
    """A selection without what cannot be reached.

    Attributes:
        selection: The selection: ``keep`` is false for lost pairs, weights are renormalised, and ``index`` names
            another expert where a token would have lost all.
        asked: (P,), the places (token * k + choice) of pairs with another expert, which have to be asked for now.
    """

    selection: Selection
    asked: NDArray[int64]


def check_loss(settings: Any) -> List[str]:
    """Return what is wrong with settings, one line each; an empty list if nothing is."""
    if not isinstance(settings, Mapping):
        return [f"expected settings with a kind, got {settings!r}"]
    problems = []
    kind = settings.get("kind", "fail")
    if kind not in KINDS:
        problems.append(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    then = settings.get("then")
    if then is not None and then not in THEN:
        problems.append(f"then: expected one of {', '.join(THEN)}, got {then!r}")
    elif then is not None and kind != "replica":
        problems.append(f"then: only with the kind replica, not with {kind}")
    for name, (least, expected) in _NUMBERS.items():
        value = settings.get(name)
        if value is not None and not _above(value, least):
            problems.append(f"{name}: expected {expected}, got {value!r}")
    known = {"kind", "then", *_NUMBERS}
    problems += [f"{name}: unknown setting" for name in settings if name not in known]
    return problems


_NUMBERS: Dict[str, Tuple[float, str]] = {
    "deadline_factor": (1.0, "a number above 1"),
    "deadline_floor_ms": (0.0, "a number of milliseconds above 0"),
    "wait_s": (0.0, "a number of seconds above 0"),
}


def _above(value: Any, least: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and value > least


def rescue(
    routing: Routing,
    selection: Selection,
    lost: NDArray[bool_],
    reachable: NDArray[bool_],
    renormalise: Any,
) -> Rescue:
    """Return a selection without its lost pairs.

    What loses nothing keeps its weights to the bit. A token that keeps some of its experts has their weights
    renormalised; one that would lose all asks the best reachable expert, by the router's scores, with the weight that
    the router would have given it.

    Args:
        routing: The router's choice.
        selection: What the policy made of it.
        lost: (N, k), the pairs that nobody answers; only kept ones count.
        reachable: (E,), the experts that can still be asked; at least one.
        renormalise: As the setting of that name of an expert selection: ``sum``, ``none``, or a power of the factor.

    Raises:
        ValueError: No expert can be reached.
    """
    import numpy as np

    from payloads.wdmoe.gating import finish
    from payloads.wdmoe.routing import Routing as Chosen
    from payloads.wdmoe.routing import Selection as Sent

    settings = {"renormalise": renormalise}
    keep = selection.keep & ~lost
    rows = (keep != selection.keep).any(axis=1)
    index, weights = selection.index.copy(), selection.weights.copy()
    some = np.flatnonzero(rows & keep.any(axis=1))
    if len(some):
        # As if the policy's own weights were the router's.
        left = finish(Chosen(index[some], weights[some], routing.scores[some]), keep[some], settings)
        weights[some] = left.weights
    none = np.flatnonzero(rows & ~keep.any(axis=1))
    if not len(none):
        return Rescue(Sent(index, keep, weights), np.zeros(0, dtype=np.int64))
    if not reachable.any():
        raise ValueError("no expert of the layer can be reached")
    best = np.where(reachable, routing.scores[none], -1.0).argmax(axis=1)
    # It takes the place of the pair that weighed most.
    place = np.where(selection.keep[none], selection.weights[none], -1.0).argmax(axis=1)
    index[none, place] = best
    keep[none, place] = True
    base = Chosen(routing.index[none], routing.weights[none], routing.scores[none])
    weights[none] = finish(base, keep[none], settings, index[none]).weights
    asked: NDArray[int64] = (none * keep.shape[1] + place).astype(np.int64)
    return Rescue(Sent(index, keep, weights), asked)


def served_pairs(
    index: NDArray[int64], keep: Optional[NDArray[bool_]], experts: NDArray[bool_]
) -> NDArray[bool_]:
    """Return which pairs (N, k) are kept and of the given experts.

    Args:
        index: (N, k), the experts.
        keep: (N, k), the kept pairs; ``None`` for all.
        experts: (E,), the experts in question.
    """
    mine: NDArray[bool_] = experts[index]
    return mine if keep is None else mine & keep
