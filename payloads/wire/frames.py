"""The frames of the data plane: a fixed binary header, then raw bytes. Pure functions, no sockets.

    header (12 bytes)   magic, version, kind, payload length, sequence number
    DISPATCH            head (20 bytes), rows of tokens, expert numbers, row counts, row numbers
    RESULT              head (52 bytes), one row for each (token, expert) pair, in the order asked for
    PING / PONG         one stamp / three stamps in nanoseconds and the bytes that the answering end's TCP sent again
    DESCRIBE            nothing;  DESCRIPTION: one JSON object
    ERROR               one line of text
    PACE                the frame rate at which the receiver shall send from now on; it is not answered

Everything is little-endian. The heads are so long that tensor rows start on a multiple of 16 bytes and
can be read where they lie. A dispatch carries each token once, even when several experts of the device
want it; the answer holds unweighted rows, so that the base station alone weighs and sums them.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from array import array
from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple, Union

__all__ = [
    "DISPATCH_HEAD_BYTES",
    "DTYPE_BYTES",
    "HEADER_BYTES",
    "MAX_FRAME_BYTES",
    "MAX_ROWS",
    "PING_BYTES",
    "PONG_BYTES",
    "PROTOCOL_VERSION",
    "RESULT_HEAD_BYTES",
    "Dispatch",
    "FrameError",
    "Header",
    "Kind",
    "Result",
    "pack_dispatch",
    "pack_error",
    "pack_header",
    "pack_lists",
    "pack_pace",
    "pack_ping",
    "pack_pong",
    "pack_result",
    "unpack_description",
    "unpack_dispatch",
    "unpack_error",
    "unpack_header",
    "unpack_pace",
    "unpack_ping",
    "unpack_pong",
    "unpack_result",
]

if sys.byteorder != "little":  # row numbers are read in place, without a copy
    raise ImportError("the data plane needs a little-endian machine")

PROTOCOL_VERSION = 2
MAGIC = 0x4254  # "TB"
MAX_FRAME_BYTES = 1 << 28
# Row numbers are 16 bits wide and must fit a signed torch.int16.
MAX_ROWS = 32767
MAX_ERROR_BYTES = 1024
MAX_DESCRIPTION_BYTES = 1 << 22
MAX_PACE_MBIT = 1e6

_HEADER = struct.Struct("<HBBII")
_DISPATCH = struct.Struct("<HBBIIHHI")
_RESULT = struct.Struct("<HBBIIHHI4Q")  # 52 bytes; the padding is spelt out
_STAMP = struct.Struct("<Q")
_PONG = struct.Struct("<3Qq")
_PACE = struct.Struct("<d")
HEADER_BYTES = _HEADER.size
PING_BYTES, PONG_BYTES = HEADER_BYTES + _STAMP.size, HEADER_BYTES + _PONG.size
DISPATCH_HEAD_BYTES = _DISPATCH.size
RESULT_HEAD_BYTES = _RESULT.size

#: The element types that travel: their code in a frame and their bytes.
DTYPE_CODES = {"float32": 1, "float16": 2, "bfloat16": 3}
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_DTYPE_NAMES = {code: name for name, code in DTYPE_CODES.items()}

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
    Kind.PING: _STAMP.size,
    Kind.PONG: _PONG.size,
    Kind.DISPATCH: MAX_FRAME_BYTES,
    Kind.RESULT: MAX_FRAME_BYTES,
    Kind.ERROR: MAX_ERROR_BYTES,
    Kind.PACE: _PACE.size,
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


class Dispatch(NamedTuple):
    """One layer's tokens for one device.

    Attributes:
        layer: The layer.
        dtype: Element type of the rows.
        step: The token step of the request, 0 for the prompt.
        rows: Number of token rows.
        hidden: Elements in a row.
        data: The rows' bytes.
        experts: The experts wanted, rising.
        counts: How many rows each of them gets.
        indices: The row numbers, expert by expert.
    """

    layer: int
    dtype: str
    step: int
    rows: int
    hidden: int
    data: memoryview
    experts: memoryview
    counts: memoryview
    indices: memoryview


class Result(NamedTuple):
    """A device's answer to a dispatch. Stamps are its monotonic clock in nanoseconds.

    Attributes:
        layer: The layer.
        dtype: Element type of the rows.
        late: Whether the real computation took longer than the pace asked for.
        step: The token step.
        assignments: Number of rows: one for each (token, expert) pair.
        hidden: Elements in a row.
        received_ns: The whole dispatch had arrived.
        started_ns: The computation began.
        computed_ns: The computation, and the wait for the pace, had ended.
        replied_ns: The answer was given to the kernel.
        data: The rows' bytes.
    """

    layer: int
    dtype: str
    late: bool
    step: int
    assignments: int
    hidden: int
    received_ns: int
    started_ns: int
    computed_ns: int
    replied_ns: int
    data: memoryview


def pack_header(kind: int, length: int, sequence: int) -> bytes:
    """Return the header of a frame with ``length`` bytes of payload."""
    if length > _MAX_LENGTH[kind]:
        raise FrameError(f"a frame of {length} bytes is larger than the limit of {_MAX_LENGTH[kind]}")
    return _HEADER.pack(MAGIC, PROTOCOL_VERSION, kind, length, sequence & 0xFFFFFFFF)


def unpack_header(data: Buffer) -> Header:
    """Read a header from the first bytes of ``data``.

    Raises:
        FrameError: It is no header, of another version, or announces too much.
    """
    magic, version, kind, length, sequence = _HEADER.unpack_from(data)
    if magic != MAGIC or version != PROTOCOL_VERSION:
        raise FrameError("not a frame of this protocol")
    limit = _MAX_LENGTH.get(kind)
    if limit is None:
        raise FrameError(f"unknown kind of frame: {kind}")
    if length > limit:
        raise FrameError(f"a frame of kind {kind} announces {length} bytes, more than its limit of {limit}")
    return Header(kind, length, sequence)


def pack_lists(experts: Sequence[int], counts: Sequence[int], indices: Sequence[int]) -> bytes:
    """Return the lists behind the rows of a dispatch: experts, row counts, row numbers."""
    return array("H", [*experts, *counts, *indices]).tobytes()


def pack_dispatch(
    layer: int, dtype: str, step: int, rows: int, hidden: int, experts: int, assignments: int, sequence: int
) -> bytes:
    """Return header and head of a dispatch; the rows and then the lists follow as separate buffers."""
    if rows > MAX_ROWS or assignments > MAX_ROWS * experts:
        raise FrameError(f"{rows} tokens at once; a dispatch carries at most {MAX_ROWS}")
    length = _DISPATCH.size + rows * hidden * DTYPE_BYTES[dtype] + 2 * (2 * experts + assignments)
    head = _DISPATCH.pack(layer, DTYPE_CODES[dtype], 0, step, rows, hidden, experts, assignments)
    return pack_header(Kind.DISPATCH, length, sequence) + head


def unpack_dispatch(payload: memoryview) -> Dispatch:
    """Read a dispatch; the result points into ``payload``.

    Raises:
        FrameError: The sizes do not agree, or a number is out of its range.
    """
    if len(payload) < _DISPATCH.size:
        raise FrameError("the dispatch ends within its head")
    layer, code, _, step, rows, hidden, experts, assignments = _DISPATCH.unpack_from(payload)
    dtype = _dtype(code)
    if not (rows and hidden and experts and assignments) or rows > MAX_ROWS:
        raise FrameError("the dispatch holds no tokens or too many")
    middle = _DISPATCH.size + rows * hidden * DTYPE_BYTES[dtype]
    if len(payload) != middle + 2 * (2 * experts + assignments):
        raise FrameError("the dispatch is not as long as its head says")
    lists = payload[middle:].cast("H")
    numbers, counts, indices = lists[:experts], lists[experts : 2 * experts], lists[2 * experts :]
    if sum(counts) != assignments or min(counts) == 0:
        raise FrameError("the dispatch's row counts do not add up")
    if experts > 1 and any(numbers[i] >= numbers[i + 1] for i in range(experts - 1)):
        raise FrameError("the dispatch's experts are not in rising order")
    if max(indices) >= rows:
        raise FrameError("the dispatch names a row that it does not hold")
    return Dispatch(
        layer, dtype, step, rows, hidden, payload[_DISPATCH.size : middle], numbers, counts, indices
    )


def pack_result(
    dispatch: Dispatch,
    received_ns: int,
    started_ns: int,
    computed_ns: int,
    replied_ns: int,
    late: bool,
    sequence: int,
) -> bytes:
    """Return header and head of the answer to ``dispatch``; the rows follow as a separate buffer."""
    assignments = len(dispatch.indices)
    length = _RESULT.size + assignments * dispatch.hidden * DTYPE_BYTES[dispatch.dtype]
    head = _RESULT.pack(
        dispatch.layer,
        DTYPE_CODES[dispatch.dtype],
        int(late),
        dispatch.step,
        assignments,
        dispatch.hidden,
        0,
        0,
        received_ns,
        started_ns,
        computed_ns,
        replied_ns,
    )
    return pack_header(Kind.RESULT, length, sequence) + head


def unpack_result(payload: memoryview) -> Result:
    """Read an answer; the result points into ``payload``.

    Raises:
        FrameError: The sizes do not agree.
    """
    if len(payload) < _RESULT.size:
        raise FrameError("the answer ends within its head")
    layer, code, late, step, assignments, hidden, _, _, *stamps = _RESULT.unpack_from(payload)
    dtype = _dtype(code)
    if len(payload) != _RESULT.size + assignments * hidden * DTYPE_BYTES[dtype]:
        raise FrameError("the answer is not as long as its head says")
    received, started, computed, replied = stamps
    return Result(
        layer,
        dtype,
        bool(late),
        step,
        assignments,
        hidden,
        received,
        started,
        computed,
        replied,
        payload[_RESULT.size :],
    )


def pack_ping(sent_ns: int, sequence: int) -> bytes:
    """Return a ping that carries the sender's stamp."""
    return pack_header(Kind.PING, _STAMP.size, sequence) + _STAMP.pack(sent_ns)


