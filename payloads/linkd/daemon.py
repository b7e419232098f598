"""The service: JSON lines over a unix socket for its owner alone; everything goes back when it ends."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import time
from pathlib import Path
from typing import Any, Dict, Iterator, Optional

from payloads.linkd.errors import LinkdError
from payloads.linkd.guard import Guard
from payloads.linkd.kernel import Kernel
from payloads.linkd.plan import parse_links
from payloads.linkd.shaper import Shaper, restore
from payloads.linkd.state import StateFile
from payloads.services.ready import announce_ready

__all__ = ["handle", "serve"]

_MAX_LINE_BYTES = 1 << 20
_MAX_CLIENTS = 16
_ANSWER_TIMEOUT_S = 2.0
_LOOK_AFTER_GUARD_S = 2.0
_CAP_NET_ADMIN = 12


def serve(socket_path: Path, state_path: Path, interface: Optional[str], slack_us: float) -> None:
    """Serve until a signal ends it; what a daemon before it left behind is put back first.

    Raises:
        LinkdError: It cannot start.
    """
    _check_may_shape()
    state_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    state_file = StateFile(state_path)
    with _stop_signals() as stop:
        guard = Guard(state_path)
        with state_file.lock():
            kernel = Kernel()
            try:
                left = restore(kernel, state_file)
                if left:
                    print(f"put {left} back, which an earlier daemon had left shaped", flush=True)
                shaper = Shaper(kernel, state_file, interface, slack_us)
                try:
                    with _listen(socket_path) as server:
                        announce_ready()
                        _loop(server, stop, shaper, guard)
                finally:
                    shaper.clear()
            finally:
                kernel.close()
        guard.dismiss()


def handle(shaper: Shaper, line: bytes) -> Dict[str, Any]:
    """Carry out one request and return the answer.

    A request is an object with ``op``: set (with ``links``), rerate (with ``rates``), clear, show or ping.
    """
    started = time.perf_counter()
    try:
        request = json.loads(line)
        op = request.get("op") if isinstance(request, dict) else None
        if op == "set":
            answer = shaper.set(parse_links(request.get("links")))
        elif op == "rerate":
            answer = shaper.rerate(request.get("rates"))
        elif op == "clear":
            answer = shaper.clear()
        elif op == "show":
            answer = shaper.show()
        elif op == "ping":
            answer = {"pid": os.getpid()}
        else:
            raise LinkdError("a request has an op: set, rerate, clear, show or ping")
    except ValueError as error:
        return {"ok": False, "error": f"a request is one line of JSON: {error}", "exit_status": 2}
    except LinkdError as error:
        return {"ok": False, "error": str(error), "exit_status": error.exit_status}
    except OSError as error:
        # A netlink call that failed or timed out: the client is told, instead of being hung up on.
        words = error.strerror or str(error)
        return {"ok": False, "error": f"the kernel did not answer {op!r}: {words}", "exit_status": 1}
    return {"ok": True, **answer, "took_ms": round((time.perf_counter() - started) * 1e3, 3)}


def _loop(server: socket.socket, stop: socket.socket, shaper: Shaper, guard: Guard) -> None:
    buffers: Dict[socket.socket, bytearray] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        selector.register(stop, selectors.EVENT_READ)
        try:
            while True:
                guard.ensure()
                for key, _events in selector.select(_LOOK_AFTER_GUARD_S):
                    if key.fileobj is stop:
                        return
                    if key.fileobj is server:
                        client, _address = server.accept()
                        if len(buffers) >= _MAX_CLIENTS:
                            client.close()
                            continue
                        client.settimeout(_ANSWER_TIMEOUT_S)
                        buffers[client] = bytearray()
                        selector.register(client, selectors.EVENT_READ)
                        continue
                    client = key.fileobj  # type: ignore[assignment]
                    if not _serve_client(client, buffers[client], shaper):
                        selector.unregister(client)
                        del buffers[client]
                        client.close()
        finally:
            for client in buffers:
                client.close()


def _serve_client(client: socket.socket, buffer: bytearray, shaper: Shaper) -> bool:
    """Read what is there and answer every whole line; return whether the connection goes on."""
    try:
        data = client.recv(1 << 16)
        buffer += data
        while True:
            line, newline, rest = buffer.partition(b"\n")
            if not newline:
                return bool(data) and len(buffer) <= _MAX_LINE_BYTES
            del buffer[:]
            buffer += rest
            client.sendall(json.dumps(handle(shaper, bytes(line))).encode() + b"\n")
    except OSError:
        return False


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
        server.listen(_MAX_CLIENTS)
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


def _check_may_shape() -> None:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:") and not int(line.split()[1], 16) >> _CAP_NET_ADMIN & 1:
            raise LinkdError("linkd needs root (CAP_NET_ADMIN) to shape links")
