"""The devices as a base station sees them: who they are, what each says of itself, connections and clocks."""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from payloads.wire.client import Channel, DeviceError, DeviceLostError, Exchange, Patience, Request
from payloads.wire.clock import Offset, OffsetHistory, PingStamps, estimate_offset
from payloads.wire.credentials import Credentials
from payloads.wire.frames import FrameError, Kind, pack_header, pack_ping, unpack_description, unpack_pong

__all__ = ["Check", "DeviceSpec", "Devices", "DevicesError", "Returned", "read_devices", "reading"]

#: A clock is asked until so many round trips in a row were no shorter than the shortest, and at most so often.
PINGS_IN_VAIN, PINGS_MOST = 12, 60
RESTART_S = 20.0  # what a supervisor needs to start a worker again, torch included
#: What a device may take to say who it is or what its clock says: neither waits for a computation.
TALK_S = 10.0
#: A device that is sought again is tried often, and each try is short.
RETRY_CONNECT_S = 2.0

#: Given a device's name and what it says of itself, says what is wrong with it; None where nothing is.
Check = Callable[[str, Mapping[str, Any]], Optional[str]]


class DevicesError(Exception):
    """The devices file is missing or wrong."""


class DeviceSpec(NamedTuple):
    """One device.

    Attributes:
        name: Its name in the inventory.
        address: Its address.
        port: The port of its service.
    """

    name: str
    address: str
    port: int


class Returned(NamedTuple):
    """A device that is there again.

    Attributes:
        channel: A connection to it.
        exchange: The loop that the connection belongs to.
        description: What its service says of itself; it has what is asked of it.
        offset: Its clock's offset.
    """

    channel: Channel
    exchange: Exchange
    description: Dict[str, object]
    offset: Offset


