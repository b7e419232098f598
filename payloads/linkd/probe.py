"""The base station's end of a probe: how long do messages take, and how long should they?

Long flows hide what a shaper does to short messages, so messages of the sizes in use are timed: sent until a
one-byte answer is back, or asked for until their last byte is there. The round trip of a message of a few
bytes, which no rate delays, is measured before each message and subtracted: on a busy machine it drifts by
more than what a frame takes at 100 Mbit/s.
"""

from __future__ import annotations

import socket
import statistics
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

from payloads.linkd.errors import LinkdError
from payloads.linkd.hello import greet
from payloads.linkd.model import Framing, expected_ms, judge, refill_s
from payloads.linkd.plan import Link
from payloads.linkd.respond import DOWN, MAX_MESSAGE_BYTES, REQUEST, UP, swallow
from payloads.wire.auth import AuthError

__all__ = ["DIRECTIONS", "Prober", "Settings", "percentile", "probe_device", "row_of"]

DIRECTIONS = ("downlink", "uplink")
_IP_MTU = 14
_TIMEOUT_S = 120.0
_CONNECT_TIMEOUT_S = 5.0
_BASELINE_MESSAGES = 2
#: Between two messages, beside the time in which the bucket fills again.
_REST_S = 0.002


@dataclass(frozen=True)
class Settings:
    """What is probed.

    Attributes:
        message_bytes: The sizes of the messages.
        repeats: How many messages of each size.
        tolerance: How far the median may be from the expected time, as a share of it.
        retries: How often a size that is outside the tolerance is measured again.
        directions: ``downlink``, ``uplink`` or both.
    """

    message_bytes: Tuple[int, ...]
    repeats: int = 5
    tolerance: float = 0.05
    retries: int = 2
    directions: Tuple[str, ...] = DIRECTIONS

    def __post_init__(self) -> None:
        for size in self.message_bytes:
            if not REQUEST.size < size <= MAX_MESSAGE_BYTES:
                raise LinkdError(f"messages have {REQUEST.size + 1} to {MAX_MESSAGE_BYTES} bytes, not {size}")
        if not self.message_bytes or self.repeats < 1:
            raise LinkdError("at least one size and one repeat were expected")


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile (``share`` from 0 to 1), between two values by linear interpolation."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


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
        where = f"{link.device} ({link.address}:{link.probe_port})"
        try:
            self._socket = socket.create_connection((link.address, link.probe_port), _CONNECT_TIMEOUT_S)
        except OSError as error:
            raise LinkdError(f"no probe responder at {where}: {error.strerror or error}") from error
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            greet(self._socket, key)
        except (AuthError, OSError) as error:
            self._socket.close()
            raise LinkdError(f"the probe responder at {where} did not let us in: {error}") from error
        self._socket.settimeout(_TIMEOUT_S)
        self._buffer = bytearray(MAX_MESSAGE_BYTES)
        mtu = self._socket.getsockopt(socket.IPPROTO_IP, _IP_MTU)
        self.framing = Framing(mtu, self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG))

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def measure(self, direction: str, message_bytes: int, count: int) -> Tuple[List[float], List[float]]:
        """Return how long each of ``count`` messages took, and the round trips between them, in milliseconds.

        The bucket is full before each.

        Raises:
            LinkdError: The connection failed.
        """
        times: List[float] = []
        round_trips: List[float] = []
        try:
            for _ in range(count):
                for _again in range(_BASELINE_MESSAGES):
                    round_trips.append(
                        self._timed_ms(direction, REQUEST.size if direction == "downlink" else 1)
                    )
                times.append(self._timed_ms(direction, message_bytes))
        except OSError as error:
            raise LinkdError(f"{self._link.device} was lost in the middle of a probe: {error}") from error
        return times, round_trips

    def _timed_ms(self, direction: str, message_bytes: int) -> float:
        rates = (self._link.downlink_mbit, self._link.uplink_mbit)
        time.sleep(_REST_S + max(refill_s(rate, self.framing.mtu) for rate in rates))
        started = time.perf_counter()
        self._once(direction, message_bytes)
        return (time.perf_counter() - started) * 1e3

    def _once(self, direction: str, message_bytes: int) -> None:
        if direction == "downlink":
            REQUEST.pack_into(self._buffer, 0, DOWN, message_bytes)
            self._socket.sendall(memoryview(self._buffer)[:message_bytes])
            swallow(self._socket, 1)
        else:
            self._socket.sendall(REQUEST.pack(UP, message_bytes))
            swallow(self._socket, message_bytes)


def probe_device(
    link: Link, key: bytes, settings: Settings, connect: Callable[[Link, bytes], Prober] = Prober
) -> Iterator[Dict[str, Any]]:
    """Yield one row for each direction and size of one device.

    Args:
        link: The link, with the rates that were asked for.
        key: The deploy's key.
        settings: What is probed.
        connect: Makes the connection.

    Raises:
        LinkdError: The device could not be probed.
    """
    prober = connect(link, key)
    try:
        for direction in settings.directions:
            for size in settings.message_bytes:
                for attempt in range(1, 2 + settings.retries):
                    times, round_trips = prober.measure(direction, size, settings.repeats)
                    rtt_ms = statistics.median(round_trips)
                    row = row_of(link, direction, size, times, rtt_ms, settings.tolerance, prober.framing)
                    row["attempts"] = attempt
                    if row["ok"]:
                        break
                yield row
    finally:
        prober.close()


def row_of(
    link: Link,
    direction: str,
    message_bytes: int,
    times_ms: Sequence[float],
    rtt_ms: float,
    tolerance: float,
    framing: Framing,
) -> Dict[str, Any]:
    """Return one row of the result. ``ratio`` is null where a message is one frame, which passes at once."""
    asked = link.downlink_mbit if direction == "downlink" else link.uplink_mbit
    expected = expected_ms(message_bytes, asked, framing)
    measured = statistics.median(times_ms) - rtt_ms
    return {
        "device": link.device,
        "direction": direction,
        "asked_mbit": asked,
        "message_bytes": message_bytes,
        "n": len(times_ms),
        "expected_ms": round(expected, 4),
        "measured_ms": round(measured, 4),
        "p95_ms": round(percentile(times_ms, 0.95) - rtt_ms, 4),
        "ratio": round(measured / expected, 4) if expected else None,
        "ok": judge(expected, measured, asked, tolerance, framing),
        "rtt_ms": round(rtt_ms, 4),
    }
