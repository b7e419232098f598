"""The base station's end of a probe: how long do messages take, and how long should they?

Long flows hide what a shaper does to short messages, so messages of the sizes in use are timed: sent until a
one-byte answer is back, or asked for until their last byte is there. The round trip of a message of a few
bytes is measured before each message and subtracted: on a busy machine it drifts by more than what a frame
takes at 100 Mbit/s.
"""

from __future__ import annotations

import contextlib
import math
import socket
import statistics
import time
from dataclasses import dataclass
from typing import (
    Any,
    Callable,
    ContextManager,
    Dict,
    Iterator,
    List,
    Mapping,
    Optional,
    Protocol,
    Sequence,
    Tuple,
)

from payloads.linkd.errors import LinkdError
from payloads.linkd.hello import connect, receive
from payloads.linkd.links import DIRECTIONS, Link
from payloads.linkd.model import (
    Framing,
    expected_ms,
    frame_ms,
    judge,
    refill_s,
    takes_first_frame,
)
from payloads.linkd.respond import DOWN, MAX_MESSAGE_BYTES, PACE, REQUEST, UP, send, swallow
from payloads.wire.pacing import set_pace

__all__ = [
    "PACING",
    "Prober",
    "Settings",
    "busy_seconds",
    "percentile",
    "probe_links",
    "rate_of",
    "row_of",
]

#: The backend in which those who own the sockets pace them.
PACING = "socket-pacing"
_IP_MTU = 14
_TIMEOUT_S = 120.0
_LEAST_MESSAGES = 3
#: The messages whose round trip is subtracted.
_BASELINE_BYTES = {"downlink": REQUEST.size, "uplink": 1}
_BASELINE_MESSAGES = 2
#: Between two messages, beside the time in which the bucket fills again.
_REST_S = 0.002
#: A load is full when its streams fill this much of every other link, and is waited for no longer than this.
_FULL_LOAD = 0.9
_FULL_LOAD_WITHIN_S = 4.0
_LOOK_AT_LOAD_S = 0.4
_MAX_BUSY_S = 3000.0

#: Which backend gives a device's direction.
Backends = Mapping[Tuple[str, str], Optional[str]]


class OtherLoad(Protocol):
    """The load of all other links, as :class:`payloads.linkd.load.LoadProcess` gives it."""

    def mark(self) -> None:
        """Begin an interval."""

    def share(self) -> float:
        """Return how full the least loaded link has been since the mark."""


@dataclass(frozen=True)
class Settings:
    """What is probed.

    Attributes:
        message_bytes: The sizes of the messages.
        repeats: How many messages of each size.
        tolerance: How far the median may be from the expected time, as a share of it.
        retries: How often a size that is outside the tolerance is measured again.
        directions: ``downlink``, ``uplink`` or both.
        busy: Whether each size is also measured while all other links are full in both directions.
        within_s: How long the messages of one size may take; of long ones there are fewer, but at least three.
    """

    message_bytes: Tuple[int, ...]
    repeats: int = 5
    tolerance: float = 0.05
    retries: int = 2
    directions: Tuple[str, ...] = DIRECTIONS
    busy: bool = False
    within_s: float = math.inf

    def __post_init__(self) -> None:
        for size in self.message_bytes:
            if not REQUEST.size < size <= MAX_MESSAGE_BYTES:
                raise LinkdError(f"messages have {REQUEST.size + 1} to {MAX_MESSAGE_BYTES} bytes, not {size}")
        if not self.message_bytes or self.repeats < 1:
            raise LinkdError("at least one size and one repeat were expected")
        if not self.within_s > 0:
            raise LinkdError(
                f"a time above 0 s was expected for the messages of a size, not {self.within_s:g}"
            )

    def count(self, message_bytes: int, rate_mbit: float) -> int:
        """Return how many messages of a size are sent at a rate."""
        each_s = expected_ms(message_bytes, rate_mbit, first_frame=True) / 1e3
        return int(min(self.repeats, max(_LEAST_MESSAGES, self.within_s / each_s)))


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile (``share`` from 0 to 1), between two values by linear interpolation."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def rate_of(link: Link, direction: str) -> Optional[float]:
    """Return the rate (Mbit/s) that is asked for a direction; None where it is left alone."""
    return link.downlink_mbit if direction == "downlink" else link.uplink_mbit


