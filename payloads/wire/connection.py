"""Connections of the data plane: the socket as it is, or TLS 1.3 over it. Both count what is on the wire.

``Tls`` keeps OpenSSL away from the socket: records are made and read in memory (``ssl.MemoryBIO``), and ``Plain``
carries them. So paced pieces closed with ``MSG_EOR``, one ``sendmsg`` for everything and epoll stay what they are
without TLS. A message becomes as few records as can be, whatever pieces it comes in; :func:`record_bytes` says
how many bytes they are.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, TypeVar, Union

from payloads.wire.frames import Buffer
from payloads.wire.pacing import cut, retransmitted_bytes, send_paced, set_pace
from payloads.wire.sockets import unsent

if TYPE_CHECKING:
    from numpy import int64
    from numpy.typing import NDArray

__all__ = [
    "RECORD_BYTES",
    "RECORD_OVERHEAD_BYTES",
    "Connection",
    "Plain",
    "Tls",
    "message_bytes",
    "record_bytes",
]

#: Plaintext of a full record, and what every record of TLS 1.3 adds: its header, the inner type, the tag.
RECORD_BYTES = 1 << 14
RECORD_OVERHEAD_BYTES = 5 + 1 + 16
#: Plaintext that is encrypted before the kernel is given some: whole records, bounded memory.
_STAGE_BYTES = 16 * RECORD_BYTES
_RECEIVE_BYTES = 1 << 18
#: All that a handshake may take; ours, with certificates of one level, take less than 2 KiB.
MAX_HANDSHAKE_BYTES = 1 << 15
_WAITING = memoryview(b"")
Bytes = TypeVar("Bytes", int, "NDArray[int64]")


def record_bytes(message_bytes: Bytes) -> Bytes:
    """Return the bytes of the TLS records of one message given to one :meth:`Tls.send`, or of an array of such."""
    return message_bytes + RECORD_OVERHEAD_BYTES * -(-message_bytes // RECORD_BYTES)


def message_bytes(record_bytes: int) -> int:
    """Return the bytes of the message that so many bytes of records hold; the inverse of :func:`record_bytes`."""
    return record_bytes - RECORD_OVERHEAD_BYTES * -(-record_bytes // (RECORD_BYTES + RECORD_OVERHEAD_BYTES))


class Plain:
    """A non-blocking socket as it is.

    Attributes:
        socket: The socket.
        fileno: Returns the socket's descriptor, for epoll.
        wire_out: Bytes ever sent.
        wire_back: Bytes ever received.
    """

    __slots__ = ("_piece", "_recv_into", "_sendmsg", "fileno", "socket", "wire_back", "wire_out")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.wire_out = 0
        self.wire_back = 0
        self.fileno = connection.fileno
        self._recv_into, self._sendmsg = connection.recv_into, connection.sendmsg
        self._piece = 0  # bytes handed over at once where the connection is paced

    def recv_into(self, view: memoryview) -> int:
        """Receive what is there; return how many bytes, 0 once the other end has closed.

        Raises:
            BlockingIOError: Nothing is there.
            OSError: The connection failed.
        """
        count = self._recv_into(view, 0, socket.MSG_DONTWAIT)
        self.wire_back += count
        return count

    def allow_waiting(self, seconds: float) -> None:
        """Let :meth:`wait_into` wait so long. Nothing else waits: every call says that it does not."""
        self.socket.setblocking(True)
        whole, part = divmod(round(seconds * 1e6), 1_000_000)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", whole, part))

    def wait_into(self, view: memoryview) -> int:
        """Receive what is there, or comes within the time of :meth:`allow_waiting`; otherwise as :meth:`recv_into`."""
        count = self._recv_into(view)
        self.wire_back += count
        return count

    def send(self, buffers: Sequence[Buffer]) -> List[memoryview]:
        """Give buffers to the kernel, without joining them; return what it did not take, to be sent next.

        Raises:
            OSError: The connection failed.
        """
        if self._piece:
            rest = send_paced(self.socket, buffers, self._piece)
            self.wire_out += sum(map(len, buffers)) - sum(map(len, rest))
            return rest
        try:
            sent = self._sendmsg(buffers, (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        self.wire_out += sent
        return [] if sent == sum(map(len, buffers)) else unsent(buffers, sent)

    def pending(self) -> int:
        """Return received bytes of which epoll does not know: none."""
        return 0

    def set_pace(self, mbit: Optional[float]) -> None:
        """Send no faster than this frame rate from now on; ``None`` for no limit.

        Raises:
            OSError: The kernel refused, or the connection is gone.
        """
        self._piece = set_pace(self.socket, mbit)

    def retransmitted_bytes(self) -> Optional[int]:
        """Return the payload that TCP has sent again; ``None`` where the kernel does not tell.

        Raises:
            OSError: The connection is gone.
        """
        return retransmitted_bytes(self.socket)

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


class Tls:
    """TLS over a non-blocking socket. :meth:`handshake` comes first, until it is done.

    Attributes:
        socket: The socket.
        fileno: Returns the socket's descriptor, for epoll.
    """

    __slots__ = ("_buffer", "_inbox", "_outbox", "_raw", "_tls", "_unsent", "fileno")

    def __init__(
        self,
        connection: socket.socket,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
    ) -> None:
        self._raw = Plain(connection)
        self.fileno = connection.fileno
        self._inbox, self._outbox = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._inbox, self._outbox, server_side)
        self._unsent: List[memoryview] = []  # records that the kernel has not taken
        self._buffer = memoryview(bytearray(1 << 12))

    @property
    def socket(self) -> socket.socket:
        """The socket."""
        return self._raw.socket

    @property
    def wire_out(self) -> int:
        """Bytes ever sent, the handshake and the records' own included."""
        return self._raw.wire_out

    @property
    def wire_back(self) -> int:
        """Bytes ever received, the handshake and the records' own included."""
        return self._raw.wire_back

    def handshake(self) -> bool:
        """Go on with the handshake as far as what has come allows; return whether this end is done.

        Raises:
            ssl.SSLError: The other end is refused, or has refused this one.
            ConnectionError: It left, or sends more than any handshake needs.
            OSError: The connection failed.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
            except ssl.SSLError:
                with contextlib.suppress(OSError):  # one that is gone already need not be told why
                    self._flush()
                raise
            else:
                self._flush()
                self._buffer = memoryview(bytearray(_RECEIVE_BYTES))
                return True
            if self._raw.wire_back > MAX_HANDSHAKE_BYTES:
                raise ConnectionError("it sends more than a handshake")
            try:
                if not self._fill():
                    raise ConnectionError("it left during the handshake")
            except BlockingIOError:
                return False

    def certificate(self) -> Dict[str, Any]:
        """Return the other end's certificate, which the handshake has checked, as :mod:`ssl` decodes it."""
        return self._tls.getpeercert() or {}

    def recv_into(self, view: memoryview) -> int:
        """Receive and decrypt what is there; return how many bytes, 0 once the other end has closed.

        Raises:
            BlockingIOError: No whole record is there.
            OSError: The connection failed, or what came is not from the other end.
        """
        filled, size = 0, len(view)
        read = self._tls.read
        while True:
            try:
                while filled < size:
                    count = read(size - filled, view[filled:])
                    if not count:
                        return filled
                    filled += int(count)
                return filled
            except ssl.SSLWantReadError:
                if filled:
                    return filled
            if not self._fill():
                return 0

    def allow_waiting(self, seconds: float) -> None:
        """Let :meth:`wait_into` wait so long. Nothing else waits: every call says that it does not."""
        self._raw.allow_waiting(seconds)

    def wait_into(self, view: memoryview) -> int:
        """Receive what is there, or comes within the time of :meth:`allow_waiting`; otherwise as :meth:`recv_into`."""
        if self.pending():  # it has come already, so that there may be nothing to wait for
            return self.recv_into(view)
        count = self._raw.wait_into(self._buffer)
        if not count:
            return 0
        self._inbox.write(self._buffer[:count])
        return self.recv_into(view)

    def send(self, buffers: Sequence[Buffer]) -> List[memoryview]:
        """Encrypt buffers and give them to the kernel; return what is left, to be sent next.

        What is left is not encrypted yet. It ends in an empty view where only records that were made are waiting.

        Raises:
            OSError: The connection failed.
        """
        rest = [memoryview(buffer) for buffer in buffers if len(buffer)]
        if self._unsent and not self._push():
            return rest or [_WAITING]
        while rest:
            part, rest = cut(rest, _STAGE_BYTES)
            self._tls.write(part[0] if len(part) == 1 else b"".join(part))
            self._unsent = [memoryview(self._outbox.read())]
            if not self._push():
                return rest or [_WAITING]
        return []

    def pending(self) -> int:
        """Return received bytes of which epoll does not know; they may be less than a record."""
        return self._tls.pending() + self._inbox.pending

    def set_pace(self, mbit: Optional[float]) -> None:
        """Send no faster than this frame rate from now on; ``None`` for no limit.

        Raises:
            OSError: The kernel refused, or the connection is gone.
        """
        self._raw.set_pace(mbit)

    def retransmitted_bytes(self) -> Optional[int]:
        """Return the payload that TCP has sent again; ``None`` where the kernel does not tell.

        Raises:
            OSError: The connection is gone.
        """
        return self._raw.retransmitted_bytes()

    def close(self) -> None:
        """Close the socket. Frames say how long they are, so no closing record is needed to notice a cut one."""
        self._raw.close()

    def _fill(self) -> int:
        """Receive records into memory; return how many bytes, 0 once the other end has closed."""
        count = self._raw.recv_into(self._buffer)
        if count:
            self._inbox.write(self._buffer[:count])
        return count

    def _flush(self) -> None:
        """Send what the handshake has to say. It is small: a kernel that does not take it has lost the connection."""
        data = self._outbox.read()
        if data and self._raw.send([data]):
            raise ConnectionError("it does not read the handshake")

    def _push(self) -> bool:
        self._unsent = self._raw.send(self._unsent)
        return not self._unsent


Connection = Union[Plain, Tls]
