"""The small frames beside dispatches and answers: pings, paces, errors, descriptions. Pure functions, no sockets."""

from __future__ import annotations

import math
from typing import Any, Dict, Optional, Tuple

from payloads.json_input import parse_json
from payloads.wire.header import (
    HEADER_BYTES,
    MAX_ERROR_BYTES,
    PACE,
    PING,
    PONG,
    FrameError,
    Kind,
    pack_header,
)

__all__ = [
    "MAX_PACE_MBIT",
    "PING_BYTES",
    "PONG_BYTES",
    "pack_error",
    "pack_pace",
    "pack_ping",
    "pack_pong",
    "unpack_description",
    "unpack_error",
    "unpack_pace",
    "unpack_ping",
    "unpack_pong",
]

MAX_PACE_MBIT = 1e6
PING_BYTES, PONG_BYTES = HEADER_BYTES + PING.size, HEADER_BYTES + PONG.size


def pack_ping(sent_ns: int, sequence: int) -> bytes:
    """Return a ping that carries the sender's stamp."""
    return pack_header(Kind.PING, PING.size, sequence) + PING.pack(sent_ns)


def unpack_ping(payload: memoryview) -> int:
    """Return the stamp of a ping."""
    if len(payload) != PING.size:
        raise FrameError("a ping of the wrong size")
    return int(PING.unpack(payload)[0])


def pack_pong(
    sent_ns: int, received_ns: int, replied_ns: int, retransmitted_bytes: Optional[int], sequence: int
) -> bytes:
    """Return the answer to a ping.

    Args:
        sent_ns: The ping's stamp.
        received_ns: When it was received.
        replied_ns: When this answer left.
        retransmitted_bytes: What this end's TCP has sent again on this connection, if its kernel tells.
        sequence: The ping's sequence number.
    """
    again = -1 if retransmitted_bytes is None else retransmitted_bytes
    return pack_header(Kind.PONG, PONG.size, sequence) + PONG.pack(sent_ns, received_ns, replied_ns, again)


def unpack_pong(payload: memoryview) -> Tuple[int, int, int, Optional[int]]:
    """Return the three stamps of a pong, and the bytes sent again."""
    if len(payload) != PONG.size:
        raise FrameError("a pong of the wrong size")
    sent_ns, received_ns, replied_ns, again = PONG.unpack(payload)
    return sent_ns, received_ns, replied_ns, again if again >= 0 else None


def pack_pace(mbit: Optional[float]) -> bytes:
    """Return a whole frame that asks for a frame rate in Mbit/s; ``None`` for no limit."""
    return pack_header(Kind.PACE, PACE.size, 0) + PACE.pack(0.0 if mbit is None else mbit)


def unpack_pace(payload: memoryview) -> Optional[float]:
    """Return the rate of a pace frame in Mbit/s; ``None`` for no limit.

    Raises:
        FrameError: It is none.
    """
    if len(payload) != PACE.size:
        raise FrameError("a pace of the wrong size")
    mbit = float(PACE.unpack(payload)[0])
    if not math.isfinite(mbit) or not 0 <= mbit <= MAX_PACE_MBIT:
        raise FrameError(f"a pace of {mbit} Mbit/s")
    return mbit or None


def pack_error(message: str, sequence: int) -> bytes:
    """Return a whole error frame with one line of text."""
    text = " ".join(message.split()).encode()[:MAX_ERROR_BYTES]
    return pack_header(Kind.ERROR, len(text), sequence) + text


def unpack_error(payload: memoryview) -> str:
    """Return the text of an error frame, safe to print."""
    text = bytes(payload).decode("utf-8", "replace")
    return "".join(character if character.isprintable() else "?" for character in text)


def unpack_description(payload: memoryview) -> Dict[str, Any]:
    """Return the JSON object of a description."""
    try:
        value = parse_json(bytes(payload))
    except ValueError as error:
        raise FrameError(f"the description is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise FrameError("the description is not a JSON object")
    return value
