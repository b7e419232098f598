"""Sockets of the data plane: their options, one reused receive buffer, sending without a copy."""

from __future__ import annotations

import socket
from typing import List, Optional, Sequence

from payloads.wire.frames import HEADER_BYTES, Buffer, Header, unpack_header

__all__ = ["ConnectionClosedError", "Receiver", "send_some", "tune"]

#: A link that silently goes down is noticed after this time.
USER_TIMEOUT_MS = 5000
_KEEPALIVE_IDLE_S = 5
_FIRST_BUFFER_BYTES = 1 << 16


class ConnectionClosedError(ConnectionError):
    """The other end closed the connection."""


def tune(connection: socket.socket) -> None:
    """Set the options of a data-plane connection.

    Without TCP_USER_TIMEOUT a cut link is noticed only after many minutes. It covers data that was sent
    and not acknowledged; keep-alives cover the time in which this end only waits.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


class Receiver:
    """Receives frames from a non-blocking socket into one buffer that is used again and again.

    Attributes:
        filled: Bytes in the buffer that no frame has been taken for.
    """

    __slots__ = ("_buffer", "_header", "_needed", "_view", "filled")

    def __init__(self) -> None:
        self._buffer = bytearray(_FIRST_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._header: Optional[Header] = None
        self._needed = HEADER_BYTES
        self.filled = 0

    def receive(self, connection: socket.socket) -> Optional[Header]:
        """Receive what is there; return the header once the whole frame is in the buffer.

        Raises:
            ConnectionClosedError: The other end closed the connection.
            OSError: The connection failed.
            FrameError: What came is no frame.
        """
        while True:
            if self.filled >= self._needed:
                if self._header is not None:
                    return self._header
                self._begin(unpack_header(self._view))
                continue
            try:
                count = connection.recv_into(self._view[self.filled :])
            except BlockingIOError:
                return None
            if count == 0:
                raise ConnectionClosedError("connection closed")
            self.filled += count

    def payload(self) -> memoryview:
        """Return the payload of the complete frame; it is good until :meth:`release`."""
        assert self._header is not None
        return self._view[HEADER_BYTES : self._needed]

    def release(self) -> None:
        """Forget the complete frame; what came behind it moves to the front."""
        assert self._header is not None
        rest = self.filled - self._needed
        if rest:
            self._buffer[:rest] = bytes(self._view[self._needed : self.filled])
        self.filled = rest
        self._header = None
        self._needed = HEADER_BYTES

    def _begin(self, header: Header) -> None:
        self._header = header
        self._needed = HEADER_BYTES + header.length
        if self._needed > len(self._buffer):
            self._grow(self._needed)

    def _grow(self, needed: int) -> None:
        # A new buffer instead of a longer one: tensors may still point into the old one.
        buffer = bytearray(max(needed, 2 * len(self._buffer)))
        buffer[: self.filled] = self._view[: self.filled]
        self._buffer = buffer
        self._view = memoryview(buffer)


def send_some(connection: socket.socket, buffers: Sequence[Buffer]) -> List[memoryview]:
    """Give the buffers to the kernel in one call; return what it did not take.

    Raises:
        OSError: The connection failed.
    """
    try:
        sent = connection.sendmsg(buffers)
    except BlockingIOError:
        sent = 0
    if sent == sum(map(len, buffers)):
        return []
    rest: List[memoryview] = []
    for buffer in buffers:
        size = len(buffer)
        if sent >= size:
            sent -= size
        else:
            rest.append(memoryview(buffer)[sent:])
            sent = 0
    return rest
