"""A port of this machine that leads to a port of a host, through the SSH connection that is there anyway."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self

from testbed.errors import HostError, InputError

__all__ = ["Forward", "Tunnel"]

CHUNK_BYTES = 1 << 16
CALLERS = 64


class Tunnel(Protocol):
    """One connection through SSH: as much of a socket as is needed here."""

    def recv(self, count: int, /) -> bytes:
        """Return what comes, at most so many bytes; nothing at the end."""
        ...

    def sendall(self, data: bytes, /) -> None:
        """Send bytes."""
        ...

    def shutdown_write(self) -> None:
        """Say that nothing more is sent."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


class Forward:
    """Listens on a port of this machine's loopback and leads every caller through a tunnel, until it is closed.

    Attributes:
        port: The port.

    Args:
        port: Where to listen; 0 takes a free one.
        tunnel: Opens a tunnel to where callers want to go.

    Raises:
        InputError: The port is taken.
    """

    def __init__(self, port: int, tunnel: Callable[[], Tunnel]) -> None:
        self._tunnel = tunnel
        try:
            self._listener = socket.create_server(("127.0.0.1", port), backlog=CALLERS)
        except OSError as error:
            raise InputError(
                f"cannot listen on 127.0.0.1:{port}: {os.strerror(error.errno or 0)}",
                hint="name another port: --port N",
            ) from error
        self.port: int = self._listener.getsockname()[1]
        self._free = threading.BoundedSemaphore(CALLERS)
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name="forward", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no callers any more."""
        self._closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._listener.close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            if not self._free.acquire(blocking=False):
                caller.close()
                continue
            threading.Thread(target=self._lead, args=(caller,), daemon=True).start()

    def _lead(self, caller: socket.socket) -> None:
        """Carry bytes both ways until both ends have said all they will."""
        try:
            with caller:
                try:
                    tunnel = self._tunnel()
                except (HostError, OSError):
                    return  # the caller sees the connection end
                back = threading.Thread(target=_carry_back, args=(tunnel, caller), daemon=True)
                back.start()
                try:
                    with suppress(OSError, EOFError):
                        while data := caller.recv(CHUNK_BYTES):
                            tunnel.sendall(data)
                        tunnel.shutdown_write()
                    back.join()
                finally:
                    tunnel.close()
        finally:
            self._free.release()


def _carry_back(tunnel: Tunnel, caller: socket.socket) -> None:
    with suppress(OSError, EOFError):
        while data := tunnel.recv(CHUNK_BYTES):
            caller.sendall(data)
    with suppress(OSError):
        caller.shutdown(socket.SHUT_RDWR)
