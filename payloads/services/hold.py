"""The holder of the lease: while somebody feeds its standard input, services may run."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import sys
import time
from typing import Any

from payloads.services.layout import ServiceError, services_folder
from payloads.services.lease import read_lease, write_lease

__all__ = ["hold"]

_LOOK_S = 0.5


def hold(backend: Any, ttl_s: float, wait_s: float) -> int:
    """Hold the lease until standard input ends or falls silent, then stop all services.

    Args:
        backend: What runs the services.
        ttl_s: The longest silence on standard input, in seconds.
        wait_s: How long to wait for another holder to let go.

    Returns:
        0 when the lease ended as the controller wished, 1 when the services were lost under it.
    """
    signals = _Signals()
    lock = _take(wait_s)
    write_lease(ttl_s)
    backend.lease_begins()
    _say({"held": True, "ttl_s": ttl_s})
    reason = _keep(backend, signals, ttl_s)
    lost = reason.startswith("lost: ")
    stopped = backend.stop_all(f"the lease ended: {reason}")
    write_lease(0.0)
    _say({"held": False, "reason": reason, "stopped": stopped})
    os.close(lock)
    return 1 if lost else 0


class _Signals:
    """The signals that end the lease, turned into something to wait for."""

    def __init__(self) -> None:
        self.wakeup, written = os.pipe()
        os.set_blocking(written, False)
        os.set_blocking(self.wakeup, False)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda *_: None)

    def name(self) -> str:
        """Return the name of the signal that came, or an empty string."""
        try:
            came = os.read(self.wakeup, 1)
        except BlockingIOError:
            return ""
        return signal.Signals(came[0]).name


def _take(wait_s: float) -> int:
    """Return the lock that makes this process the only holder."""
    lock = os.open(services_folder() / "hold.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                lease = read_lease()
                whose = (
                    f"process {lease.holder}, from {lease.peer or 'this host'}"
                    if lease
                    else "another process"
                )
                raise ServiceError(f"this host is held by another controller ({whose})") from None
            time.sleep(0.1)
        else:
            return lock


def _keep(backend: Any, signals: _Signals, ttl_s: float) -> str:
    """Renew the lease as long as bytes come; return why it ended."""
    heard_s = renewed_s = time.monotonic()
    while True:
        readable, _, _ = select.select([0, signals.wakeup], [], [], min(_LOOK_S, ttl_s / 2))
        now_s = time.monotonic()
        name = signals.name()
        if name:
            return name
        if 0 in readable:
            if not os.read(0, 4096):
                return "end of input"
            heard_s = now_s
            if now_s - renewed_s > min(1.0, ttl_s / 4):
                write_lease(ttl_s)
                renewed_s = now_s
        elif now_s - heard_s > ttl_s:
            return f"no sign of the controller for {ttl_s:g} s"
        lost = backend.lost()
        if lost:
            return f"lost: {lost}"


def _say(message: Any) -> None:
    try:
        print(json.dumps(message), flush=True)
    except BrokenPipeError:
        # The connection is gone, which is one of the ways a lease ends; what follows does not need it. The
        # descriptor is pointed elsewhere so that the interpreter does not stumble over it on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
