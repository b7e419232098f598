"""Which devices can be asked, and who answers for an expert while some cannot. No effects beyond its own memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Dict, FrozenSet, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from payloads.wdmoe.holders import Several, first_holders, serving_devices
from payloads.wire.channel import DeviceLostError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from payloads.wdmoe.costs import Costs

__all__ = ["CostsNow", "Gone", "Reach"]

#: Tells what sending takes; asked only where there is a choice, since it costs time.
CostsNow = Callable[[], "Optional[Costs]"]

NOBODY: FrozenSet[int] = frozenset()


class Gone(NamedTuple):
    """A device that cannot be asked.

    Attributes:
        at_ns: Since when, on the base station's monotonic clock.
        error: Why.
    """

    at_ns: int
    error: DeviceLostError


class Reach:
    """The placement, and which of the devices are gone.

    Attributes:
        devices: The devices that hold an expert, by name; their order is that of all arrays over devices.
        device_of: (L, E), the device that serves each expert when all are there; the first of those that hold it.
        gone: The devices that cannot be asked, by their columns.
    """

    def __init__(self) -> None:
        self.devices: Tuple[str, ...] = ()
        self.device_of: NDArray[np.int64] = np.zeros((0, 0), dtype=np.int64)
        self.gone: Dict[int, Gone] = {}
        self._several: Several = {}

    def place(self, placement: Sequence[Sequence[Sequence[str]]]) -> None:
        """Take over a placement; all of its devices can be asked."""
        self.devices = tuple(sorted({name for layer in placement for names in layer for name in names}))
        self.device_of, self._several = first_holders(placement, self.devices)
        self.gone = {}

    def holders(self, layer: int, expert: int, without: FrozenSet[int] = NOBODY) -> List[int]:
        """Return the devices that hold an expert and can be asked.

        Args:
            layer: The layer.
            expert: The expert.
            without: Devices that do not count.
        """
        held = self._several.get(layer, {}).get(expert) or (int(self.device_of[layer][expert]),)
        return [device for device in held if device not in self.gone and device not in without]

    def serving(self, layer: int, index: NDArray[np.int64], costs: CostsNow) -> NDArray[np.int64]:
        """Return the device (E,) that serves each expert of a layer.

        Of several that hold it and can be asked, the one that would be done first. Where none can be asked, it is
        one that is gone.

        Args:
            layer: The layer.
            index: (N, k), the experts that are asked for.
            costs: Tells what sending takes.
        """
        first: NDArray[np.int64] = self.device_of[layer]
        several = self._several.get(layer)
        if several is None:
            return first
        if not self.gone:
            return serving_devices(first, several, index, costs())
        there = {expert: tuple(self.holders(layer, expert)) or held for expert, held in several.items()}
        now = first.copy()
        for expert, held in there.items():
            now[expert] = held[0]
        return serving_devices(now, there, index, costs())

    def moved_from(
        self, layer: int, index: NDArray[np.int64], now: NDArray[np.int64], costs: CostsNow
    ) -> NDArray[np.int64]:
        """Return for each expert (E,) the device that is gone and in whose place another serves it; -1 for the others.

        Args:
            layer: The layer.
            index: (N, k), the experts that are asked for.
            now: (E,), the device that serves each expert.
            costs: Tells what sending takes.
        """
        first: NDArray[np.int64] = self.device_of[layer]
        several = self._several.get(layer)
        usual = first if several is None else serving_devices(first, several, index, costs())
        moved = np.isin(usual, list(self.gone)) & (now != usual)
        return np.where(moved, usual, -1)

    def reachable(self, layer: int, without: FrozenSet[int] = NOBODY) -> NDArray[np.bool_]:
        """Return the experts (E,) of a layer that some device can be asked for.

        Args:
            layer: The layer.
            without: Devices that do not count.
        """
        experts = range(self.device_of.shape[1])
        return np.array([bool(self.holders(layer, expert, without)) for expert in experts])

    def away(self, device_of: NDArray[np.int64], without: FrozenSet[int] = NOBODY) -> NDArray[np.bool_]:
        """Return the experts (E,) whose devices are gone, or do not count.

        Args:
            device_of: (E,), the device that serves each expert.
            without: Devices that do not count.
        """
        return np.isin(device_of, [*self.gone, *without])
