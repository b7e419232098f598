"""WDMoE's policy on its testbed: spare the device that is predicted to be the slowest (reconstruction)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict

import numpy as np

from payloads.wdmoe.gating import finish, mass_of
from payloads.wdmoe.routing import LayerView, Loads, Selection
from payloads.wdmoe.selectors.kinds import Settings, value_of

if TYPE_CHECKING:
    from numpy import floating
    from numpy.typing import NDArray

    Floats = NDArray[floating[Any]]

__all__ = ["Bottleneck"]


class Bottleneck:
    """Drops the layer's slowest device for the tokens that give it little weight.

    What a pair takes on each device is an exponentially weighted mean of what the layer's dispatches took, for each
    pair; before a device was measured, what the latency model says. The bottleneck is the device with the largest
    product of that and of its pairs.

    Source: WDMoE's hardware testbed (arXiv 2411.06681); a reconstruction from its abstract: the smoothing and what
    weight is little are settings.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._little = float(value_of(settings, "threshold"))
        self._smoothing = float(value_of(settings, "smoothing"))
        self._pair_s: Dict[int, Floats] = {}

    def select(self, view: LayerView) -> Selection:
        """Choose for the tokens of one layer."""
        routing = view.routing
        device = view.device_of.take(routing.index)
        pairs = np.bincount(device.ravel(), minlength=len(view.costs.fixed_s))
        expected_s = view.costs.fixed_s + view.costs.pair_s * pairs
        measured_s = self._pair_s.get(view.layer)
        if measured_s is not None:
            expected_s = np.where(np.isnan(measured_s), expected_s, measured_s * pairs)
        slowest = np.where(pairs > 0, expected_s, -1.0).argmax()
        keep = (device != slowest) | (mass_of(routing) > self._little)
        return finish(routing, keep, self._settings)

    def observe(self, layer: int, step: int, loads: Loads, seconds: Floats) -> None:
        """Learn what a pair took on each device."""
        with np.errstate(invalid="ignore", divide="ignore"):
            now_s = np.where(loads.pairs > 0, seconds / loads.pairs, np.nan)
        before_s = self._pair_s.get(layer)
        if before_s is None:
            self._pair_s[layer] = now_s
            return
        mixed_s = before_s + self._smoothing * (now_s - before_s)
        self._pair_s[layer] = np.where(
            np.isnan(before_s), now_s, np.where(np.isnan(now_s), before_s, mixed_s)
        )