class Prober:
    """A connection to one device's responder.

    Args:
        link: The link.
        key: The deploy's key.

    Raises:
        LinkdError: The responder does not answer, or does not hold the key.
    """

    def __init__(self, link: Link, key: bytes) -> None:
        self._link = link
        self._socket = connect(link, key)
        self._socket.settimeout(_TIMEOUT_S)
        self._buffer = bytearray(MAX_MESSAGE_BYTES)
        self._piece = 0
        mtu = self._socket.getsockopt(socket.IPPROTO_IP, _IP_MTU)
        self.framing = Framing(mtu, self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG))

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def pace(self, direction: str) -> None:
        """Have the sender's socket hold the rate: ours downlink, the responder's uplink.

        Raises:
            LinkdError: Its system cannot, or the connection failed.
        """
        rate = rate_of(self._link, direction)
        if rate is None:
            return
        try:
            if direction == "downlink":
                self._piece = set_pace(self._socket, rate)
                return
            self._socket.sendall(REQUEST.pack(PACE, 0, max(1, round(rate * 1e3))))
            able = receive(self._socket, 1) == b"\1"
        except OSError as error:
            raise LinkdError(f"{self._link.device}: its link could not be paced: {error}") from error
        if not able:
            raise LinkdError(f"{self._link.device} cannot pace a socket: shape at the base station instead")

    def measure(self, direction: str, message_bytes: int, count: int) -> Tuple[List[float], List[float]]:
        """Return how long each of ``count`` messages took, and the round trips between them, in milliseconds.

        The bucket is full before each. On a link with a delay a message goes ahead that is not counted: it
        opens TCP's window.

        Raises:
            LinkdError: The connection failed.
        """
        times: List[float] = []
        round_trips: List[float] = []
        try:
            if self._link.delay_ms:
                self._timed_ms(direction, message_bytes)
            for _ in range(count):
                for _again in range(_BASELINE_MESSAGES):
                    round_trips.append(self._timed_ms(direction, _BASELINE_BYTES[direction]))
                times.append(self._timed_ms(direction, message_bytes))
        except OSError as error:
            raise LinkdError(f"{self._link.device} was lost in the middle of a probe: {error}") from error
        return times, round_trips

    def _timed_ms(self, direction: str, message_bytes: int) -> float:
        rates = (self._link.downlink_mbit, self._link.uplink_mbit)
        refills = [refill_s(rate, self.framing.mtu) for rate in rates if rate is not None]
        time.sleep(_REST_S + max(refills, default=0.0))
        started = time.perf_counter()
        self._once(direction, message_bytes)
        return (time.perf_counter() - started) * 1e3

    def _once(self, direction: str, message_bytes: int) -> None:
        if direction == "downlink":
            REQUEST.pack_into(self._buffer, 0, DOWN, 0, message_bytes)
            send(self._socket, memoryview(self._buffer)[:message_bytes], self._piece)
            swallow(self._socket, 1)
        else:
            self._socket.sendall(REQUEST.pack(UP, 0, message_bytes))
            swallow(self._socket, message_bytes)


def probe_links(
    links: Sequence[Link],
    key: bytes,
    settings: Settings,
    backends: Optional[Backends] = None,
    load: Optional[Callable[[Sequence[Link], float], ContextManager[OtherLoad]]] = None,
    only: Optional[Sequence[str]] = None,
    prober: Callable[[Link, bytes], Prober] = Prober,
) -> Iterator[Dict[str, Any]]:
    """Yield one row for each device, state, direction and size.

    Args:
        links: The links, with the rates that were asked for. A direction without a rate has no rows.
        key: The deploy's key.
        settings: What is probed.
        backends: What shapes each device's directions; what is missing is taken for a token bucket.
        load: Loads links for so many seconds; needed for ``settings.busy``.
        only: The devices that are probed, where not all are.
        prober: Makes the connection to a device.

    Raises:
        LinkdError: A device could not be probed, or the load failed.
    """
    if settings.busy and (load is None or len(links) < 2):
        raise LinkdError("a busy probe loads the other links: at least two links are needed")
    for device in only or ():
        if device not in {link.device for link in links}:
            raise LinkdError(f"no link was set for {device!r}")
    for link in links:
        if only and link.device not in only:
            continue
        yield from _probe_link(link, key, settings, "idle", None, backends or {}, prober)
        if settings.busy and load is not None:
            others = [other for other in links if other is not link]
            with load(others, busy_seconds(link, settings)) as under_way:
                _until_full(under_way)
                yield from _probe_link(link, key, settings, "busy", under_way, backends or {}, prober)


