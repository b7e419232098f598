"""The service: JSON lines over a unix socket for its owner alone; everything goes back when it ends."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional

from payloads.linkd.capabilities import may_shape
from payloads.linkd.clients import Clients
from payloads.linkd.errors import LinkdError
from payloads.linkd.guard import Guard
from payloads.linkd.kernel import Kernel
from payloads.linkd.model import DEFAULT_SLACK_US
from payloads.linkd.pacing import Pacer
from payloads.linkd.session import DEFAULT_SAMPLE_HZ, Session
from payloads.linkd.shaper import Shaper, restore
from payloads.linkd.state import StateFile
from payloads.services.ready import announce_ready

__all__ = ["Options", "serve"]

_BACKLOG = 16
_LOOK_S = 2.0


@dataclass(frozen=True)
class Options:
    """How the daemon is to shape.

    Attributes:
        interface: The interface; None: the one that routes to the first device.
        slack_us: The buckets' room for late timers, in microseconds.
        side: ``bs``, or ``device`` to shape this device's own uplink.
        leaf: ``auto``, ``tbf``, ``netem`` or ``line``.
        backend: ``kernel``, or ``pacing`` to keep rates for those who own the sockets.
        sample_hz: How often counters are sampled; 0 for never.
    """

    interface: Optional[str] = None
    slack_us: float = DEFAULT_SLACK_US
    side: str = "bs"
    leaf: str = "auto"
    backend: str = "kernel"
    sample_hz: float = DEFAULT_SAMPLE_HZ


def serve(socket_path: Path, state_path: Path, options: Options) -> None:
    """Serve until a signal ends it; what a daemon before it left behind is put back first.

    Raises:
        LinkdError: It cannot start.
    """
    state_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    state_file = StateFile(state_path)
    if options.backend == "pacing":
        with _stop_signals() as stop, state_file.lock():
            if state_file.read() is not None:
                raise LinkdError("an earlier daemon left links shaped: linkd restore")
            _serve(socket_path, stop, Session(Pacer(), options.sample_hz), None)
        return
    if not may_shape():
        raise LinkdError("linkd needs root (CAP_NET_ADMIN) to shape links, or --backend pacing")
    with _stop_signals() as stop:
        guard = Guard(state_path)
        with state_file.lock():
            kernel = Kernel()
            try:
                left = restore(kernel, state_file)
                if left:
                    print(f"put {left} back, which an earlier daemon had left shaped", flush=True)
                shaper = Shaper(
                    kernel, state_file, options.interface, options.slack_us, options.side, options.leaf
                )
                try:
                    _serve(socket_path, stop, Session(shaper, options.sample_hz), guard)
                finally:
                    shaper.clear()
            finally:
                kernel.close()
        guard.dismiss()


def _serve(socket_path: Path, stop: socket.socket, session: Session, guard: Optional[Guard]) -> None:
    # Not epoll: its time-outs are whole milliseconds, and a block of a channel begins on time.
    with _listen(socket_path) as server, selectors.SelectSelector() as selector:
        selector.register(stop, selectors.EVENT_READ)
        clients = Clients(server, selector, session)
        announce_ready()
        try:
            _loop(selector, stop, session, clients, guard)
        finally:
            clients.close()


def _loop(
    selector: selectors.BaseSelector,
    stop: socket.socket,
    session: Session,
    clients: Clients,
    guard: Optional[Guard],
) -> None:
    look_s = time.monotonic()
    while True:
        now = time.monotonic()
        if now >= look_s:
            look_s = now + _LOOK_S
            clients.drop_stalled()
            if guard is not None:
                guard.ensure()
        due_s = session.deadline_s()
        until_s = look_s if due_s is None else min(look_s, due_s)
        ready = selector.select(max(0.0, until_s - time.monotonic()))
        # First: a block of a channel waits for nobody.
        session.tick()
        for key, events in ready:
            if key.fileobj is stop:
                return
            clients.serve(key, events)


@contextlib.contextmanager
def _listen(path: Path) -> Iterator[socket.socket]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The lock is held, so a socket that is there is that of a daemon that was killed.
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        before = os.umask(0o177)
        try:
            server.bind(str(path))
        except OSError as error:
            raise LinkdError(f"cannot listen on {path}: {error}") from error
        finally:
            os.umask(before)
        server.listen(_BACKLOG)
        try:
            yield server
        finally:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


@contextlib.contextmanager
def _stop_signals() -> Iterator[socket.socket]:
    """Give a socket that is readable after SIGTERM, SIGINT or SIGHUP: a change under way is finished."""
    read_end, write_end = socket.socketpair()
    write_end.setblocking(False)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    signal.set_wakeup_fd(write_end.fileno())
    try:
        yield read_end
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        read_end.close()
        write_end.close()