def unpack_ping(payload: memoryview) -> int:
    """Return the stamp of a ping."""
    if len(payload) != _STAMP.size:
        raise FrameError("a ping of the wrong size")
    return int(_STAMP.unpack(payload)[0])


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
    return pack_header(Kind.PONG, _PONG.size, sequence) + _PONG.pack(sent_ns, received_ns, replied_ns, again)


def unpack_pong(payload: memoryview) -> Tuple[int, int, int, Optional[int]]:
    """Return the three stamps of a pong, and the bytes sent again."""
    if len(payload) != _PONG.size:
        raise FrameError("a pong of the wrong size")
    sent_ns, received_ns, replied_ns, again = _PONG.unpack(payload)
    return sent_ns, received_ns, replied_ns, again if again >= 0 else None


def pack_pace(mbit: Optional[float]) -> bytes:
    """Return a whole frame that asks for a frame rate in Mbit/s; ``None`` for no limit."""
    return pack_header(Kind.PACE, _PACE.size, 0) + _PACE.pack(0.0 if mbit is None else mbit)


def unpack_pace(payload: memoryview) -> Optional[float]:
    """Return the rate of a pace frame in Mbit/s; ``None`` for no limit.

    Raises:
        FrameError: It is none.
    """
    if len(payload) != _PACE.size:
        raise FrameError("a pace of the wrong size")
    mbit = float(_PACE.unpack(payload)[0])
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
        value = json.loads(bytes(payload).decode())
    except ValueError as error:
        raise FrameError(f"the description is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise FrameError("the description is not a JSON object")
    return value


def _dtype(code: int) -> str:
    try:
        return _DTYPE_NAMES[code]
    except KeyError:
        raise FrameError(f"unknown element type: {code}") from None
