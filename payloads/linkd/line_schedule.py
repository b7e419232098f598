"""When each frame leaves the user-space line: rate, delay, jitter, loss and a queue for every link. Pure, no clock.

A link is a transmitter and a stretch of air. Frames wait for the transmitter in order; each takes its own size at the
rate, the first one too. A rate that changes holds at once, for what waits and for the rest of the frame that is being
sent, so that the bytes delivered are the integral of the rate. A frame that has been sent is then lost, or is out
after the delay and the jitter; it keeps its time whatever changes later.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from typing import Deque, Dict, Iterable, List, NamedTuple, Tuple

__all__ = ["LineCounters", "LinkTiming", "Schedule"]


class LinkTiming(NamedTuple):
    """What a link does to frames in one direction.

    Attributes:
        bytes_per_s: Its rate.
        limit_bytes: How much may wait, the frame that is being sent included; one frame always may.
        delay_s: How long a frame is on its way.
        jitter_s: The delay of each frame is even between ``delay_s`` - and + this, and never below 0. Frames of a
            link stay in order, so one that follows closely waits for the one before it.
        loss: The probability that a frame is lost, each on its own. It has taken its time to be sent.
    """

    bytes_per_s: float
    limit_bytes: int
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0


class LineCounters(NamedTuple):
    """What became of a link's frames in one direction.

    Attributes:
        bytes: Bytes of frames that came out.
        packets: Frames that came out.
        drops: Frames that found the queue full, or that the interface did not take.
        lost: Frames that were lost because a loss was asked for.
        backlog_bytes: Bytes that wait to be sent.
    """

    bytes: int
    packets: int
    drops: int
    lost: int
    backlog_bytes: int


class _Queue:
    """One link's frames. ``finish`` is when the first of those that wait will have been sent."""

    __slots__ = ("bytes", "drops", "finish", "last_out", "lost", "packets", "random", "timing", "waiting",
                 "waiting_bytes")  # fmt: skip

    def __init__(self, timing: LinkTiming, seed: str) -> None:
        self.timing = timing
        self.random = random.Random(seed).random
        self.waiting: Deque[bytes] = deque()
        self.waiting_bytes = 0
        self.finish = 0.0
        self.last_out = 0.0
        self.bytes = self.packets = self.drops = self.lost = 0


class Schedule:
    """Holds the frames of many links in one direction.

    Times are seconds of one clock that the caller reads, and never go back.

    Args:
        timings: What each link does, by its key.
        seed: Names the sequence of losses and jitters; each link has its own.
    """

    def __init__(self, timings: Dict[bytes, LinkTiming], seed: str = "0") -> None:
        self._queues = {key: _Queue(timing, f"{seed}:{key.hex()}") for key, timing in timings.items()}
        self._flying: List[Tuple[float, int, bytes, bytes]] = []
        self._number = 0

    def offer(self, now: float, key: bytes, frame: bytes) -> bool:
        """Take a frame in; return whether it has a link and room there."""
        queue = self._queues.get(key)
        if queue is None:
            return False
        size = len(frame)
        if queue.waiting:
            if queue.finish <= now:
                self._advance(key, queue, now)
            if queue.waiting and queue.waiting_bytes + size > queue.timing.limit_bytes:
                queue.drops += 1
                return False
        if not queue.waiting:
            queue.finish = now + size / queue.timing.bytes_per_s
        queue.waiting.append(frame)
        queue.waiting_bytes += size
        return True

    def due(self, now: float) -> List[Tuple[bytes, bytes]]:
        """Return the frames whose time has come, each with its link's key, in order, and forget them."""
        for key, queue in self._queues.items():
            if queue.waiting and queue.finish <= now:
                self._advance(key, queue, now)
        result: List[Tuple[bytes, bytes]] = []
        flying = self._flying
        while flying and flying[0][0] <= now:
            _out, _number, key, frame = heapq.heappop(flying)
            queue = self._queues[key]
            queue.bytes += len(frame)
            queue.packets += 1
            result.append((key, frame))
        return result

    def next_s(self) -> float:
        """Return when to ask :meth:`due` again: nothing comes out before; infinity where nothing is held."""
        soonest = self._flying[0][0] if self._flying else math.inf
        for queue in self._queues.values():
            if queue.waiting:
                timing = queue.timing
                out = queue.finish + max(0.0, timing.delay_s - timing.jitter_s)
                if out < soonest:
                    soonest = out
        return soonest

    def change(self, now: float, timings: Dict[bytes, LinkTiming]) -> None:
        """Give some links other timings from now on; none of their frames is lost or overtaken."""
        for key, timing in timings.items():
            queue = self._queues[key]
            self._advance(key, queue, now)
            if queue.waiting:
                left_bytes = (queue.finish - now) * queue.timing.bytes_per_s
                queue.finish = now + left_bytes / timing.bytes_per_s
            queue.timing = timing

    def refused(self, key: bytes, frame: bytes) -> None:
        """Count a frame that was due but that the interface did not take."""
        queue = self._queues[key]
        queue.bytes -= len(frame)
        queue.packets -= 1
        queue.drops += 1

    def counters(self, now: float) -> Dict[bytes, LineCounters]:
        """Return the counters of each link."""
        self._advance_all(self._queues.items(), now)
        return {
            key: LineCounters(item.bytes, item.packets, item.drops, item.lost, item.waiting_bytes)
            for key, item in self._queues.items()
        }

    def _advance_all(self, items: Iterable[Tuple[bytes, _Queue]], now: float) -> None:
        for key, queue in items:
            self._advance(key, queue, now)

    def _advance(self, key: bytes, queue: _Queue, now: float) -> None:
        """Send what has been sent by now: into the air, or nowhere."""
        waiting, timing = queue.waiting, queue.timing
        while waiting and queue.finish <= now:
            frame = waiting.popleft()
            queue.waiting_bytes -= len(frame)
            if timing.loss and queue.random() < timing.loss:
                queue.lost += 1
            else:
                out = queue.finish + timing.delay_s
                if timing.jitter_s:
                    out += timing.jitter_s * (2.0 * queue.random() - 1.0)
                # In order, and not before it was sent.
                out = queue.last_out = max(out, queue.finish, queue.last_out)
                self._number += 1
                heapq.heappush(self._flying, (out, self._number, key, frame))
            if waiting:
                queue.finish += len(waiting[0]) / timing.bytes_per_s
