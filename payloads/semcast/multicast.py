"""A frame's symbols sent once to all receivers: datagrams of one piece each, and what gathers them again.

    datagram    letters, version, session, frame, number of the piece, how many there are; the piece; a tag

The tag is an HMAC-SHA256 under a key that the receivers got over their connections at the trial's beginning, so that
nobody else's datagrams are taken for the transmitter's. What is broadcast is not encrypted: whoever is on the network
hears it, as with radio. A datagram that is lost is asked for again over the receiver's own connection.

No queueing discipline of linkd holds multicast back, since it belongs to no device: the sender itself keeps it to a
rate, every datagram for the time of its own frame.
"""

from __future__ import annotations

import hashlib
import hmac
import socket
import struct
import threading
import time
from typing import Dict, List, NamedTuple, Optional, Tuple

from payloads.semcast.messages import PIECE_BYTES, pieces_of
from payloads.wire.frames import Buffer

__all__ = [
    "FRAMING_BYTES",
    "Collector",
    "Group",
    "MulticastError",
    "Piece",
    "Sender",
    "pack_datagram",
    "parse_group",
    "seconds_on_air",
    "unpack_datagram",
]

MAGIC, VERSION = b"SM", 1
TAG_BYTES = 16
KEY_BYTES = 32
_HEAD = struct.Struct("<2sBxIIHH")
#: Ethernet, IPv4 and UDP around a datagram.
FRAMING_BYTES = 14 + 20 + 8
_MOST_BYTES = _HEAD.size + PIECE_BYTES + TAG_BYTES
#: Asked of the kernel for datagrams that wait; it gives what its limit allows.
_BUFFER_BYTES = 4 << 20
_LOOK_S = 0.2


class MulticastError(Exception):
    """Multicast cannot be used here."""


class Group(NamedTuple):
    """Where datagrams go.

    Attributes:
        address: The group's address.
        port: The port.
    """

    address: str
    port: int


class Piece(NamedTuple):
    """A piece of a frame, as a datagram brings it.

    Attributes:
        session: The number of the trial's session.
        frame: The frame's number.
        place: The piece's number, from 0.
        of: How many there are.
        data: The piece.
    """

    session: int
    frame: int
    place: int
    of: int
    data: memoryview


def parse_group(text: str) -> Group:
    """Return the group of ``ADDRESS:PORT``.

    Raises:
        ValueError: The text has another form, or the address is none of IPv4 multicast.
    """
    address, _, port = text.rpartition(":")
    try:
        first = socket.inet_aton(address)[0] if address.count(".") == 3 else 0
    except OSError:
        first = 0
    if not 224 <= first <= 239 or not port.isdigit() or not 0 < int(port) <= 65535:
        raise ValueError(
            f"a multicast address and a port such as 239.83.0.1:7072 were expected, got {text!r}"
        )
    return Group(address, int(port))


def pack_datagram(key: bytes, piece: Piece) -> bytes:
    """Return the datagram of a piece."""
    text = _HEAD.pack(MAGIC, VERSION, *piece[:-1]) + bytes(piece.data)
    return text + _tag(key, text)


def unpack_datagram(key: bytes, datagram: Buffer) -> Optional[Piece]:
    """Return what a datagram holds; ``None`` where it is none, or was not made with the key."""
    if not _HEAD.size + TAG_BYTES < len(datagram) <= _MOST_BYTES:
        return None
    view = memoryview(datagram)
    text, tag = view[:-TAG_BYTES], view[-TAG_BYTES:]
    magic, version, session, frame, place, of = _HEAD.unpack_from(text)
    if magic != MAGIC or version != VERSION or not hmac.compare_digest(_tag(key, text), tag):
        return None
    return Piece(session, frame, place, of, text[_HEAD.size :]) if place < of else None


def seconds_on_air(data_bytes: int, rate_mbit: Optional[float]) -> float:
    """Return how long a frame's datagrams take at a frame rate in Mbit/s; ``None`` is no limit."""
    if rate_mbit is None:
        return 0.0
    each = FRAMING_BYTES + _HEAD.size + TAG_BYTES
    return (data_bytes + each * pieces_of(data_bytes)) * 8 / (rate_mbit * 1e6)


def _tag(key: bytes, text: Buffer) -> bytes:
    return hmac.new(key, text, hashlib.sha256).digest()[:TAG_BYTES]


