"""Sockets of the data plane: their options, and one reused receive buffer."""

from __future__ import annotations

import socket
from typing import List, Optional, Protocol, Sequence

from payloads.wire.frames import HEADER_BYTES, Buffer, Header, unpack_header

__all__ = ["ConnectionClosedError", "Receiver", "tune", "unsent"]

#: A link that silently goes down is noticed after this time.
USER_TIMEOUT_MS = 5000
_KEEPALIVE_IDLE_S = 5
_FIRST_BUFFER_BYTES = 1 << 16
_STEP_BYTES = 1 << 22


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


class Source(Protocol):
    """What frames are received from: a connection of the data plane."""

    def recv_into(self, view: memoryview, /) -> int:
        """Receive what is there; return how many bytes, 0 once the other end has closed."""

    def wait_into(self, view: memoryview, /) -> int:
        """Receive what is there, or what comes within a short time; otherwise as above."""


class Receiver:
    """Receives frames from a connection into one buffer that is used again and again.

    Attributes:
        whole: Whether a whole frame is in the buffer that was given out; the next :meth:`receive` forgets it.
    """

    __slots__ = ("_buffer", "_filled", "_header", "_needed", "_view", "whole")

    def __init__(self) -> None:
        self._buffer = bytearray(_FIRST_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._header: Optional[Header] = None
        self._needed = HEADER_BYTES
        self._filled = 0
        self.whole = False

    @property
    def left_bytes(self) -> int:
        """What has come behind the frame that was given out."""
        return self._filled - self._needed if self.whole else self._filled

    def receive(self, connection: Source, waits: bool = False) -> Optional[Header]:
        """Receive what is there; return the header once the whole frame is in the buffer.

        Args:
            connection: Where it comes from.
            waits: Whether a short time may be waited for the first bytes, where none are there.

        Raises:
            ConnectionClosedError: The other end closed the connection.
            OSError: The connection failed.
            FrameError: What came is no frame.
        """
        if self.whole:
            self._forget()
        header, view, filled = self._header, self._view, self._filled
        while True:
            if filled >= self._needed:
                if header is None:
                    header = self._header = unpack_header(view)
                    self._needed = HEADER_BYTES + header.length
                    if self._needed > len(view):
                        view = self._grow()
                if filled >= self._needed:
                    self.whole = True
                    return header
            if filled == len(view):
                view = self._grow()
            try:
                if filled:
                    count = connection.recv_into(view[filled:])
                else:
                    count = connection.wait_into(view) if waits else connection.recv_into(view)
            except BlockingIOError:
                return None
            if not count:
                raise ConnectionClosedError("connection closed")
            filled += count
            self._filled = filled

    def payload(self) -> memoryview:
        """Return the payload of the whole frame; it is good until the next :meth:`receive`."""
        return self._view[HEADER_BYTES : self._needed]

    def _forget(self) -> None:
        """Forget the whole frame; what came behind it moves to the front."""
        rest = self._filled - self._needed
        if rest:
            self._buffer[:rest] = bytes(self._view[self._needed : self._filled])
        self._filled = rest
        self._header = None
        self._needed = HEADER_BYTES
        self.whole = False

    def _grow(self) -> memoryview:
        # A new buffer instead of a longer one: tensors may still point into the old one. And not for all that a
        # header announces: what does not come shall not cost memory either.
        buffer = bytearray(max(2 * len(self._buffer), min(self._needed, _STEP_BYTES)))
        buffer[: self._filled] = self._view[: self._filled]
        self._buffer = buffer
        self._view = memoryview(buffer)
        return self._view


def unsent(buffers: Sequence[Buffer], sent: int) -> List[memoryview]:
    """Return what is left of some buffers once their first ``sent`` bytes are gone."""
    rest: List[memoryview] = []
    for buffer in buffers:
        size = len(buffer)
        if sent >= size:
            sent -= size
        else:
            rest.append(memoryview(buffer)[sent:])
            sent = 0
    return rest
