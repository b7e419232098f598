"""An expert selection of the user's own at work: what it is shown it cannot change, and what it returns is looked at.

Everything after a selection counts on its shape and its numbers. A fault of the user's code is said as one of theirs,
with its file and line, and never ends the process that runs it.
"""

from __future__ import annotations

from typing import Any, Callable, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from payloads.wdmoe.routing import LayerView, Loads, Routing, Selection
from payloads.wdmoe.user_policy import UserPolicyError, fault_of, split_kind

__all__ = ["PROBLEMS", "Guarded"]


def shape_problem(selection: Any, routing: Routing) -> str:
    """Return what is wrong with the type, the shapes and the kinds of numbers of a selection; empty if nothing is."""
    if not isinstance(selection, Selection):
        return f"a Selection was expected, not {type(selection).__name__}"
    shape = routing.index.shape
    for field, kinds in (("index", "iu"), ("keep", "b"), ("weights", "f")):
        array: Any = getattr(selection, field)
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype.kind not in kinds:
            got = f"{getattr(array, 'dtype', type(array).__name__)} {getattr(array, 'shape', '')}".rstrip()
            return f"{field}: an array {shape} of kind {kinds} was expected, not {got}"
    return ""


def expert_problem(selection: Selection, routing: Routing) -> str:
    """Return whether it asks for experts that are not there, or for one of them twice."""
    index, keep, count = selection.index, selection.keep, routing.scores.shape[1]
    asked = index[keep]
    wrong = asked[(asked < 0) | (asked >= count)]
    if len(wrong):
        return f"expert {wrong[0]} was asked for, and there are {count}"
    # What is dropped gets a number of its own, so that only experts can be alike.
    own = np.sort(np.where(keep, index, -1 - np.arange(index.shape[1])), axis=1)
    rows = np.flatnonzero((own[:, 1:] == own[:, :-1]).any(axis=1))
    if len(rows):
        return f"token {rows[0]} asks for one expert twice: {index[rows[0]][keep[rows[0]]].tolist()}"
    return ""


def bare_problem(selection: Selection, routing: Routing) -> str:
    """Return whether a token has no expert left."""
    bare = np.flatnonzero(~selection.keep.any(axis=1))
    return f"token {bare[0]} has none left" if len(bare) else ""


def weight_problem(selection: Selection, routing: Routing) -> str:
    """Return what is wrong with its weights."""
    weights = selection.weights
    if not np.isfinite(weights).all() or (weights < 0).any():
        return f"weights from {weights.min()} to {weights.max()}"
    if (weights[~selection.keep] != 0).any():
        return "a dropped pair has a weight"
    return ""


#: What must hold for every selection, each in a few words, with what says how it does not.
PROBLEMS: Sequence[Tuple[str, Callable[[Any, Routing], str]]] = (
    ("gives a selection of the router's shape", shape_problem),
    ("asks for experts that are there, each at most once a token", expert_problem),
    ("leaves every token an expert", bare_problem),
    ("weights are finite, not negative, and 0 where a pair is dropped", weight_problem),
)


class Guarded:
    """A selector of the user's own, between its code and ours.

    Args:
        selector: The selector.
        kind: ``FILE:CLASS``, for what is said of it.
    """

    def __init__(self, selector: Any, kind: str) -> None:
        self._selector = selector
        self._path, self._name = split_kind(kind)
        #: What learns from measured times; ``None`` where it does not.
        self.observe = self._observe if getattr(selector, "observe", None) is not None else None

    def select(self, view: LayerView) -> Selection:
        """Choose for the tokens of one layer.

        Raises:
            UserPolicyError: The user's code failed, or chose what cannot be sent.
        """
        routing = view.routing
        shown = Routing(*map(_read_only, routing))
        try:
            selection = self._selector.select(
                view._replace(routing=shown, device_of=_read_only(view.device_of))
            )
        except (Exception, SystemExit) as error:
            raise fault_of(error, self._path) from error
        for _, problem_of in PROBLEMS:
            problem = problem_of(selection, routing)
            if problem:
                where = f"layer {view.layer}, step {view.step}"
                raise UserPolicyError(f"{self._path}: {self._name}: in {where}: {problem}")
        # What it gives back as it was shown is the router's own: that has to be told from what is equal to it.
        index = routing.index if selection.index is shown.index else np.array(selection.index, np.int64)
        weights = routing.weights
        if selection.weights is not shown.weights:
            weights = np.array(selection.weights, routing.weights.dtype)
        return Selection(index, np.array(selection.keep), weights)

    def _observe(self, layer: int, step: int, loads: Loads, seconds: NDArray[np.floating[Any]]) -> None:
        """Let it learn how long the dispatches of a layer took.

        Raises:
            UserPolicyError: The user's code failed.
        """
        try:
            self._selector.observe(layer, step, Loads(*map(_read_only, loads)), seconds)
        except (Exception, SystemExit) as error:
            raise fault_of(error, self._path) from error


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view
