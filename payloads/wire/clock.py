"""Clocks: the base station's own, and the offset of each device's against it."""

from __future__ import annotations

import time
from typing import NamedTuple, Optional, Sequence, Tuple

__all__ = ["BSClock", "Offset", "OffsetHistory", "OffsetTrack", "PingStamps", "estimate_offset"]


class BSClock:
    """The base station's clock: unix seconds that a change of the system's time cannot bend.

    The unix time is read once, when the object is made; from then on only the monotonic clock counts.
    """

    def __init__(self) -> None:
        # Of several readings the quickest is the least disturbed by the scheduler.
        readings = []
        for _ in range(5):
            before = time.monotonic_ns()
            unix_ns = time.time_ns()
            after = time.monotonic_ns()
            readings.append((after - before, unix_ns - (before + after) // 2))
        self._anchor_ns = min(readings)[1]

    def unix_s(self, mono_ns: int) -> float:
        """Return unix seconds for a reading of this machine's ``time.monotonic_ns()``."""
        return (self._anchor_ns + mono_ns) / 1e9

    def mono_s(self, unix_s: float) -> float:
        """Return this machine's monotonic seconds for a time on this clock."""
        return unix_s - self._anchor_ns / 1e9

    def now_s(self) -> float:
        """Return the time now, in unix seconds."""
        return self.unix_s(time.monotonic_ns())


class PingStamps(NamedTuple):
    """The four stamps of one ping, as in NTP.

    Attributes:
        sent_ns: The base station sent it, on its monotonic clock.
        received_ns: The device received it, on the device's monotonic clock.
        replied_ns: The device answered, on the device's monotonic clock.
        returned_ns: The answer was back, on the base station's monotonic clock.
    """

    sent_ns: int
    received_ns: int
    replied_ns: int
    returned_ns: int

    def rtt_ns(self) -> int:
        """Return the time on the way, without the time at the device."""
        return (self.returned_ns - self.sent_ns) - (self.replied_ns - self.received_ns)

    def offset_ns(self) -> float:
        """Return base-station clock minus device clock, exact if both ways took equally long."""
        return ((self.sent_ns - self.received_ns) + (self.returned_ns - self.replied_ns)) / 2


class Offset(NamedTuple):
    """An estimated clock offset.

    Attributes:
        at_ns: When, on the base station's monotonic clock.
        offset_ns: Base-station monotonic clock minus device monotonic clock.
        rtt_ns: The round trip of the ping that it was taken from; the error is at most half of it.
    """

    at_ns: int
    offset_ns: float
    rtt_ns: int


def estimate_offset(pings: Sequence[PingStamps]) -> Offset:
    """Return the offset of the ping with the shortest round trip: it met the fewest queues."""
    best = min(pings, key=PingStamps.rtt_ns)
    return Offset((best.sent_ns + best.returned_ns) // 2, best.offset_ns(), best.rtt_ns())


class OffsetTrack(NamedTuple):
    """The offset before and after a trial; in between it is taken to drift evenly.

    Attributes:
        before: The estimate before the trial.
        after: The estimate after it.
    """

    before: Offset
    after: Offset

    def to_bs_ns(self, device_ns: int) -> int:
        """Return the base station's monotonic nanoseconds for a device's stamp."""
        span = self.after.at_ns - self.before.at_ns
        guess = device_ns + self.before.offset_ns
        share = min(1.0, max(0.0, (guess - self.before.at_ns) / span)) if span > 0 else 0.0
        return device_ns + round(
            self.before.offset_ns + share * (self.after.offset_ns - self.before.offset_ns)
        )

    def stamps(self, device_ns: Sequence[int]) -> Tuple[int, ...]:
        """Return several stamps on the base station's clock."""
        return tuple(self.to_bs_ns(value) for value in device_ns)


class OffsetHistory(NamedTuple):
    """The offsets of a device that may have been lost and have come back, perhaps with another clock.

    Attributes:
        begun: The estimate at the beginning of each connection, the oldest first; at least one.
        after: The estimate at the end of the last connection; ``None`` where it was lost.
    """

    begun: Tuple[Offset, ...]
    after: Optional[Offset]

    def at(self, bs_ns: int) -> OffsetTrack:
        """Return the offset's track on the connection that was there at a time of the base station's clock."""
        number = max([i for i, offset in enumerate(self.begun) if offset.at_ns <= bs_ns], default=0)
        before = self.begun[number]
        last = number == len(self.begun) - 1
        return OffsetTrack(before, self.after if last and self.after is not None else before)
