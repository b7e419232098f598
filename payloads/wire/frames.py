"""The frames of the data plane: a fixed binary header, then raw bytes. Pure functions, no sockets.

    header (12 bytes)   magic, version, kind, payload length, sequence number
    DISPATCH            head (20 bytes), rows of tokens, expert numbers, row counts, row numbers
    RESULT              head (52 bytes), one row for each (token, expert) pair, in the order asked for
    PING / PONG         one stamp / three stamps in nanoseconds and the bytes that the answering end's TCP sent again;
                        both are equally long
    DESCRIBE            nothing;  DESCRIPTION: one JSON object
    ERROR               one line of text
    PACE                the frame rate at which the receiver shall send from now on; it is not answered

Everything is little-endian. The heads are so long that tensor rows start on a multiple of 16 bytes and
can be read where they lie. A dispatch carries each token once, even when several experts of the device
want it; the answer holds unweighted rows, so that the base station alone weighs and sums them.
"""

from __future__ import annotations

import struct
import sys
from array import array
from typing import Dict, NamedTuple, NoReturn, Sequence

from payloads.wire.control_frames import (
    MAX_PACE_MBIT,
    PING_BYTES,
    PONG_BYTES,
    pack_error,
    pack_pace,
    pack_ping,
    pack_pong,
    unpack_description,
    unpack_error,
    unpack_pace,
    unpack_ping,
    unpack_pong,
)
from payloads.wire.header import (
    HEADER,
    HEADER_BYTES,
    MAGIC,
    MAX_FRAME_BYTES,
    PROTOCOL_VERSION,
    Buffer,
    FrameError,
    Header,
    Kind,
    pack_header,
    unpack_header,
)