def busy_seconds(link: Link, settings: Settings) -> float:
    """Return how long probing a link may take at most, in seconds: what its load is bounded by."""
    seconds = 30.0
    for direction in settings.directions:
        rate = rate_of(link, direction)
        if rate is not None:
            for size in settings.message_bytes:
                rounds = settings.count(size, rate) * (1 + settings.retries)
                round_trips_s = (1 + _BASELINE_MESSAGES) * (
                    _REST_S + 4 * link.delay_ms / 1e3 + refill_s(rate)
                )
                seconds += rounds * (2 * expected_ms(size, rate) / 1e3 + round_trips_s)
    return min(_MAX_BUSY_S, 2 * seconds)


def _until_full(load: OtherLoad) -> None:
    """Wait until the other links are full, or as full as they get; the interval of their share begins there."""
    deadline = time.monotonic() + _FULL_LOAD_WITHIN_S
    while time.monotonic() < deadline:
        load.mark()
        time.sleep(_LOOK_AT_LOAD_S)
        if load.share() >= _FULL_LOAD:
            return


def _probe_link(
    link: Link,
    key: bytes,
    settings: Settings,
    state: str,
    load: Optional[OtherLoad],
    backends: Backends,
    connect_to: Callable[[Link, bytes], Prober],
) -> Iterator[Dict[str, Any]]:
    with contextlib.closing(connect_to(link, key)) as prober:
        for direction in settings.directions:
            asked = rate_of(link, direction)
            if asked is None:
                continue
            backend = backends.get((link.device, direction))
            if backend == PACING:
                prober.pace(direction)
            for size in settings.message_bytes:
                count = settings.count(size, asked)
                row, attempts = {"ok": False}, 0
                while not row["ok"] and attempts <= settings.retries:
                    attempts += 1
                    times, round_trips = prober.measure(direction, size, count)
                    row = row_of(
                        link, direction, size, times, round_trips, settings.tolerance, prober.framing, backend
                    )
                load_share = None if load is None else round(load.share(), 3)
                yield {**row, "attempts": attempts, "state": state, "load_share": load_share}


def row_of(
    link: Link,
    direction: str,
    message_bytes: int,
    times_ms: Sequence[float],
    round_trips_ms: Sequence[float],
    tolerance: float,
    framing: Framing,
    backend: Optional[str] = None,
) -> Dict[str, Any]:
    """Return one row of the result.

    ``measured_ms`` is the median time less ``rtt_ms``, the median round trip of a few bytes, which holds the delays
    of both directions, without what the rate takes for those bytes themselves. ``ratio`` is null where no time
    is expected: a message of one frame passes a token bucket at once. ``ok`` is
    :func:`payloads.linkd.model.judge`; on a link with jitter the median may be off by as much, and on one with
    loss, where TCP sends again, only what comes too early is wrong.

    Args:
        link: The link.
        direction: ``downlink`` or ``uplink``; it has a rate.
        message_bytes: The size of the messages.
        times_ms: How long each took.
        round_trips_ms: The round trips between them.
        tolerance: The share of the expected time that the median may be off.
        framing: How messages are cut.
        backend: What shapes this direction.
    """
    asked = rate_of(link, direction)
    assert asked is not None
    first_frame = takes_first_frame(backend)
    few_bytes_ms = expected_ms(_BASELINE_BYTES[direction], asked, framing, first_frame=first_frame)
    rtt_ms = statistics.median(round_trips_ms) - few_bytes_ms
    expected = expected_ms(message_bytes, asked, framing, first_frame=first_frame)
    measured = statistics.median(times_ms) - rtt_ms
    ok = judge(expected, measured, asked, tolerance, framing)
    if link.jitter_ms:
        ok = ok or abs(measured - expected) <= frame_ms(asked, framing) + 2 * link.jitter_ms
    if link.loss_percent:
        ok = ok or measured > expected
    return {
        "device": link.device,
        "direction": direction,
        "backend": backend,
        "asked_mbit": asked,
        "delay_ms": link.delay_ms,
        "message_bytes": message_bytes,
        "n": len(times_ms),
        "expected_ms": round(expected, 4),
        "measured_ms": round(measured, 4),
        "p95_ms": round(percentile(times_ms, 0.95) - rtt_ms, 4),
        "ratio": round(measured / expected, 4) if expected else None,
        "ok": ok,
        "rtt_ms": round(rtt_ms, 4),
    }
