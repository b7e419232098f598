"""WDMoE's first version: expert selection by weight-to-latency ratio with a rising threshold (reconstruction)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from payloads.wdmoe.gating import finish
from payloads.wdmoe.routing import LayerView, Selection
from payloads.wdmoe.selectors.kinds import Settings, value_of
from payloads.wdmoe.selectors.pairs import pairs_of
from payloads.wdmoe.selectors.rows import best_column, row_sum

if TYPE_CHECKING:
    from numpy import floating
    from numpy.typing import NDArray

    Floats = NDArray[floating[Any]]

__all__ = ["Wlr", "cosines"]


class Wlr:
    """Drops a token's least expert where its weights point away from, or towards, its latencies.

    For each token S is the cosine of the vector of its weights and that of its latencies, ``t_k`` of a token on the
    device of each expert. Where S is at most theta (``direction: low``; ``high``: at least 1 less what theta has risen
    to above its start), the expert with the smallest weight is dropped. The layer's weight-to-latency ratio is the
    mass that is kept over the attention waiting latency. Theta rises step by step until the ratio has gained the share
    ``gain``, or theta reaches its end.

    Source: WDMoE, first version (arXiv 2405.03131); a reconstruction from its abstract, in which the direction, the
    start, the step, the stop rule and what the ratio is taken over are settings or choices of ours.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._start = float(value_of(settings, "theta_start"))
        self._step = float(value_of(settings, "theta_step"))
        self._end = float(value_of(settings, "theta_max"))
        self._gain = float(value_of(settings, "gain"))
        self._low = value_of(settings, "direction") == "low"

    def select(self, view: LayerView) -> Selection:
        """Choose for the tokens of one layer."""
        routing = view.routing
        tokens, chosen = routing.index.shape
        keep = np.ones((tokens, chosen), dtype=bool)
        if chosen == 1:
            return finish(routing, keep, self._settings)
        pairs = pairs_of(view)
        rows = np.arange(tokens)
        # The last of the smallest.
        least = chosen - 1 - best_column(-pairs.mass[:, ::-1])
        mass, gain_s = pairs.mass[rows, least], pairs.gains_s[rows, least]
        device = pairs.device[rows, least]
        alike = cosines(pairs.mass, view.costs.pair_s[pairs.device])
        goal = (1.0 + self._gain) * tokens / pairs.seconds.max()
        drop = np.zeros(tokens, dtype=bool)
        for step in range(1 + int((self._end - self._start) / self._step + 1e-9)):
            theta = self._start + step * self._step
            if theta > self._end - 1e-9 and step:
                break
            drop = alike <= theta if self._low else alike >= 1.0 - (theta - self._start)
            saved_s = np.bincount(device[drop], weights=gain_s[drop], minlength=len(pairs.seconds))
            if (tokens - mass[drop].sum()) / (pairs.seconds - saved_s).max() >= goal:
                break
        keep[rows[drop], least[drop]] = False
        return finish(routing, keep, self._settings)


def cosines(weights: Floats, latencies_s: Floats) -> Floats:
    """Return (N,) the cosine of each row of weights and of latencies."""
    product = row_sum(weights * latencies_s)
    lengths = np.sqrt(row_sum(weights * weights) * row_sum(latencies_s * latencies_s))
    cosine: Floats = (product / np.maximum(lengths, 1e-300))[:, 0]
    return cosine