class Sender:
    """Sends to a group.

    Attributes:
        group: The group.
        bytes: Bytes ever sent, without the headers of UDP and below.
        datagrams: Datagrams ever sent.

    Args:
        group: The group.
        interface: The address of the interface to send by.

    Raises:
        MulticastError: It cannot be sent by there.
    """

    def __init__(self, group: Group, interface: str) -> None:
        self.group = group
        self.bytes = 0
        self.datagrams = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(interface))
            # One hop: the receivers are on this network.
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
        except OSError as error:
            self._socket.close()
            raise MulticastError(f"no multicast by the interface {interface}: {error.strerror}") from error

    def send(
        self, key: bytes, session: int, frame: int, data: Buffer, rate_mbit: Optional[float] = None
    ) -> int:
        """Send a frame's symbols, no faster than a frame rate; return the datagrams' bytes.

        Raises:
            MulticastError: The network does not take them.
        """
        view, count = memoryview(data), pieces_of(len(data))
        begun, bits, sent = time.monotonic(), 0, 0
        for index in range(count):
            piece = view[PIECE_BYTES * index : PIECE_BYTES * (index + 1)]
            datagram = pack_datagram(key, Piece(session, frame, index, count, piece))
            if rate_mbit is not None:
                # On a schedule from the first one: a late wake-up does not make the next one late.
                bits += 8 * (len(datagram) + FRAMING_BYTES)
                wait_s = begun + bits / (rate_mbit * 1e6) - time.monotonic()
                if wait_s > 0:
                    time.sleep(wait_s)
            try:
                self._socket.sendto(datagram, tuple(self.group))
            except OSError as error:
                place = f"{self.group.address}:{self.group.port}"
                raise MulticastError(f"multicast to {place} failed: {error.strerror}") from error
            sent += len(datagram)
        self.bytes += sent
        self.datagrams += count
        return sent

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class _Gathered:
    """The pieces of one frame that are there."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.lacking = set(range(pieces_of(size)))
        self.last_ns = 0

    def put(self, index: int, data: memoryview) -> bool:
        """Take a piece; return whether it is one of this frame's."""
        start = PIECE_BYTES * index
        if len(data) != min(PIECE_BYTES, len(self.data) - start):
            return False
        if index in self.lacking:
            self.data[start : start + len(data)] = data
            self.lacking.discard(index)
            self.last_ns = time.monotonic_ns()
        return True


class Collector:
    """Hears a group in a thread of its own, and gathers the pieces of the frame that is on its way.

    Frames come one after the other, so that of early pieces only those of the next frame are kept.

    Args:
        group: The group.
        interface: The address of the interface that it is heard by.
        key: The key of the datagrams' tags.
        session: The number of the trial's session.

    Raises:
        MulticastError: The group cannot be joined.
    """

    def __init__(self, group: Group, interface: str, key: bytes, session: int) -> None:
        self._key, self._session = key, session
        self._moving = threading.Condition()
        self._early: Tuple[int, Dict[int, Tuple[bytes, int]]] = (-1, {})
        self._frame, self._gathered = -1, _Gathered(0)
        self._closed = False
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            self._socket.bind(
                tuple(group)
            )  # to the group's address: other datagrams for the port are not ours
            wanted = socket.inet_aton(group.address) + socket.inet_aton(interface)
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, wanted)
            self._socket.settimeout(_LOOK_S)
        except OSError as error:
            self._socket.close()
            place = f"{group.address}:{group.port}"
            raise MulticastError(f"cannot hear {place} by {interface}: {error.strerror}") from error
        self._thread = threading.Thread(target=self._listen, name="multicast", daemon=True)
        self._thread.start()

    def gather(self, frame: int, size: int, until_s: float) -> List[int]:
        """Wait for a frame's pieces; return the numbers of those that are still lacking.

        Args:
            frame: The frame's number.
            size: The bytes of its symbols.
            until_s: How long at most, on the monotonic clock.
        """
        with self._moving:
            self._frame, self._gathered = frame, _Gathered(size)
            early_frame, early = self._early
            if early_frame == frame:
                for index, (data, at_ns) in early.items():
                    if self._gathered.put(index, memoryview(data)):
                        self._gathered.last_ns = at_ns
            self._early = (-1, {})
            while self._gathered.lacking:
                left_s = until_s - time.monotonic()
                if left_s <= 0 or not self._moving.wait(left_s):
                    break
            return sorted(self._gathered.lacking)

    def add(self, index: int, data: memoryview) -> bool:
        """Take a piece of the frame that came by another way; return whether it fits."""
        with self._moving:
            return self._gathered.put(index, data)

    def taken(self) -> Tuple[bytearray, List[int], int]:
        """Return the frame's bytes, the pieces that are still lacking, and when the last one came (monotonic ns)."""
        with self._moving:
            gathered = self._gathered
            return gathered.data, sorted(gathered.lacking), gathered.last_ns

    def close(self) -> None:
        """Leave the group and end the thread."""
        self._closed = True
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        buffer = bytearray(_MOST_BYTES + 1)
        while not self._closed:
            try:
                size = self._socket.recv_into(buffer)
            except socket.timeout:
                continue
            except OSError:
                return
            piece = unpack_datagram(self._key, memoryview(buffer)[:size])
            if piece is not None and piece.session == self._session:
                self._take(piece)

    def _take(self, piece: Piece) -> None:
        with self._moving:
            if piece.frame == self._frame:
                if self._gathered.put(piece.place, piece.data) and not self._gathered.lacking:
                    self._moving.notify_all()
                return
            if piece.frame != self._early[0]:
                self._early = (piece.frame, {})
            self._early[1][piece.place] = (bytes(piece.data), time.monotonic_ns())
