"""The user-space line: an in-path link emulator at the base station, for kernels without netem.

It gives each link and direction a rate (by each frame's own size, the first one included), a one-way delay, a jitter
and a loss. Two processes, one for each direction, hold the frames (line_process.py); the kernel's classes only count.

line_schedule.py    when each frame leaves (pure)
line_taps.py        how packets come to the line and out of it
line_process.py     the process of one direction
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import subprocess
import sys
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from payloads.linkd.errors import LinkdError, RefusedError
from payloads.linkd.line_process import MESSAGE_BYTES
from payloads.linkd.line_schedule import LineCounters, LinkTiming
from payloads.linkd.line_taps import Filters, delete_tap, hardware_address, make_tap, tap_name, why_not
from payloads.linkd.model import limit_bytes
from payloads.linkd.plan import Interface, Link, assign_minors

__all__ = [
    "MAX_RATE_MBIT",
    "MAX_SUM_MBIT",
    "Line",
    "LineCounters",
    "check",
    "needed",
    "take_away",
    "timing_of",
    "usable",
]

#: What the line keeps up with (docs/links.md, "The user-space line"): one link in one direction, and all together.
MAX_RATE_MBIT = 100.0
MAX_SUM_MBIT = 200.0
_INSTEAD = "ask for less, or take the leaf tbf or netem (serve --leaf, or leaf in the inventory)"
_START_TIMEOUT_S = 10.0
#: linkd serves nobody else while it waits for a process that runs.
_ANSWER_TIMEOUT_S = 1.0
_Identity = Tuple[str, str, int, int]


def usable(interface: Interface) -> Optional[str]:
    """Return None where this host and process can run the line on an interface, or why not."""
    reason = why_not()
    if reason is None:
        try:
            hardware_address(interface.name)
        except LinkdError as error:
            reason = str(error)
    return reason


def check(links: Sequence[Link]) -> None:
    """Check that the line keeps up with the rates asked for.

    Raises:
        RefusedError: One link or all together ask for more; the message has the limit.
    """
    total = 0.0
    for link in links:
        for direction, rate in (("downlink", link.downlink_mbit), ("uplink", link.uplink_mbit)):
            total += rate or 0.0
            if rate is not None and rate > MAX_RATE_MBIT:
                raise RefusedError(
                    f"refused: {link.device}: {direction} {rate:g} Mbit/s: the user-space line keeps up with "
                    f"{MAX_RATE_MBIT:g} Mbit/s on one link; {_INSTEAD}"
                )
    if total > MAX_SUM_MBIT:
        raise RefusedError(
            f"refused: {total:g} Mbit/s over all links and both directions: the user-space line keeps up with "
            f"{MAX_SUM_MBIT:g} Mbit/s in sum; {_INSTEAD}"
        )


def needed(interface: Interface, links: Sequence[Link]) -> Mapping[str, Any]:
    """Return what :func:`take_away` has to know, as plain data; nothing is changed.

    Raises:
        RefusedError: The line cannot run here, or not at these rates.
    """
    check(links)
    reason = usable(interface)
    if reason:
        raise RefusedError(f"refused: the user-space line cannot run: {reason}")
    return {"taps": [tap_name(interface, direction) for direction in Filters(interface, links).directions]}


def take_away(data: Mapping[str, Any]) -> None:
    """Undo what a line did that was killed: its TAPs; its filters go with the disciplines that they sit on.

    Raises:
        LinkdError: A TAP is there still and the kernel did not delete it.
    """
    for name in data["taps"]:
        delete_tap(str(name))


def timing_of(link: Link, direction: str, mtu: int) -> Optional[LinkTiming]:
    """Return what a link does to frames in one direction, or None where that is left alone."""
    rate = link.downlink_mbit if direction == "downlink" else link.uplink_mbit
    if rate is None:
        return None
    limit = limit_bytes(rate, mtu)
    return LinkTiming(
        rate * 1e6 / 8, limit, link.delay_ms / 1e3, link.jitter_ms / 1e3, link.loss_percent / 100
    )


class _Direction:
    """The process of one direction, seen from linkd."""

    def __init__(
        self, direction: str, interface: Interface, links: Sequence[Link], minors: Mapping[_Identity, int]
    ) -> None:
        self.direction = direction
        self._mtu = interface.mtu
        self._interface = interface
        self._minors = minors
        self._devices: List[str] = []
        self._timings: List[LinkTiming] = []
        self._setup: List[Dict[str, Any]] = []
        for link in links:
            timing = timing_of(link, direction, interface.mtu)
            if timing is not None:
                self._devices.append(link.device)
                self._timings.append(timing)
                key = list(ipaddress.IPv4Address(link.address).packed)
                self._setup.append({"key": key, "minor": minors[link.identity], "timing": timing})
        self._asked = 0
        self._hung_up = False
        self._process: Optional[subprocess.Popen[bytes]] = None
        self.control: Optional[socket.socket] = None

    def start(self, seed: int, address: bytes) -> None:
        """Make the TAP and hand it to a new process."""
        tap = make_tap(tap_name(self._interface, self.direction), self._mtu, address)
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.control = ours
            with theirs:
                for end in (ours, theirs):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_BYTES)
                ours.settimeout(_START_TIMEOUT_S)
                descriptors = (tap, theirs.fileno())
                command = [sys.executable, "-m", "payloads.linkd.line_process", *map(str, descriptors)]
                # A session of its own: what is sent to linkd's group is linkd's to deal with.
                self._process = subprocess.Popen(command, pass_fds=descriptors, start_new_session=True)
        finally:
            os.close(tap)
        self._tell(
            {
                "direction": self.direction,
                "interface": self._interface.name,
                "mtu": self._mtu,
                "seed": f"{seed}:{self.direction}",
                "links": self._setup,
            }
        )
        self._hear()
        self.control.settimeout(_ANSWER_TIMEOUT_S)

    def change(self, links: Sequence[Link]) -> None:
        """Tell the process what differs; no answer is waited for."""
        timings = [
            timing for link in links if (timing := timing_of(link, self.direction, self._mtu)) is not None
        ]
        assert len(timings) == len(self._timings), "other links: start another line"
        differ = [(n, new) for n, (old, new) in enumerate(zip(self._timings, timings)) if old != new]
        if differ:
            self._tell({"change": differ})
            self._timings = timings

    def counters(self) -> Dict[str, LineCounters]:
        """Return the counters by device."""
        self._asked += 1
        self._tell({"counters": self._asked})
        while True:
            answer = self._hear()
            # An answer that came too late for the one who asked is passed over.
            if answer.get("counters") == self._asked:
                return {device: LineCounters(*row) for device, row in zip(self._devices, answer["rows"])}

    def alive(self) -> bool:
        """Return whether the process runs."""
        return self._process is not None and not self._hung_up and self._process.poll() is None

    def stop(self) -> None:
        """End the process; its TAP goes with it."""
        if self.control is not None:
            self.control.close()
            self.control = None
        if self._process is not None:
            try:
                self._process.wait(_ANSWER_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _tell(self, message: Mapping[str, Any]) -> None:
        assert self.control is not None
        try:
            self.control.send(json.dumps(message).encode())
        except OSError as error:
            raise self._failure("listen", error) from error

    def _hear(self) -> Dict[str, Any]:
        assert self.control is not None
        try:
            data = self.control.recv(MESSAGE_BYTES)
        except OSError as error:
            raise self._failure("answer", error) from error
        if not data:
            raise self._failure("answer", ConnectionResetError())
        answer: Dict[str, Any] = json.loads(data)
        return answer

    def _failure(self, verb: str, error: OSError) -> LinkdError:
        """Return what to say of a process that does not listen or answer."""
        name = f"the {self.direction} of the user-space line"
        if isinstance(error, ConnectionError):
            # It closed its end, and is dead or about to be.
            self._hung_up = True
            return LinkdError(f"{name} has died: set the links again")
        return LinkdError(f"{name} does not {verb}: {error}")


class Line:
    """Leads links through the line.

    Args:
        interface: The base station's interface, with the classes of a plan with the leaf ``line`` on it.
        links: The links; their number, names, addresses and directions stay as they are.
        minors: The class number of each link; without it, what a plan that starts from nothing gives.
        seed: Makes losses and jitters come again in the same sequence.
    """

    def __init__(
        self,
        interface: Interface,
        links: Sequence[Link],
        minors: Optional[Mapping[_Identity, int]] = None,
        seed: int = 0,
    ) -> None:
        check(links)
        self._interface = interface
        self._links = tuple(links)
        self._seed = seed
        self._filters = Filters(interface, links)
        minors = assign_minors(links, {}) if minors is None else minors
        self._directions = [
            _Direction(direction, interface, links, minors) for direction in self._filters.directions
        ]

    def start(self) -> None:
        """Start the processes, then lead the packets through them.

        Raises:
            LinkdError: It did not start; what was there of it has been taken away.
        """
        address = hardware_address(self._interface.name)
        try:
            for direction in self._directions:
                direction.start(self._seed, address)
            self._filters.add()
        except BaseException:
            self.stop()
            raise

    def change(self, links: Sequence[Link]) -> None:
        """Give the links other rates, delays, jitters or losses in place; what waits stays.

        Raises:
            RefusedError: The line would not keep up; nothing has changed.
            LinkdError: A process of the line has died.
        """
        check(links)
        for direction in self._directions:
            direction.change(links)
        self._links = tuple(links)

    def counters(self) -> Dict[str, Dict[str, Optional[LineCounters]]]:
        """Return the counters by device and direction; None for a direction that is left alone.

        Raises:
            LinkdError: A process of the line has died.
        """
        result: Dict[str, Dict[str, Optional[LineCounters]]] = {
            link.device: {"downlink": None, "uplink": None} for link in self._links
        }
        for direction in self._directions:
            for device, counters in direction.counters().items():
                result[device][direction.direction] = counters
        return result

    def alive(self) -> bool:
        """Return whether all is running: where it is not, the kernel drops what should go through the line."""
        return bool(self._directions) and all(direction.alive() for direction in self._directions)

    def stop(self) -> None:
        """Lead the packets past the line and end it; harmless where it has been stopped."""
        if any(direction.control is not None for direction in self._directions):
            self._filters.remove()
        for direction in self._directions:
            direction.stop()
