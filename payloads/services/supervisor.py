"""The supervisor: one small daemon per host, where there is no systemd. Single-threaded on purpose.

It owns the services' processes, obeys requests on a socket, and ends everything when the lease ends. It ends
itself when nothing is left to do. Clients: ``payloads.services.supervised``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import signal
import socket
import time
from pathlib import Path
from typing import Any, Mapping

from payloads.json_input import parse_json
from payloads.services import logs, processes
from payloads.services.layout import ServiceError, code_folder, services_folder, write_whole
from payloads.services.lease import LeaseWatch
from payloads.services.service import Service
from payloads.services.spec import Spec

__all__ = ["SOCKET", "Supervisor", "serve", "socket_address"]

SOCKET = "supervisor.sock"
_REQUEST_S = 2.0
_FIRST_REQUEST_S = 10.0
_TICK_S = 0.5
_BUSY_TICK_S = 0.05


def socket_address(folder_fd: int) -> str:
    """Return an address of the socket that stays short when the folder's path is long (107 bytes at most)."""
    return f"/proc/self/fd/{folder_fd}/{SOCKET}"


def serve(ready_fd: int) -> int:
    """Be the supervisor of this host, until nothing is left to do.

    Args:
        ready_fd: Gets one byte once requests are answered.
    """
    folder = services_folder()
    lock = os.open(folder / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 1  # another one is there; whoever started this one will find it
    processes.become_subreaper()
    supervisor = Supervisor(folder)
    os.write(ready_fd, b"1")
    os.close(ready_fd)
    supervisor.run()
    return 0


class Supervisor:
    """The services of a host and the loop that looks after them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._services: dict[str, Service] = {}
        self._watch = LeaseWatch()
        self._watch.allow(_FIRST_REQUEST_S)
        self._closing = ""
        self._looked_s = 0.0
        self._selector = selectors.DefaultSelector()
        self._signals = self._listen_for_signals()
        self._listener = self._listen()
        record = {
            "pid": os.getpid(),
            "ticks": processes.start_ticks(os.getpid()),
            "boot": processes.boot_id(),
            "code": code_folder(),
        }
        write_whole(folder / "supervisor.json", json.dumps(record))

    def run(self) -> None:
        """Answer requests and look after the services until there is nothing left to do."""
        while not self._is_done():
            busy = any(service.state in ("ending", "waiting") for service in self._services.values())
            for key, _ in self._selector.select(_BUSY_TICK_S if busy else _TICK_S):
                if key.fileobj is self._listener:
                    self._answer()
                else:
                    self._on_signals(self._signals.recv(64))
            self._reap()
            self._look()
            for service in self._services.values():
                service.tick()
        (self._folder / "supervisor.json").unlink()
        (self._folder / SOCKET).unlink()

    def _is_done(self) -> bool:
        if any(service.is_active for service in self._services.values()):
            return False
        return bool(self._closing) or self._watch.ended()

    def _listen_for_signals(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        self._wakeup = theirs
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._selector.register(ours, selectors.EVENT_READ)
        return ours

    def _listen(self) -> socket.socket:
        path = self._folder / SOCKET
        if path.exists():
            path.unlink()  # left by one that was killed: the lock says that it is gone
        listener = socket.socket(socket.AF_UNIX)
        folder_fd = os.open(self._folder, os.O_RDONLY)
        mask = os.umask(0o177)
        try:
            listener.bind(socket_address(folder_fd))
        finally:
            os.umask(mask)
            os.close(folder_fd)
        listener.listen(64)
        self._selector.register(listener, selectors.EVENT_READ)
        return listener

    def _on_signals(self, numbers: bytes) -> None:
        if any(number in (signal.SIGTERM, signal.SIGINT) for number in numbers):
            self._close("the supervisor was told to end")

    def _close(self, reason: str) -> None:
        self._closing = reason
        for service in self._services.values():
            service.stop(reason)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for service in self._services.values():
                if service.pid == pid:
                    service.reaped(status)

    def _look(self) -> None:
        """See to the lease and to the sizes of the logs, now and then."""
        if time.monotonic() - self._looked_s < _TICK_S:
            return
        self._looked_s = time.monotonic()
        for service in self._services.values():
            # A full disk must not end the supervisor, and all services with it.
            with contextlib.suppress(OSError):
                logs.rotate(service.folder)
        if not self._closing and self._watch.ended():
            for service in self._services.values():
                if service.is_active:
                    service.stop("the lease ended")

    def _answer(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            # Our own user's clients only, who send their one line at once; one that does not is dropped.
            connection.settimeout(_REQUEST_S)
            try:
                with connection.makefile("rwb") as stream:
                    stream.write(json.dumps(self._reply(stream.readline())).encode() + b"\n")
            except OSError as error:
                print(f"a request got no answer: {error}", flush=True)

    def _reply(self, line: bytes) -> dict[str, Any]:
        try:
            return self._do(parse_json(line))
        except (ServiceError, ValueError, KeyError, TypeError) as error:
            return {"ok": False, "error": f"bad request: {type(error).__name__}: {error}"}

    def _do(self, request: Mapping[str, Any]) -> dict[str, Any]:
        op = request["op"]
        if op == "hello":
            return {"ok": True, "code": code_folder(), "pid": os.getpid()}
        if op == "shutdown":
            names = self._active()
            self._close(request["reason"])
            return {"ok": True, "names": names}
        if self._closing:
            return {"ok": False, "error": f"the services are being stopped: {self._closing}"}
        if op == "start":
            return self._start(request)
        if op == "stop":
            names = [name for name in self._active() if name in request["names"]]
            for name in names:
                self._services[name].stop(request["reason"])
            return {"ok": True, "names": names}
        return {"ok": False, "error": f"unknown request {op!r}"}

    def _active(self) -> list[str]:
        return sorted(name for name, service in self._services.items() if service.is_active)

    def _start(self, request: Mapping[str, Any]) -> dict[str, Any]:
        spec = Spec(**dict(request["spec"], argv=tuple(request["spec"]["argv"])))
        self._watch.allow(request["initial_s"])
        service = self._services.get(spec.name)
        if service is None:
            service = self._services[spec.name] = Service(spec, request["environment"])
        if service.state == "running" and service.spec.same_service(spec) and not request["again"]:
            return {"ok": True, "did": "already running", "incarnation": service.incarnation}
        did = "restarted" if service.is_active else "started"
        before = service.incarnation
        service.become(spec, request["environment"])
        return {"ok": True, "did": did, "incarnation": max(service.incarnation, before + 1)}
