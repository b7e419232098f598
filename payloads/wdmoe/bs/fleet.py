"""The devices as the base station sees them: who they are, what each holds, their connections and clocks."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

from payloads.wire.client import Channel, DeviceError, DeviceLostError, Exchange, Request
from payloads.wire.clock import Offset, PingStamps, estimate_offset
from payloads.wire.frames import FrameError, Kind, pack_header, pack_ping, unpack_description, unpack_pong

__all__ = ["DeviceSpec", "Devices", "FleetError", "FleetSpec", "read_fleet"]

PINGS = 12
RESTART_S = 20.0  # what a supervisor needs to start a worker again, torch included


class FleetError(Exception):
    """The devices file is missing or wrong."""


class DeviceSpec(NamedTuple):
    """One device.

    Attributes:
        name: Its name in the inventory.
        address: Its address.
        port: The port of its worker.
    """

    name: str
    address: str
    port: int


class FleetSpec(NamedTuple):
    """The devices and the placement.

    Attributes:
        devices: The devices.
        placement: For each layer, for each expert, the names of the devices that hold it.
    """

    devices: Tuple[DeviceSpec, ...]
    placement: Tuple[Tuple[Tuple[str, ...], ...], ...]


def read_fleet(path: Path, layers: int, experts: int) -> FleetSpec:
    """Read the devices file of a model with so many layers and experts in each.

    Raises:
        FleetError: It cannot be read, an expert is placed nowhere, or a device is not known.
    """
    try:
        value = json.loads(path.read_text())
        devices = tuple(
            DeviceSpec(str(d["name"]), str(d["address"]), int(d["port"])) for d in value["devices"]
        )
        placement = tuple(
            tuple(_holders(value["placement"], layer, expert) for expert in range(experts))
            for layer in range(layers)
        )
    except OSError as error:
        raise FleetError(f"cannot read {path}: {error.strerror}") from error
    except KeyError as error:
        raise FleetError(f"{path}: {error.args[0]} is missing") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise FleetError(f"{path} is damaged: {error}") from error
    known = {device.name for device in devices}
    named = {name for layer in placement for holders in layer for name in holders}
    if named - known:
        raise FleetError(f"{path}: the placement names an unknown device: {', '.join(sorted(named - known))}")
    return FleetSpec(devices, placement)


class Devices:
    """The connections to all devices of a fleet.

    Attributes:
        exchange: The loop that drives them.
        channels: The connection to each device, by name.
        descriptions: What each worker said of itself, by name.
    """

    def __init__(self, exchange: Exchange, key_file: Path) -> None:
        self.exchange = exchange
        self.channels: Dict[str, Channel] = {}
        self.descriptions: Dict[str, Dict[str, Any]] = {}
        self._key_file = key_file

    def prepare(self, fleet: FleetSpec, manifest: str, dtype: str) -> None:
        """Connect what is not connected, and make sure that every device holds what is placed on it.

        Args:
            fleet: The devices and the placement.
            manifest: The sha256 of the model's manifest.
            dtype: The run's element type.

        Raises:
            DeviceError: A device cannot be reached, does not hold the key, or holds the wrong experts.
        """
        self._follow(fleet)
        for attempt in (1, 2):
            self._connect()
            try:
                self.descriptions = self._describe()
                break
            except DeviceLostError:
                # A worker that was restarted since the last trial: its old connection is dead, and where one is,
                # others may be that were not asked yet.
                if attempt == 2:
                    raise
                for channel in self.channels.values():
                    self.exchange.disconnect(channel)
        for name, description in self.descriptions.items():
            problem = _mismatch(fleet, name, description, manifest, dtype)
            if problem:
                raise DeviceError(name, problem, f"device {name} {problem}; deploy again")

    def _connect(self) -> None:
        """Connect every channel; a worker that is just being started again is waited for."""
        deadline = time.monotonic() + RESTART_S
        for channel in self.channels.values():
            while not channel.connected:
                try:
                    self.exchange.connect(channel, self._key_file)
                except DeviceLostError as error:
                    refused = isinstance(error.__cause__, ConnectionRefusedError)
                    if not refused or time.monotonic() > deadline:
                        raise
                    time.sleep(0.25)

    def offsets(self) -> Dict[str, Offset]:
        """Estimate every device's clock offset by a few pings, one device after the other."""
        return {name: estimate_offset(self._pings(channel)) for name, channel in self.channels.items()}

    def traffic(self) -> Dict[Channel, Tuple[int, int]]:
        """Return all bytes sent and received on each channel so far."""
        return {channel: (channel.bytes_out, channel.bytes_back) for channel in self.channels.values()}

    def resent(self) -> Dict[Channel, Tuple[Optional[int], Optional[int]]]:
        """Return the payload that TCP has sent again to and from each device so far."""
        return {channel: channel.resent() for channel in self.channels.values()}

    def _follow(self, fleet: FleetSpec) -> None:
        wanted = {device.name: device for device in fleet.devices}
        for name, channel in list(self.channels.items()):
            if wanted.get(name) != DeviceSpec(channel.name, channel.address, channel.port):
                self.exchange.disconnect(channel)
                del self.channels[name]
        self.channels = {
            device.name: self.channels.get(device.name) or Channel(device.name, device.address, device.port)
            for device in fleet.devices
        }

    def _describe(self) -> Dict[str, Dict[str, Any]]:
        requests = []
        for channel in self.channels.values():
            sequence = channel.next_sequence()
            requests.append(Request(channel, sequence, [pack_header(Kind.DESCRIBE, 0, sequence)]))
        answers = self.exchange.ask(requests, Kind.DESCRIPTION)
        result = {}
        for name, answer in zip(self.channels, answers):
            try:
                result[name] = unpack_description(answer.payload)
            except FrameError as error:
                raise DeviceError(name, str(error), f"device {name}: {error}") from error
        return result

    def _pings(self, channel: Channel) -> List[PingStamps]:
        result = []
        for _ in range(PINGS):
            sequence = channel.next_sequence()
            ping = pack_ping(time.monotonic_ns(), sequence)
            (answer,) = self.exchange.ask([Request(channel, sequence, [ping])], Kind.PONG)
            sent_ns, received_ns, replied_ns, channel.device_resent = unpack_pong(answer.payload)
            result.append(PingStamps(sent_ns, received_ns, replied_ns, answer.done_ns))
        return result


def _holders(placement: Mapping[str, Any], layer: int, expert: int) -> Tuple[str, ...]:
    try:
        names = placement[str(layer)][str(expert)]
    except KeyError:
        raise KeyError(f"the placement of layer {layer} expert {expert}") from None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"layer {layer} expert {expert}: expected a list of device names, got {names!r}")
    return tuple(names)


def _mismatch(
    fleet: FleetSpec, name: str, description: Mapping[str, Any], manifest: str, dtype: str
) -> Optional[str]:
    if description.get("manifest") != manifest:
        return "holds the experts of another model"
    if description.get("dtype") != dtype:
        return f"computes in {description.get('dtype')}, not in {dtype}"
    held = {(layer, expert) for layer, expert in description.get("experts", [])}
    for layer, experts in enumerate(fleet.placement):
        for expert, holders in enumerate(experts):
            if name in holders and (layer, expert) not in held:
                return f"does not hold layer {layer} expert {expert}, which is placed on it"
    return None
