"""The receivers as the transmitter sees them: which devices they are, what they hold, and what was said to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, NamedTuple, Optional, Sequence

from payloads.semcast.messages import request
from payloads.wdmoe.bs.fleet import Devices, DeviceSpec, FleetError, FleetSpec
from payloads.wire.client import (
    Answer,
    Channel,
    DeviceError,
    DeviceLostError,
    Exchange,
    Patience,
    Request,
)
from payloads.wire.credentials import Credentials
from payloads.wire.frames import Buffer, FrameError, Kind

__all__ = ["Receivers", "Traffic", "read_devices"]

_COUNTED = ("out", "back")


def read_devices(path: Path) -> Dict[str, DeviceSpec]:
    """Read the devices file; return the devices by name.

    Raises:
        FleetError: It cannot be read or is damaged.
    """
    try:
        listed = json.loads(path.read_text())["devices"]
        devices = [DeviceSpec(str(one["name"]), str(one["address"]), int(one["port"])) for one in listed]
    except OSError as error:
        raise FleetError(f"cannot read {path}: {error.strerror}") from error
    except KeyError as error:
        raise FleetError(f"{path}: {error.args[0]} is missing") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise FleetError(f"{path} is damaged: {error}") from error
    return {device.name: device for device in devices}


class Receivers(Devices):
    """The connections to the receivers of all users."""

    def __init__(self, exchange: Exchange, credentials: Credentials) -> None:
        super().__init__(exchange, credentials)
        self._models: Mapping[str, str] = {}

    def meet(self, devices: Sequence[DeviceSpec], models: Mapping[str, str]) -> None:
        """Connect what is not connected, and make sure that every receiver holds the very models.

        Args:
            devices: The device of each user, user 1's first.
            models: The identity of each model that a trial needs, by its name.

        Raises:
            DeviceError: One cannot be reached, does not prove itself, or holds something else.
        """
        self._models = models
        # Of wdmoe's devices only the experts differ, and nobody holds any here.
        self.prepare(FleetSpec(tuple(devices), ()), "", "")

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

    def _verify(self, name: str, description: Mapping[str, Any]) -> None:
        held = description.get("models")
        for model, identity in self._models.items():
            if not isinstance(held, dict) or model not in held:
                problem = f"holds no model {model}"
            elif held[model] != identity:
                problem = f"holds another model of the name {model}"
            else:
                continue
            raise DeviceError(name, problem, f"device {name} {problem}; deploy again")


class _Count(NamedTuple):
    """What was counted on the connections to all receivers, by channel."""

    traffic: Mapping[Channel, Sequence[int]]
    resent: Mapping[Channel, Sequence[Optional[int]]]


class Traffic:
    """Counts the bytes of a trial: what its frames took, and what was said beside them.

    Attributes:
        data: Bytes of frames and of the answers to them, by device: ``out`` and ``back``.
    """

    def __init__(self, receivers: Receivers) -> None:
        self._receivers = receivers
        self._begun = self._count()
        self.data: Dict[str, Dict[str, int]] = {}

    def add(self, name: str, answer: Answer) -> None:
        """Count a frame, or pieces of it, and the answer."""
        counted = self.data.setdefault(name, dict.fromkeys(_COUNTED, 0))
        counted["out"] += answer.bytes_out
        counted["back"] += answer.bytes_back

    def summary(self) -> Dict[str, Any]:
        """Return all bytes since the beginning: ``data_bytes``, ``control_bytes`` and ``retransmitted_bytes``."""
        now, begun = self._count(), self._begun
        control: Dict[str, Dict[str, int]] = {}
        resent: Dict[str, Dict[str, Optional[int]]] = {}
        for channel, counts in now.traffic.items():
            data = self.data.setdefault(channel.name, dict.fromkeys(_COUNTED, 0))
            before = begun.traffic.get(channel, (0, 0))
            control[channel.name] = {
                way: after - earlier - data[way] for way, after, earlier in zip(_COUNTED, counts, before)
            }
            again = map(_minus, now.resent[channel], begun.resent.get(channel, (0, 0)))
            resent[channel.name] = dict(zip(_COUNTED, again))
        return {"data_bytes": self.data, "control_bytes": control, "retransmitted_bytes": resent}

    def _count(self) -> _Count:
        return _Count(self._receivers.traffic(), self._receivers.resent())


def _minus(after: Optional[int], before: Optional[int]) -> Optional[int]:
    return None if after is None or before is None else after - before
