"""The receivers as the transmitter sees them: which devices they are, what they hold, and what was said to them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple

from payloads.semcast.messages import request
from payloads.station.devices import Devices, DeviceSpec, read_devices, reading
from payloads.station.traffic import Traffic
from payloads.wire.client import Answer, DeviceLostError, Patience, Request
from payloads.wire.frames import Buffer, FrameError, Kind

__all__ = ["FrameTraffic", "Receivers", "devices_by_name"]


def devices_by_name(path: Path) -> Dict[str, DeviceSpec]:
    """Read the devices file; return the devices by name.

    Raises:
        DevicesError: It cannot be read or is damaged.
    """
    with reading(path):
        return {device.name: device for device in read_devices(json.loads(path.read_text()))}


class Receivers(Devices):
    """The connections to the receivers of all users."""

    def meet(self, devices: Sequence[DeviceSpec], models: Mapping[str, str]) -> None:
        """Connect what is not connected, and make sure that every receiver holds the very models.

        Args:
            devices: The device of each user, user 1's first.
            models: The identity of each model that a trial needs, by its name.

        Raises:
            DeviceError: One cannot be reached, does not prove itself, or holds something else.
        """
        self.prepare(devices, partial(_lacking, models))

    def ask(
        self,
        parts: Mapping[str, Sequence[Buffer]],
        deadline_s: float,
        meanwhile: Optional[Callable[[], None]] = None,
    ) -> Dict[str, Answer]:
        """Send a message to some receivers at once, and return their answers, by name.

        Args:
            parts: The message for each, in pieces.
            deadline_s: How long each may take.
            meanwhile: What is done while they work.

        Raises:
            DeviceError: One is lost, late or refuses.
        """
        requests = []
        for name, pieces in parts.items():
            channel = self.channels[name]
            sequence = channel.next_sequence()
            requests.append(Request(channel, sequence, request(sequence, pieces)))
        patience = Patience(deadline_s, lambda: [deadline_s] * len(requests))
        answers = self.exchange.ask(requests, Kind.RESULT, meanwhile, patience)
        return dict(zip(parts, answers))

    def misread(self, name: str, error: FrameError) -> DeviceLostError:
        """Close the connection of a receiver that answered what cannot be read, and return what is wrong."""
        self.exchange.disconnect(self.channels[name])
        return DeviceLostError(name, str(error))


def _lacking(models: Mapping[str, str], name: str, description: Mapping[str, Any]) -> Optional[str]:
    """Return what is wrong with a receiver that is to hold some models; ``None`` where nothing is."""
    held = description.get("models")
    for model, identity in models.items():
        if not isinstance(held, dict) or model not in held:
            return f"holds no model {model}"
        if held[model] != identity:
            return f"holds another model of the name {model}"
    return None


class FrameTraffic(Traffic):
    """Counts the bytes of a trial: what its frames took, and what was said beside them.

    Attributes:
        data: Bytes of frames and of the answers to them, by device: ``out`` and ``back``.
    """

    def __init__(self, receivers: Receivers) -> None:
        super().__init__(receivers)
        self.data: Dict[str, Tuple[int, int]] = {}

    def add(self, name: str, answer: Answer) -> None:
        """Count a frame, or pieces of it, and the answer."""
        out, back = self.data.get(name, (0, 0))
        self.data[name] = out + answer.bytes_out, back + answer.bytes_back

    def totals(self) -> Dict[str, Any]:
        """Return all bytes since the beginning: ``data_bytes``, ``control_bytes`` and ``retransmitted_bytes``."""
        data = {name: dict(zip(("out", "back"), counts)) for name, counts in self.data.items()}
        return {"data_bytes": data, **self.summary(self.data)}
