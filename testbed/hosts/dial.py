"""A socket to a host's SSH server, straight or through a gateway command, by a deadline."""

from __future__ import annotations

import errno
import os
import select
import shlex
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any

from testbed.errors import ConnectError
from testbed.hosts.deadline import Deadline

__all__ = ["GatewaySocket", "dial", "gateway_command", "gateway_error"]

SLICE_S = 0.1  # how soon a wait notices that it has been called off
USER_TIMEOUT_MS = 30_000  # bytes that stay unacknowledged for so long end a connection
_NAME_HINT = "is its `address` right, and does a name server know it?"


def gateway_command(template: str, address: str, port: int) -> str:
    """Return a gateway command for one host, its fields filled in as words of a shell."""
    return template.replace("{address}", shlex.quote(address)).replace("{port}", str(port))


def dial(
    name: str,
    address: str,
    port: int,
    *,
    gateway: str | None,
    deadline: Deadline,
    called_off: threading.Event,
) -> socket.socket:
    """Return a socket that leads to a host's SSH server.

    Args:
        name: The host's name, for errors.
        address: Its address or host name.
        port: The port of its SSH server.
        gateway: A shell command whose standard input and output lead there instead.
        deadline: When to give up.
        called_off: Set by another thread to end the wait.

    Raises:
        ConnectError: Nothing answers.
    """
    if gateway:
        return GatewaySocket.start(gateway)
    where = f"{address}:{port}"
    last: OSError | None = None
    for family, target in _addresses(name, address, port, deadline):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            _connect(sock, target, deadline, called_off)
        except OSError as error:
            sock.close()
            last = error
            continue
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        return sock
    if isinstance(last, TimeoutError) or last is None:
        raise ConnectError(
            name,
            f"no answer from {where} within {deadline}",
            hint="is the host on and connected?",
        )
    refused = last.errno == errno.ECONNREFUSED
    hint = (
        "is its SSH server running?"
        if refused
        else "is the host on and connected, and is its `address` right?"
    )
    raise ConnectError(name, f"cannot connect to {where}: {last.strerror or last}", hint=hint)


def _addresses(name: str, address: str, port: int, deadline: Deadline) -> Sequence[tuple[int, Any]]:
    """Resolve an address; in a thread, since a dead name server takes its time."""
    with suppress(OSError, UnicodeEncodeError):  # it is a number: nobody has to be asked
        # As bytes, since text would be read as an international name, for which Python loads its tables.
        found = socket.getaddrinfo(
            address.encode("ascii"), port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
        return [(family, target) for family, _, _, _, target in found]
    answer: list[Any] = []

    def resolve() -> None:
        try:
            answer.append(socket.getaddrinfo(address, port, type=socket.SOCK_STREAM))
        except OSError as error:
            answer.append(error)

    thread = threading.Thread(target=resolve, daemon=True, name=f"resolve-{name}")
    thread.start()
    thread.join(deadline.remaining_s)
    if not answer:
        raise ConnectError(name, f"the name {address} was not resolved within {deadline}", hint=_NAME_HINT)
    if isinstance(answer[0], OSError):
        problem = f"the name {address} cannot be resolved: {answer[0].strerror}"
        raise ConnectError(name, problem, hint=_NAME_HINT)
    return [(family, target) for family, _, _, _, target in answer[0]]


def _connect(sock: socket.socket, target: Any, deadline: Deadline, called_off: threading.Event) -> None:
    sock.setblocking(False)
    status = sock.connect_ex(target)
    while status in {errno.EINPROGRESS, errno.EALREADY}:
        if called_off.is_set():
            raise OSError(errno.ECANCELED, "called off")
        if deadline.passed:
            raise TimeoutError(errno.ETIMEDOUT, "timed out")
        writable = select.select([], [sock], [], deadline.timeout_s(SLICE_S))[1]
        if writable:
            status = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if status:
        raise OSError(status, os.strerror(status))
    sock.setblocking(True)


class GatewaySocket(socket.socket):
    """One end of a socket pair whose other end is the standard input and output of a command.

    A real socket, unlike a pair of pipes: its end is noticed at once. The command runs in a session of its
    own, so that Ctrl-C in the terminal does not cut the connection over which things are put in order again.

    Attributes:
        process: The command.
        heard: Whether a byte has come.
    """

    process: subprocess.Popen[bytes]
    heard: bool
    _errors: IO[bytes]
    _said: str | None
    _lock: threading.Lock

    @classmethod
    def start(cls, command: str) -> GatewaySocket:
        """Start a shell command and return the socket to it."""
        ours, theirs = socket.socketpair()
        errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the socket)
        with theirs:
            process = subprocess.Popen(
                command,
                shell=True,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=errors,
                start_new_session=True,
            )
        sock = cls(fileno=ours.detach())
        sock.process, sock._errors, sock._said, sock._lock = process, errors, None, threading.Lock()
        sock.heard = False
        return sock

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Receive bytes as any socket does, and note that some came."""
        received = super().recv(bufsize, flags)
        self.heard = self.heard or received != b""
        return received

    def failure(self) -> str:
        """Return why the command failed, or an empty string where it still runs or ended well."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(2 * SLICE_S)
        status = self.process.returncode
        if not status or status < 0:  # below 0: ended by us
            return ""
        return f"the gateway command ended with status {status}{self._last_error()}"

    def _last_error(self) -> str:
        with self._lock:
            if self._said is None:
                self._errors.seek(0)
                lines = self._errors.read().decode(errors="replace").strip().splitlines()
                self._said = f": {lines[-1]}" if lines else ""
            return self._said

    def close(self) -> None:
        """Close the socket and end the command."""
        with suppress(OSError):  # what came and was not read any more, since writing failed before
            self.heard = self.heard or super().recv(1, socket.MSG_DONTWAIT) != b""
        super().close()
        for number in (None, signal.SIGTERM, signal.SIGKILL):  # a good command ends when its input does
            if number is not None:
                with suppress(ProcessLookupError):
                    os.killpg(self.process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(2 * SLICE_S if number is None else 2.0)
                break
        self._last_error()
        self._errors.close()


def gateway_error(sock: object, name: str, where: str, deadline: Deadline) -> ConnectError | None:
    """Return what is wrong at the other end of a gateway command; None where there is none, or it is not to blame.

    Args:
        sock: The socket, closed by now.
        name: The host's name.
        where: The address and port of its SSH server.
        deadline: By when it was to answer.
    """
    if not isinstance(sock, GatewaySocket):
        return None
    failure, hint = sock.failure(), "is the host on and connected, and is its `gateway` right?"
    if sock.heard:
        return ConnectError(name, failure) if failure else None
    if deadline.remaining_s < 2 * SLICE_S:  # whatever the command has to say of it, it was ended by us
        within = f"within {deadline} through the gateway command"
        return ConnectError(name, f"no answer from {where} {within}", hint=hint)
    return ConnectError(name, f"no answer from {where}: {failure}", hint=hint) if failure else None
