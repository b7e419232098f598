"""What every frame begins with: a header of 12 bytes, and the limits of what may follow. Pure functions, no sockets."""

from __future__ import annotations

import struct
from typing import NamedTuple, Union

__all__ = [
    "HEADER",
    "HEADER_BYTES",
    "MAGIC",
    "MAX_ERROR_BYTES",
    "MAX_FRAME_BYTES",
    "PACE",
    "PING",
    "PONG",
    "PROTOCOL_VERSION",
    "Buffer",
    "FrameError",
    "Header",
    "Kind",
    "pack_header",
    "unpack_header",
]

PROTOCOL_VERSION = 4
MAGIC = 0x4254  # "TB"
MAX_FRAME_BYTES = 1 << 28
MAX_ERROR_BYTES = 1024
MAX_DESCRIPTION_BYTES = 1 << 22

HEADER = struct.Struct("<HBBII")
#: A ping is as long as its answer: where a link is alike both ways, both take equally long.
PING = struct.Struct("<Q24x")
PONG = struct.Struct("<3Qq")
PACE = struct.Struct("<d")
HEADER_BYTES = HEADER.size

Buffer = Union[bytes, bytearray, memoryview]


class FrameError(ValueError):
    """A frame that does not follow the format; the connection it came from is closed."""


class Kind:
    """The kinds of frames."""

    DESCRIBE = 1
    DESCRIPTION = 2
    PING = 3
    PONG = 4
    DISPATCH = 5
    RESULT = 6
    ERROR = 7
    PACE = 8


_MAX_LENGTH = {
    Kind.DESCRIBE: 0,
    Kind.DESCRIPTION: MAX_DESCRIPTION_BYTES,
    Kind.PING: PING.size,
    Kind.PONG: PONG.size,
    Kind.DISPATCH: MAX_FRAME_BYTES,
    Kind.RESULT: MAX_FRAME_BYTES,
    Kind.ERROR: MAX_ERROR_BYTES,
    Kind.PACE: PACE.size,
}


class Header(NamedTuple):
    """The first twelve bytes of every frame.

    Attributes:
        kind: One of :class:`Kind`.
        length: Bytes that follow the header.
        sequence: Number of the request; its answer carries the same.
    """

    kind: int
    length: int
    sequence: int


def pack_header(kind: int, length: int, sequence: int) -> bytes:
    """Return the header of a frame with ``length`` bytes of payload."""
    if length > _MAX_LENGTH[kind]:
        raise FrameError(f"a frame of {length} bytes is larger than the limit of {_MAX_LENGTH[kind]}")
    return HEADER.pack(MAGIC, PROTOCOL_VERSION, kind, length, sequence & 0xFFFFFFFF)


def unpack_header(data: Buffer) -> Header:
    """Read a header from the first bytes of ``data``.

    Raises:
        FrameError: It is no header, of another version, or announces too much.
    """
    magic, version, kind, length, sequence = HEADER.unpack_from(data)
    if magic != MAGIC or version != PROTOCOL_VERSION:
        raise FrameError("not a frame of this protocol")
    limit = _MAX_LENGTH.get(kind)
    if limit is None:
        raise FrameError(f"unknown kind of frame: {kind}")
    if length > limit:
        raise FrameError(f"a frame of kind {kind} announces {length} bytes, more than its limit of {limit}")
    return Header(kind, length, sequence)
