"""Full load on links: streams of bytes to and from the devices' responders, in a process of their own.

A process and not threads of the prober: what the load does must not delay what is timed. It is light, since
the same processor shapes: it sends one buffer over and over, and forgets without copying what comes.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple

from payloads.linkd.errors import LinkdError
from payloads.linkd.hello import connect
from payloads.linkd.links import DIRECTIONS, Link
from payloads.linkd.model import ETHERNET
from payloads.linkd.respond import (
    LOAD_DOWN,
    LOAD_UP,
    MAX_LOAD_BYTES,
    MAX_LOAD_S,
    REQUEST,
    bound_under_way,
    drain,
    pour,
)

__all__ = ["MAX_SECONDS", "Load", "LoadProcess", "serve_load", "share_of_rates"]

MAX_SECONDS = 3600.0
#: Offsets of tcpi_bytes_acked and tcpi_bytes_received in struct tcp_info (Linux 4.1 and later).
_ARRIVED_OFFSET = {"downlink": 120, "uplink": 128}
_TCP_INFO = 11
_NO_RATE_MBIT = 1000.0
_UNDER_WAY_S, _UNDER_WAY_BYTES = 0.06, (3 << 17, 1 << 21)
_START_S = 20.0
_ANSWER_S = 10.0
_END_S = 5.0

#: Bytes by device and direction.
Counts = Dict[str, Dict[str, int]]


class _Flow:
    """One stream: a connection, and the next one when the responder has ended it."""

    def __init__(self, link: Link, direction: str, key: bytes) -> None:
        self.link, self.direction = link, direction
        self.error: Optional[str] = None
        self.up = False
        self._key = key
        self._lock = threading.Lock()
        self._connection: Optional[socket.socket] = None
        self._before_bytes = 0

    def arrived_bytes(self) -> int:
        """Return what came to the other end, as it acknowledged, or to us."""
        with self._lock:
            return self._before_bytes + self._of_connection()

    def run(self, until_s: float, stop: threading.Event) -> None:
        """Load until ``until_s`` (monotonic) or ``stop``; an error is kept in ``error``."""
        try:
            while not stop.is_set() and time.monotonic() < until_s:
                self._stream(until_s, stop)
        except LinkdError as error:
            self.error = str(error)
        except OSError as error:
            self.error = f"{self.link.device} was lost: {error}"

    def _stream(self, until_s: float, stop: threading.Event) -> None:
        with contextlib.closing(connect(self.link, self._key)) as connection:
            # What still waits when a load ends is thrown away: the next measurement finds an idle link.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            seconds = max(1, min(MAX_LOAD_S, int(until_s - time.monotonic()) + 1))
            ours_until_s = min(until_s, time.monotonic() + seconds)
            down = self.direction == "downlink"
            under_way = _under_way_bytes(self.link)
            if down:
                bound_under_way(connection, under_way)
                request = REQUEST.pack(LOAD_DOWN, seconds, 0)
            else:
                request = REQUEST.pack(LOAD_UP, seconds, under_way)
            connection.sendall(request)
            with self._lock:
                self._connection, self.up = connection, True
            if down:
                moved = pour(connection, MAX_LOAD_BYTES, ours_until_s, stop)
            else:
                moved = drain(connection, MAX_LOAD_BYTES, ours_until_s, stop)
            with self._lock:
                self._before_bytes += self._of_connection()
                self._connection = None
        if not moved:
            raise LinkdError(
                f"{self.link.device}'s responder ended the load before it began: is it an older one?"
            )

    def _of_connection(self) -> int:
        if self._connection is None:
            return 0
        offset = _ARRIVED_OFFSET[self.direction]
        info = self._connection.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, offset + 8)
        return int(struct.unpack_from("=Q", info, offset)[0]) if len(info) == offset + 8 else 0


def _under_way_bytes(link: Link) -> int:
    """Return how much of each of a link's streams may be under way at a time.

    Where the queue of a direction gives no back-pressure (an uplink through the ifb, both in the user-space line)
    all of it waits there, and behind it the acknowledgements of the other direction. So it has a bound, lest the
    queues be seconds long; it is the same for both directions, or the one with less would starve; and it is more
    than what a sender puts into its own queue where there is back-pressure: two packets of 64 KiB.
    """
    rates = [rate for rate in (link.downlink_mbit, link.uplink_mbit) if rate is not None]
    wanted = _UNDER_WAY_S * max(rates, default=_NO_RATE_MBIT) * 1e6 / 8
    return int(min(max(wanted, _UNDER_WAY_BYTES[0]), _UNDER_WAY_BYTES[1]))


class Load:
    """Streams to and from devices until they are stopped or their time is over.

    Args:
        links: The links, whose probe ports are loaded.
        key: The deploy's key.
        seconds: When they end by themselves.
        directions: ``downlink``, ``uplink`` or both.
    """

    def __init__(
        self, links: Sequence[Link], key: bytes, seconds: float, directions: Sequence[str] = DIRECTIONS
    ) -> None:
        if not links or not 0 < seconds <= MAX_SECONDS:
            raise LinkdError(f"a load has at least one link and lasts at most {MAX_SECONDS:g} s")
        self.until_s = time.monotonic() + seconds
        self._stop = threading.Event()
        self._flows = [_Flow(link, direction, key) for link in links for direction in directions]
        self._threads = [
            threading.Thread(target=flow.run, args=(self.until_s, self._stop), daemon=True)
            for flow in self._flows
        ]
        for thread in self._threads:
            thread.start()

    def up(self) -> bool:
        """Return whether all streams have begun.

        Raises:
            LinkdError: One of them failed.
        """
        for flow in self._flows:
            if flow.error:
                raise LinkdError(f"load: {flow.error}")
        return all(flow.up for flow in self._flows)

    def counts(self) -> Counts:
        """Return the bytes of the streams that have arrived so far."""
        result: Counts = {}
        for flow in self._flows:
            result.setdefault(flow.link.device, {})[flow.direction] = flow.arrived_bytes()
        return result

    def stop(self) -> Counts:
        """End all streams; return what arrived."""
        self._stop.set()
        for thread in self._threads:
            thread.join(_END_S)
        return self.counts()


def serve_load(load: Load, controlled: bool, commands: int, say: Callable[[str], None]) -> None:
    """Run a load until its time is over; with ``controlled`` also until the standard input ends.

    Says a line of JSON when all streams have begun, one for each line that comes in, and one at the end:
    ``{"t_s": monotonic, "bytes": {device: {direction: bytes}}}``.

    Args:
        load: The load.
        controlled: Whether a parent tells the end by closing the input.
        commands: The input's file descriptor.
        say: Prints a line.

    Raises:
        LinkdError: A stream failed.
    """
    try:
        deadline = time.monotonic() + _START_S
        while not load.up():
            if time.monotonic() > deadline:
                raise LinkdError("load: not all streams began in time")
            time.sleep(0.01)
        say(_line(load.counts()))
        while load.up() and time.monotonic() < load.until_s:
            if not controlled:
                time.sleep(0.1)
            elif select.select([commands], [], [], 0.1)[0]:
                data = os.read(commands, 4096)
                if not data:
                    break
                for _ in range(data.count(b"\n")):
                    say(_line(load.counts()))
    finally:
        counts = load.stop()
    say(_line(counts))


def _line(counts: Counts) -> str:
    return json.dumps({"t_s": time.monotonic(), "bytes": counts})


def share_of_rates(
    links: Sequence[Link], before: Counts, after: Counts, seconds: float, payload_share: float
) -> float:
    """Return how full the least loaded link and direction was: what arrived, as a share of what it carries.

    Args:
        links: The loaded links; a direction without a rate has no share.
        before: The streams' bytes at first.
        after: And later.
        seconds: The time between them.
        payload_share: What of a frame TCP delivers.
    """
    shares = [
        (after[link.device][direction] - before[link.device][direction]) * 8 / 1e6 / seconds
        / (rate * payload_share)
        for link in links
        for direction, rate in (("downlink", link.downlink_mbit), ("uplink", link.uplink_mbit))
        if rate is not None and seconds > 0
    ]  # fmt: skip
    return min(shares, default=0.0)


class LoadProcess:
    """A load in a child process, which ends with this one. Use it as a context manager.

    Args:
        links: The links that are loaded in both directions.
        key_file: The deploy's key.
        seconds: When it ends by itself.

    Raises:
        LinkdError: The load did not begin.
    """

    def __init__(self, links: Sequence[Link], key_file: Path, seconds: float) -> None:
        self._links = links
        asked = json.dumps([link.as_json() for link in links])
        command = [sys.executable, "-m", "payloads.linkd", "load", "--controlled", "--links", asked]
        self._process = subprocess.Popen(
            [*command, "--key-file", str(key_file), "--seconds", f"{seconds:g}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._pending = b""
        try:
            self._mark = self._receive(_START_S + _ANSWER_S)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> LoadProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the load and wait for its end."""
        process = self._process
        with contextlib.suppress(OSError):
            assert process.stdin is not None
            process.stdin.close()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()

    def mark(self) -> None:
        """Begin an interval for :meth:`share`."""
        self._mark = self.counts()

    def share(self) -> float:
        """Return how full the least loaded link has been since the mark.

        Raises:
            LinkdError: The load has ended: a stream of it failed, or its time was over.
        """
        (before_s, before), (now_s, now) = self._mark, self.counts()
        payload_share = ETHERNET.payload_bytes / ETHERNET.frame_bytes
        return share_of_rates(self._links, before, now, now_s - before_s, payload_share)

    def counts(self) -> Tuple[float, Counts]:
        """Return the load's clock (s) and the bytes of its streams that have arrived so far.

        Raises:
            LinkdError: The load has ended.
        """
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(b"counts\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended: the answer, which does not come, tells
        return self._receive(_ANSWER_S)

    def _receive(self, timeout_s: float) -> Tuple[float, Counts]:
        """Return the next line's time and bytes."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._pending:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([self._process.stdout], [], [], left_s)[0]:
                raise LinkdError("the load did not answer in time")
            data = os.read(self._process.stdout.fileno(), 1 << 16)
            if not data:
                raise LinkdError(self._last_words())
            self._pending += data
        line, self._pending = self._pending.split(b"\n", 1)
        answer: Mapping[str, Any] = json.loads(line)
        return float(answer["t_s"]), dict(answer["bytes"])

    def _last_words(self) -> str:
        assert self._process.stderr is not None
        words = self._process.stderr.read().decode(errors="replace").strip().splitlines()
        return words[-1].replace("linkd: ", "", 1) if words else "the load ended too early"
