"""Replace an expert by a similar one on a faster device, or skip it (reconstruction of SiftMoE's idea)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, Optional

import numpy as np

from payloads.wdmoe.gating import finish, mass_of
from payloads.wdmoe.routing import LayerView, Selection
from payloads.wdmoe.selectors.kinds import Settings, value_of
from payloads.wdmoe.selectors.rows import best_row, picked

if TYPE_CHECKING:
    from numpy import floating, int64
    from numpy.typing import NDArray

    Floats = NDArray[floating[Any]]

__all__ = ["Similar"]


class Similar:
    """Moves or skips a token's experts as far as a tolerance allows, the least first.

    A pair goes to the fastest device that serves an expert which is similar enough, ``1 - tolerance`` at least, and
    which the token does not ask already. Similar is what the matrix ``similarity`` says, or, without one, an expert
    that the router gives nearly the same score for this token. A pair that cannot be moved and has a mass of at most
    ``skip`` is dropped, unless no device of the token's other pairs is as slow.

    Source: SiftMoE (arXiv 2603.23888); a reconstruction of its idea, without its energy limits.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._floor = 1.0 - float(value_of(settings, "tolerance"))
        self._skip = float(value_of(settings, "skip"))
        given = value_of(settings, "similarity")
        self._similarity: Optional[Floats] = None if given is None else np.asarray(given, dtype=float)

    def select(self, view: LayerView) -> Selection:
        """Choose for the tokens of one layer."""
        routing = view.routing
        mass, index = mass_of(routing), routing.index.copy()
        keep = np.ones(index.shape, dtype=bool)
        rows = np.arange(len(index))
        pair_s = view.costs.pair_s[view.device_of]
        for rank, column in enumerate(_rising(mass)):
            expert = index[rows, column]
            own_s = pair_s.take(expert)
            other = self._best(view, index, expert, pair_s, own_s)
            moved = other >= 0
            index[rows[moved], column[moved]] = other[moved]
            if rank < index.shape[1] - 1:
                slowest = np.zeros(len(index))
                for place in range(index.shape[1]):
                    slowest = np.maximum(slowest, pair_s.take(index[:, place]) * keep[:, place])
                skipped = ~moved & (mass[rows, column] <= self._skip) & (own_s >= slowest)
                keep[rows[skipped], column[skipped]] = False
        return finish(routing, keep, self._settings, index)

    def _best(
        self, view: LayerView, index: NDArray[int64], expert: NDArray[int64], pair_s: Floats, own_s: Floats
    ) -> NDArray[int64]:
        """Return (N,) the expert that takes the place of each token's given one; -1 where none may."""
        scores = np.ascontiguousarray(view.routing.scores.T)
        if self._similarity is None:
            usable = scores >= self._floor * picked(view.routing.scores, expert[:, None])[:, 0]
        else:
            matrix = self._similarity if self._similarity.ndim == 2 else self._similarity[view.layer]
            usable = (matrix >= self._floor).T.take(expert, axis=1)
        usable &= pair_s[:, None] < own_s
        rows = np.arange(len(expert))
        for place in range(index.shape[1]):
            usable[index[:, place], rows] = False
        # The fastest first, and of equally fast ones the one with the best score.
        speed = np.unique(-pair_s, return_inverse=True)[1].astype(scores.dtype) + 1
        merit = (speed[:, None] + scores / 2) * usable
        best = best_row(merit)
        return np.where(usable[best, rows], best, -1)


def _rising(mass: Floats) -> List[NDArray[int64]]:
    """Return the columns of each row from the least mass to the most, as k arrays (N,)."""
    if mass.shape[1] == 2:
        least = (mass[:, 1] < mass[:, 0]).astype(np.int64)
        return [least, 1 - least]
    return list(mass.argsort(axis=1, kind="stable").T)
