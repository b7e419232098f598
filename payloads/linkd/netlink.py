"""Netlink in as much as linkd needs it: attributes, many messages in one call, lists. Standard library only.

A device has no pyroute2, and pyroute2 makes one leaf's message in 0.45 ms and waits for each answer: a change of
16 leaves took 7 ms with it and takes 0.2 ms here (docs/links.md).
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

__all__ = [
    "ACK",
    "CREATE",
    "DUMP",
    "EXCLUSIVE",
    "REPLACE",
    "REQUEST",
    "Message",
    "NetlinkError",
    "NetlinkSocket",
    "attribute",
    "attributes",
    "nested",
]

REQUEST, ACK, REPLACE, EXCLUSIVE, CREATE, DUMP = 0x1, 0x4, 0x100, 0x200, 0x400, 0x300
_ERROR, _DONE = 2, 3
_CAPPED, _ACK_TLVS = 0x100, 0x200
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_NESTED = 0x8000
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_BATCH = 64
_TIMEOUT_S = 5.0
#: The kernel lists in pieces of at most 32 KiB.
_BUFFER_BYTES = 1 << 16

#: Kind, flags and body.
Message = Tuple[int, int, bytes]


class NetlinkError(OSError):
    """The kernel refused a message; ``strerror`` has its own words where it gave any."""


class _Answer(NamedTuple):
    kind: int
    sequence: int
    body: bytes
    flags: int


def attribute(kind: int, payload: bytes) -> bytes:
    """Return an attribute, padded to four bytes."""
    length = _ATTRIBUTE.size + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + b"\0" * (-length % 4)


def nested(kind: int, *inside: bytes) -> bytes:
    """Return an attribute of attributes."""
    return attribute(kind | _NESTED, b"".join(inside))


def attributes(data: bytes, offset: int = 0) -> Dict[int, bytes]:
    """Return attributes by kind, the flag bits taken off."""
    result: Dict[int, bytes] = {}
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        result[kind & 0x3FFF] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return result


class NetlinkSocket:
    """A socket of the kernel's routing and traffic control."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.settimeout(_TIMEOUT_S)
        self._socket.bind((0, 0))
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._sequence = 0
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def send(self, messages: Sequence[Message]) -> None:
        """Have the kernel carry out the messages in order, in as few calls as possible.

        Raises:
            NetlinkError: The kernel refused one; the ones behind it were carried out all the same.
        """
        for start in range(0, len(messages), _BATCH):
            first = self._sequence + 1
            batch = messages[start : start + _BATCH]
            # The kernel goes through them in order, and tells of an error unasked: only the last one is confirmed.
            parts = [self._pack((kind, flags & ~ACK, body)) for kind, flags, body in batch[:-1]]
            parts.append(self._pack(batch[-1]))
            self._socket.send(b"".join(parts))
            failure: Optional[NetlinkError] = None
            confirmed = False
            while not confirmed:
                for answer in self._receive():
                    if answer.kind == _ERROR and answer.sequence >= first:
                        failure = failure or _error(answer)
                        confirmed = confirmed or answer.sequence == self._sequence
            if failure:
                raise failure

    def ask(self, kind: int, body: bytes, flags: int = 0) -> Iterator[bytes]:
        """Yield the bodies of what the kernel answers: one, or with ``DUMP`` all of a list.

        Raises:
            NetlinkError: The kernel refused.
        """
        self._socket.send(self._pack((kind, REQUEST | flags, body)))
        asked = self._sequence
        while True:
            for answer in self._receive():
                if answer.sequence != asked or answer.kind == _DONE:
                    if answer.sequence == asked:
                        return
                elif answer.kind == _ERROR:
                    raise _error(answer) or NetlinkError(0, "the list was cut off")
                else:
                    yield answer.body
                    if not flags & DUMP:
                        return

    def _pack(self, message: Message) -> bytes:
        kind, flags, body = message
        self._sequence += 1
        return _HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body

    def _receive(self) -> List[_Answer]:
        received = self._socket.recv_into(self._buffer)
        answers: List[_Answer] = []
        offset = 0
        while offset + _HEADER.size <= received:
            length, kind, flags, sequence, _port = _HEADER.unpack_from(self._buffer, offset)
            body = bytes(self._buffer[offset + _HEADER.size : offset + length])
            answers.append(_Answer(kind, sequence, body, flags))
            offset += (length + 3) & ~3
        return answers


def _error(answer: _Answer) -> Optional[NetlinkError]:
    """Return the error that an acknowledgement carries, if it does."""
    (code,) = struct.unpack_from("=i", answer.body)
    if code == 0:
        return None
    words = os.strerror(-code)
    if answer.flags & _ACK_TLVS:
        # Behind the code stands the header of the message that was refused (and all of it where not capped).
        (length,) = struct.unpack_from("=I", answer.body, 4)
        start = 4 + (_HEADER.size if answer.flags & _CAPPED else (length + 3) & ~3)
        text = attributes(answer.body, start).get(1, b"").rstrip(b"\0").decode(errors="replace")
        words = text.rstrip(".") or words
    return NetlinkError(-code, words)
