"""Vanilla top-k: the baseline."""

from __future__ import annotations

import numpy as np

from payloads.wdmoe.gating import finish
from payloads.wdmoe.routing import LayerView, Selection
from payloads.wdmoe.selectors.kinds import Settings
from payloads.wdmoe.selectors.rows import best_column, picked

__all__ = ["TopK"]


class TopK:
    """Keeps the ``k`` experts of every token with the largest scores; all, if the router picks no more.

    Source: the baseline of WDMoE.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._most = int(settings["k"])

    def select(self, view: LayerView) -> Selection:
        """Choose for the tokens of one layer."""
        routing = view.routing
        if self._most >= routing.index.shape[1]:
            return Selection(routing.index, np.ones(routing.index.shape, dtype=bool), routing.weights)
        # Of equal scores the first comes first, as the router has them.
        left = picked(routing.scores, routing.index).copy()
        keep = np.zeros(left.shape, dtype=bool)
        rows = np.arange(len(left))
        for _ in range(self._most):
            best = best_column(left)
            keep[rows, best] = True
            left[rows, best] = -1.0
        return finish(routing, keep, self._settings)