def read_devices(value: Any) -> Tuple[DeviceSpec, ...]:
    """Return the devices that a devices file holds; its other faults are the caller's.

    Raises:
        KeyError, TypeError, ValueError: It is damaged.
    """
    return tuple(
        DeviceSpec(str(one["name"]), str(one["address"]), int(one["port"])) for one in value["devices"]
    )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say of a devices file that it cannot be read or is damaged.

    Raises:
        DevicesError: It is.
    """
    try:
        yield
    except OSError as error:
        raise DevicesError(f"cannot read {path}: {error.strerror}") from error
    except KeyError as error:
        raise DevicesError(f"{path}: {error.args[0]} is missing") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise DevicesError(f"{path} is damaged: {error}") from error


class Devices:
    """The connections to all devices that a base station works with.

    Attributes:
        exchange: The loop that drives them.
        channels: The connection to each device, by name.
        descriptions: What each device's service said of itself, by name.
        returned: The clock offsets of devices that came back since they were prepared, by name.
    """

    def __init__(self, exchange: Exchange, credentials: Credentials) -> None:
        self.exchange = exchange
        self.channels: Dict[str, Channel] = {}
        self.descriptions: Dict[str, Dict[str, Any]] = {}
        self.returned: Dict[str, List[Offset]] = {}
        self._credentials = credentials
        self._check: Check = lambda name, description: None

    def prepare(self, devices: Sequence[DeviceSpec], check: Check) -> None:
        """Connect what is not connected, and make sure that every device is what it has to be.

        Args:
            devices: The devices.
            check: Says what is wrong with a device, if anything is.

        Raises:
            DeviceError: A device cannot be reached, does not prove itself, or is not what it has to be.
        """
        self._follow(devices)
        self.returned = {}
        self._check = check
        for attempt in (1, 2):
            self._connect()
            try:
                self.descriptions = _describe(self.exchange, list(self.channels.values()))
                break
            except DeviceLostError:
                # A worker that was restarted since the last trial: its old connection is dead, and where one is,
                # others may be that were not asked yet.
                if attempt == 2:
                    raise
                for channel in self.channels.values():
                    self.exchange.disconnect(channel)
        for name, description in self.descriptions.items():
            self._verify(name, description)

    def _connect(self) -> None:
        """Connect every channel; a worker that is just being started again is waited for."""
        deadline = time.monotonic() + RESTART_S
        for channel in self.channels.values():
            while not channel.connected:
                try:
                    self.exchange.connect(channel, self._credentials)
                except DeviceLostError as error:
                    refused = isinstance(error.__cause__, ConnectionRefusedError)
                    if not refused or time.monotonic() > deadline:
                        raise
                    time.sleep(0.25)

    def offsets(self, lost: bool = False) -> Dict[str, Offset]:
        """Estimate every device's clock offset by a few pings, one device after the other.

        Args:
            lost: Whether devices may be lost: they have no offset then.

        Raises:
            DeviceLostError: One is lost, and none may be.
        """
        result = {}
        for name, channel in self.channels.items():
            try:
                result[name] = estimate_offset(_pings(self.exchange, channel))
            except DeviceLostError:
                if not lost:
                    raise
        return result

    def histories(
        self, before: Mapping[str, Offset], after: Mapping[str, Offset]
    ) -> Dict[str, OffsetHistory]:
        """Return each device's clock offsets since it was prepared.

        Args:
            before: The offsets at the beginning.
            after: Those at the end, of the devices that were not lost by then.
        """
        return {
            name: OffsetHistory((offset, *self.returned.get(name, ())), after.get(name))
            for name, offset in before.items()
        }

    def attempt(self, name: str) -> Returned:
        """Connect a lost device again, on a connection of its own, and check it as :meth:`prepare` does.

        Another thread may call this while the exchange is at work.

        Raises:
            DeviceError: It is not there, or not what it was.
        """
        lost, before = self.channels[name], self.descriptions.get(name, {})
        exchange = Exchange(stall_timeout_s=RETRY_CONNECT_S)
        channel = Channel(lost.name, lost.address, lost.port)
        try:
            exchange.connect(channel, self._credentials, RETRY_CONNECT_S)
            description = _describe(exchange, [channel])[name]
            self._verify(name, description)
            if description.get("weights") != before.get("weights"):
                problem = f"holds {description.get('weights')} weights, not {before.get('weights')}"
                raise DeviceError(name, problem, f"device {name} {problem}")
            return Returned(channel, exchange, description, estimate_offset(_pings(exchange, channel)))
        except BaseException:
            exchange.close()
            raise

    def adopt(self, name: str, returned: Returned) -> None:
        """Put the connection that :meth:`attempt` made in the place of the lost one.

        Raises:
            DeviceLostError: It is gone again.
        """
        returned.exchange.hand_over(returned.channel, self.exchange, self.channels[name])
        self.descriptions[name] = dict(returned.description)
        self.returned.setdefault(name, []).append(returned.offset)

    def traffic(self) -> Dict[Channel, Tuple[int, int]]:
        """Return all bytes sent and received on each channel so far."""
        return {channel: (channel.bytes_out, channel.bytes_back) for channel in self.channels.values()}

    def resent(self) -> Dict[Channel, Tuple[Optional[int], Optional[int]]]:
        """Return the payload that TCP has sent again to and from each device so far."""
        return {channel: channel.resent() for channel in self.channels.values()}

    def _follow(self, devices: Sequence[DeviceSpec]) -> None:
        wanted = {device.name: device for device in devices}
        for name, channel in list(self.channels.items()):
            if wanted.get(name) != DeviceSpec(channel.name, channel.address, channel.port):
                self.exchange.disconnect(channel)
                del self.channels[name]
        self.channels = {
            device.name: self.channels.get(device.name) or Channel(device.name, device.address, device.port)
            for device in devices
        }

    def _verify(self, name: str, description: Mapping[str, Any]) -> None:
        """Refuse a device that is not what it has to be."""
        problem = self._check(name, description)
        if problem:
            raise DeviceError(name, problem, f"device {name} {problem}; deploy again")


def _describe(exchange: Exchange, channels: Sequence[Channel]) -> Dict[str, Dict[str, Any]]:
    """Return what the devices' services say of themselves."""
    requests = []
    for channel in channels:
        sequence = channel.next_sequence()
        requests.append(Request(channel, sequence, [pack_header(Kind.DESCRIBE, 0, sequence)]))
    result = {}
    for channel, answer in zip(channels, exchange.ask(requests, Kind.DESCRIPTION, patience=_talk(channels))):
        try:
            result[channel.name] = unpack_description(answer.payload)
        except FrameError as error:
            raise DeviceError(channel.name, str(error), f"device {channel.name}: {error}") from error
    return result


def _pings(exchange: Exchange, channel: Channel) -> List[PingStamps]:
    result: List[PingStamps] = []
    shortest, in_vain = float("inf"), 0
    while in_vain < PINGS_IN_VAIN and len(result) < PINGS_MOST:
        sequence = channel.next_sequence()
        ping = pack_ping(time.monotonic_ns(), sequence)
        # Not asked in haste: that another device goes meanwhile is no fault of this one.
        (answer,) = exchange.gather(
            [Request(channel, sequence, [ping])], Kind.PONG, patience=_talk([channel])
        )
        if isinstance(answer, DeviceError):
            raise next((gone for gone in exchange.gone if gone.device == channel.name), answer)
        try:
            sent_ns, received_ns, replied_ns, channel.device_resent = unpack_pong(answer.payload)
        except FrameError as error:
            exchange.disconnect(channel)
            raise DeviceLostError(channel.name, str(error)) from error
        result.append(PingStamps(sent_ns, received_ns, replied_ns, answer.done_ns))
        rtt_ns = result[-1].rtt_ns()
        shortest, in_vain = min(shortest, rtt_ns), 0 if rtt_ns < shortest else in_vain + 1
    return result


def _talk(channels: Sequence[Channel]) -> Patience:
    return Patience(TALK_S, lambda: [TALK_S] * len(channels))
