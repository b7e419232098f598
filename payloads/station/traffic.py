"""What crosses the connections to the devices in a trial: the bytes of its work, and all that is said beside it."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional, Tuple

from payloads.station.devices import Devices

__all__ = ["Traffic"]

_WAYS = ("out", "back")


class Traffic:
    """Counts from its making on.

    Args:
        devices: The connections.
    """

    def __init__(self, devices: Devices) -> None:
        self._devices = devices
        self._before, self._resent = devices.traffic(), devices.resent()

    def summary(self, work: Mapping[str, Tuple[int, int]]) -> Dict[str, Any]:
        """Return ``control_bytes`` and ``retransmitted_bytes`` of each device, to it (``out``) and from it (``back``).

        Args:
            work: Bytes of the trial's work to and from each device, by name; the others were control.
        """
        control: Dict[str, Dict[str, int]] = {}
        resent: Dict[str, Dict[str, Optional[int]]] = {}
        for channel, now in self._devices.traffic().items():
            before = self._before.get(channel, (0, 0))
            of_work = work.get(channel.name, (0, 0))
            control[channel.name] = {
                way: after - earlier - part for way, after, earlier, part in zip(_WAYS, now, before, of_work)
            }
        for channel, counts in self._devices.resent().items():
            earlier_resent = self._resent.get(channel, (0, 0))
            resent[channel.name] = dict(zip(_WAYS, map(_minus, counts, earlier_resent)))
        return {"control_bytes": control, "retransmitted_bytes": resent}


def _minus(after: Optional[int], before: Optional[int]) -> Optional[int]:
    return None if after is None or before is None else after - before
