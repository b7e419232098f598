"""One direction of the user-space line, as a process of its own: reads frames from a TAP, holds them, lets them go.

It gets an open TAP and a control socket and ends when the latter is closed, whatever closes it: the TAP goes with it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any, Callable, Dict, List, Sequence

from payloads.linkd.line_schedule import LinkTiming, Schedule
from payloads.linkd.line_taps import MARK
from payloads.linkd.plan import ROOT_HANDLE

__all__ = ["MESSAGE_BYTES", "main"]

#: Room for the longest message on the control socket.
MESSAGE_BYTES = 1 << 20
_NICE = -5
#: How many frames are read before those that are due are let go.
_BATCH = 32
#: Where the IP addresses stand in a frame.
_SOURCE, _DESTINATION = slice(26, 30), slice(30, 34)
_VLAN_BYTES = 4
_ETHERNET_BYTES = 14
_SEND_BUFFER_BYTES = 4 << 20
_SO_SNDBUFFORCE = 32
_LONGEST_SLEEP_S = 3600.0
_LONG_SLEEP_S = 1e-3
#: A wake-up later than this is a disturbance and no habit.
_MOST_LATE_S = 250e-6
_REMEMBERED = 16


def main(argv: Sequence[str]) -> int:
    """Run until the control socket is closed.

    Args:
        argv: The descriptors of the TAP and of the control socket.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # its owner takes the traffic away from it first
    tap = int(argv[0])
    with socket.socket(fileno=int(argv[1])) as control:
        data = control.recv(MESSAGE_BYTES)
        if not data:
            return 0  # linkd was killed in the moment in which it started this
        setup: Dict[str, Any] = json.loads(data)
        keys = [bytes(link["key"]) for link in setup["links"]]
        timings = {key: LinkTiming(*link["timing"]) for key, link in zip(keys, setup["links"])}
        schedule = Schedule(timings, setup["seed"])
        if setup["direction"] == "downlink":
            out, where = _sender(setup, keys), _DESTINATION
        else:
            out, where = _receiver(tap), _SOURCE
        _be_prompt()
        control.send(b"{}")
        try:
            _loop(tap, control, schedule, keys, out, where, setup["mtu"])
        except ConnectionError:
            return 0
    return 0


def _be_prompt() -> None:
    """Have this process woken when it asked for, as far as that is allowed."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    with contextlib.suppress(OSError), open("/proc/self/timerslack_ns", "w") as file:
        file.write("1")
    # Nothing here makes cycles, and a collection would hold frames up.
    gc.collect()
    gc.freeze()
    gc.disable()


def _sender(setup: Dict[str, Any], keys: List[bytes]) -> Callable[[bytes, bytes], object]:
    """Return what sends a frame out of the interface, through its link's class."""
    sockets = {}
    for key, link in zip(keys, setup["links"]):
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        sender.setblocking(False)
        sender.bind((setup["interface"], 0))
        sender.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER_BYTES)
        # htb takes what names one of its classes there, and asks no filter.
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, ROOT_HANDLE | link["minor"])
        sockets[key] = sender

    def send(key: bytes, frame: bytes) -> object:
        return sockets[key].send(frame)

    return send


def _receiver(tap: int) -> Callable[[bytes, bytes], object]:
    """Return what gives a frame to this host, marked as one that has been through the line."""

    def receive(_key: bytes, frame: bytes) -> object:
        return os.write(tap, frame[:6] + MARK + frame[12:])

    return receive


class Lateness:
    """How late this process is usually woken: a timer that is set earlier by that much fires in time.

    After a long sleep it takes longer, since the processor has gone to sleep too: long and short ones are kept apart.
    """

    def __init__(self) -> None:
        self._late_s = [0.0, 0.0]

    def of(self, sleep_s: float) -> float:
        """Return how late it is usually after a sleep of this length, in seconds."""
        return self._late_s[sleep_s > _LONG_SLEEP_S]

    def learn(self, sleep_s: float, late_s: float) -> None:
        """Take in how late it was once."""
        which = sleep_s > _LONG_SLEEP_S
        usual = self._late_s[which]
        self._late_s[which] = usual + (min(max(late_s, 0.0), _MOST_LATE_S) - usual) / _REMEMBERED


def _loop(
    tap: int,
    control: socket.socket,
    schedule: Schedule,
    keys: List[bytes],
    out: Callable[[bytes, bytes], object],
    where: slice,
    mtu: int,
) -> None:
    read, now_s, wait, offer = os.read, time.monotonic, select.select, schedule.offer
    longest, descriptors, asked = (
        mtu + _ETHERNET_BYTES + _VLAN_BYTES,
        [tap, control.fileno()],
        control.fileno(),
    )
    lateness = Lateness()
    now = now_s()
    while True:
        left_s = min(schedule.next_s() - now, _LONGEST_SLEEP_S)
        # Woken a little before, it looks again and again until the time has come.
        sleep_s = max(0.0, left_s - lateness.of(left_s))
        # select rounds to microseconds, where epoll and poll round to milliseconds.
        readable, _, _ = wait(descriptors, (), (), sleep_s)
        before, now = now, now_s()
        if sleep_s and not readable:
            lateness.learn(sleep_s, now - before - sleep_s)
        if asked in readable and not _answer(control, schedule, keys, now):
            return
        if tap in readable:
            # The frame came before this process was awake, but not before it fell asleep.
            came = max(before, now - lateness.of(now - before)) if sleep_s else now
            try:
                for _ in range(_BATCH):
                    frame = read(tap, longest)
                    offer(came, frame[where], frame)
            except BlockingIOError:
                pass
            now = now_s()
        for key, frame in schedule.due(now):
            try:
                out(key, frame)
            except OSError:
                schedule.refused(key, frame)
            now = now_s()


def _answer(control: socket.socket, schedule: Schedule, keys: List[bytes], now: float) -> bool:
    """Carry out one message; return False where there is nobody any more."""
    data = control.recv(MESSAGE_BYTES)
    if not data:
        return False
    message = json.loads(data)
    change = message.get("change")
    if change:
        schedule.change(now, {keys[number]: LinkTiming(*timing) for number, timing in change})
    if "counters" in message:
        counters = schedule.counters(now)
        answer = {"counters": message["counters"], "rows": [counters[key] for key in keys]}
        control.send(json.dumps(answer).encode())
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
