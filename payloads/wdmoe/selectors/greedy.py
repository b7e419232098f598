"""The experts with the best score for their latency: a plain baseline that knows the channel."""

from __future__ import annotations

from typing import Optional

import numpy as np

from payloads.wdmoe.gating import finish
from payloads.wdmoe.routing import LayerView, Selection
from payloads.wdmoe.selectors.kinds import Settings, value_of
from payloads.wdmoe.selectors.rows import best_column, picked, row_sum

__all__ = ["Greedy"]


class Greedy:
    """Each token asks the experts with the largest score over latency, of all the layer's experts.

    Latency is what one token takes on the expert's device, to the power ``balance``: with 0 the router decides alone,
    the larger it is the more the channel does. A token asks ``k`` experts, as many as the router chose where that is
    left out.

    Source: a plain channel-aware baseline of ours.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        most = value_of(settings, "k")
        self._most: Optional[int] = None if most is None else int(most)
        self._balance = float(value_of(settings, "balance"))

    def select(self, view: LayerView) -> Selection:
        """Choose for the tokens of one layer."""
        routing = view.routing
        tokens, chosen = routing.index.shape
        token_s = (view.costs.fixed_s + view.costs.pair_s)[view.device_of]
        # In units of the fastest, so that single precision will do.
        value = routing.scores * ((token_s.min() / token_s) ** self._balance).astype(routing.scores.dtype)
        most = chosen if self._most is None else min(self._most, chosen)
        rows = np.arange(tokens)
        wanted = np.zeros(value.shape, dtype=bool)
        for _ in range(most):
            best = best_column(value)
            wanted[rows, best] = True
            value[rows, best] = -1.0
        # What the router chose and is wanted stays in its place; what else is wanted takes the free places.
        keep = picked(wanted, routing.index)
        added = most - row_sum(keep.astype(np.int64))[:, 0]
        rows = added.nonzero()[0]
        if not len(rows):
            return finish(routing, keep, self._settings)
        index = routing.index.copy()
        wanted = wanted[rows]
        wanted[np.arange(len(rows))[:, None], index[rows]] = False
        at, experts = np.divmod(wanted.ravel().nonzero()[0], value.shape[1])
        free = ~keep[rows]
        free &= free.cumsum(axis=1) <= added[rows][:, None]
        columns = np.divmod(free.ravel().nonzero()[0], chosen)[1]
        index[rows[at], columns] = experts
        keep[rows[at], columns] = True
        return finish(routing, keep, self._settings, index)