__all__ = [
    "DISPATCH_HEAD_BYTES",
    "DTYPE_BYTES",
    "DTYPE_CODES",
    "HEADER_BYTES",
    "MAX_FRAME_BYTES",
    "MAX_PACE_MBIT",
    "MAX_ROWS",
    "PING_BYTES",
    "PONG_BYTES",
    "PROTOCOL_VERSION",
    "RESULT_HEAD_BYTES",
    "Buffer",
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
    "row_bytes",
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

# Row numbers are 16 bits wide and must fit a signed torch.int16.
MAX_ROWS = 32767

_DISPATCH = struct.Struct("<HBBIIHHI")
_RESULT = struct.Struct("<HBBIIHHI4Q")  # 52 bytes; the padding is spelt out
# Header and head are packed at once.
_DISPATCH_FRAME = struct.Struct(HEADER.format + _DISPATCH.format[1:])
_RESULT_FRAME = struct.Struct(HEADER.format + _RESULT.format[1:])
DISPATCH_HEAD_BYTES = _DISPATCH.size
RESULT_HEAD_BYTES = _RESULT.size

#: The element types that travel and their code in a frame; those of a computation and their bytes.
DTYPE_CODES = {"float32": 1, "float16": 2, "bfloat16": 3, "int8": 4}
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
#: Bytes of one element, and of what belongs to a whole row: int8 has a float32 scale behind each row.
_ROW_BYTES = {**{name: (size, 0) for name, size in DTYPE_BYTES.items()}, "int8": (1, 4)}
_WIRE = {name: (code, *_ROW_BYTES[name]) for name, code in DTYPE_CODES.items()}
#: Of a code: the element type's name, its bytes, and the bytes that each row has beside them.
_BY_CODE = {code: (name, *_ROW_BYTES[name]) for name, code in DTYPE_CODES.items()}


#: Lists that were checked before, of up to so many bytes, and how many are kept.
_KEPT_LISTS: Dict[bytes, _Lists] = {}
_KEPT_LISTS_BYTES, _KEPT_LISTS_MOST = 32, 1024

_DISPATCH_KIND, _RESULT_KIND = Kind.DISPATCH, Kind.RESULT


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


def row_bytes(dtype: str, hidden: int) -> int:
    """Return the bytes of a row of ``hidden`` elements on the wire."""
    each, more = _ROW_BYTES[dtype]
    return hidden * each + more


def pack_lists(experts: Sequence[int], counts: Sequence[int], indices: Sequence[int]) -> bytes:
    """Return the lists behind the rows of a dispatch: experts, row counts, row numbers."""
    return array("H", [*experts, *counts, *indices]).tobytes()


def pack_dispatch(
    layer: int, dtype: str, step: int, rows: int, hidden: int, experts: int, assignments: int, sequence: int
) -> bytes:
    """Return header and head of a dispatch; the rows and then the lists follow as separate buffers."""
    if rows > MAX_ROWS or assignments > MAX_ROWS * experts:
        raise FrameError(f"{rows} tokens at once; a dispatch carries at most {MAX_ROWS}")
    code, each, more = _WIRE[dtype]
    length = DISPATCH_HEAD_BYTES + rows * (hidden * each + more) + 2 * (2 * experts + assignments)
    if length > MAX_FRAME_BYTES:
        raise _too_long(length)
    return _DISPATCH_FRAME.pack(
        MAGIC,
        PROTOCOL_VERSION,
        _DISPATCH_KIND,
        length,
        sequence & 0xFFFFFFFF,
        layer,
        code,
        0,
        step,
        rows,
        hidden,
        experts,
        assignments,
    )


def unpack_dispatch(payload: memoryview) -> Dispatch:
    """Read a dispatch; the result points into ``payload``.

    Raises:
        FrameError: The sizes do not agree, or a number is out of its range.
    """
    if len(payload) < DISPATCH_HEAD_BYTES:
        raise FrameError("the dispatch ends within its head")
    layer, code, _, step, rows, hidden, experts, assignments = _DISPATCH.unpack_from(payload)
    dtype, each, more = _BY_CODE.get(code) or _no_type(code)
    if not (rows and hidden and experts and assignments) or rows > MAX_ROWS:
        raise FrameError("the dispatch holds no tokens or too many")
    middle = DISPATCH_HEAD_BYTES + rows * (hidden * each + more)
    if len(payload) != middle + 2 * (2 * experts + assignments):
        raise FrameError("the dispatch is not as long as its head says")
    numbers, counts, indices, last = _lists(payload[middle:], experts)
    if last >= rows:
        raise FrameError("the dispatch names a row that it does not hold")
    return Dispatch(
        layer, dtype, step, rows, hidden, payload[DISPATCH_HEAD_BYTES:middle], numbers, counts, indices
    )


class _Lists(NamedTuple):
    """The lists of a dispatch, checked, and the last row that they name."""

    numbers: memoryview
    counts: memoryview
    indices: memoryview
    last: int


def _lists(data: memoryview, experts: int) -> _Lists:
    """Read the lists of a dispatch. While tokens are decoded the same few come again and again: they are kept."""
    if len(data) > _KEPT_LISTS_BYTES:
        return _read_lists(data, experts)
    key = data.tobytes()
    known = _KEPT_LISTS.get(key)
    if known is None or len(known.numbers) != experts:
        known = _read_lists(memoryview(bytearray(key)), experts)  # torch wants memory that may be written to
        if len(_KEPT_LISTS) >= _KEPT_LISTS_MOST:
            _KEPT_LISTS.clear()
        _KEPT_LISTS[key] = known
    return known


def _read_lists(data: memoryview, experts: int) -> _Lists:
    lists = data.cast("H")
    numbers, counts, indices = lists[:experts], lists[experts : 2 * experts], lists[2 * experts :]
    if sum(counts) != len(indices) or min(counts) == 0:
        raise FrameError("the dispatch's row counts do not add up")
    if experts > 1 and any(numbers[i] >= numbers[i + 1] for i in range(experts - 1)):
        raise FrameError("the dispatch's experts are not in rising order")
    return _Lists(numbers, counts, indices, max(indices))


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
    assignments, hidden = len(dispatch.indices), dispatch.hidden
    code, each, more = _WIRE[dispatch.dtype]
    length = RESULT_HEAD_BYTES + assignments * (hidden * each + more)
    if length > MAX_FRAME_BYTES:
        raise _too_long(length)
    return _RESULT_FRAME.pack(
        MAGIC,
        PROTOCOL_VERSION,
        _RESULT_KIND,
        length,
        sequence & 0xFFFFFFFF,
        dispatch.layer,
        code,
        late,
        dispatch.step,
        assignments,
        hidden,
        0,
        0,
        received_ns,
        started_ns,
        computed_ns,
        replied_ns,
    )


def unpack_result(payload: memoryview) -> Result:
    """Read an answer; the result points into ``payload``.

    Raises:
        FrameError: The sizes do not agree.
    """
    if len(payload) < RESULT_HEAD_BYTES:
        raise FrameError("the answer ends within its head")
    layer, code, late, step, assignments, hidden, _, _, received_ns, started_ns, computed_ns, replied_ns = (
        _RESULT.unpack_from(payload)
    )
    dtype, each, more = _BY_CODE.get(code) or _no_type(code)
    if len(payload) != RESULT_HEAD_BYTES + assignments * (hidden * each + more):
        raise FrameError("the answer is not as long as its head says")
    return Result(
        layer,
        dtype,
        bool(late),
        step,
        assignments,
        hidden,
        received_ns,
        started_ns,
        computed_ns,
        replied_ns,
        payload[RESULT_HEAD_BYTES:],
    )


def _no_type(code: int) -> NoReturn:
    raise FrameError(f"unknown element type: {code}")


def _too_long(length: int) -> FrameError:
    return FrameError(f"a frame of {length} bytes is larger than the limit of {MAX_FRAME_BYTES}")
