"""What transmitter and receivers say to each other, within the data plane's frames. Pure, no torch, no sockets.

A request travels as a DISPATCH, its answer as a RESULT. Both begin with two letters, a version and what it is:

    BEGIN     one JSON object: all that stays the same in a trial
    FRAME     a head, the shares, and the symbols where they do not come by multicast
    PIECES    a head, numbers of pieces, and these pieces
    END       nothing: the trial's images are to be kept

BEGIN and END are answered by DONE; FRAME and PIECES by REPORT, or by MISSING where pieces that came by multicast lack.
Everything is little-endian. The symbols are float16, real and imaginary part in turn. By multicast a frame's symbols
come as datagrams of one piece each (:mod:`payloads.semcast.multicast`); all pieces but the last have the same size.
"""

from __future__ import annotations

import json
import math
import struct
from array import array
from typing import Any, Dict, List, Mapping, NamedTuple, Sequence, Tuple

from payloads.json_input import parse_json
from payloads.wire.frames import MAX_FRAME_BYTES, Buffer, FrameError, Kind, pack_header

__all__ = [
    "MAX_PIECES",
    "PIECE_BYTES",
    "SYMBOL_BYTES",
    "FrameHead",
    "Pieces",
    "Report",
    "What",
    "frame_request",
    "pack_begin",
    "pack_done",
    "pack_missing",
    "pack_report",
    "pieces_of",
    "pieces_request",
    "request",
    "unpack_begin",
    "unpack_frame",
    "unpack_missing",
    "unpack_pieces",
    "unpack_report",
    "what_is",
]

MAGIC, VERSION = b"SC", 1
#: What a datagram carries: with all headers less than the 1500 bytes of Ethernet.
PIECE_BYTES = 1400
MAX_PIECES = 65535
#: A complex symbol of two float16.
SYMBOL_BYTES = 4
MAX_BEGIN_BYTES = 1 << 16
DIGEST_BYTES = 16

_TOP = struct.Struct("<2sBB")
_FRAME = struct.Struct("<2sBBIIHHHBBBxHI")
_REPORT = struct.Struct(f"<2sBBI4Q3d?{DIGEST_BYTES}s")
_LIST = struct.Struct("<2sBBII")


class What:
    """What a message is."""

    BEGIN = 1
    FRAME = 2
    PIECES = 3
    END = 4
    DONE = 5
    REPORT = 6
    MISSING = 7


class FrameHead(NamedTuple):
    """A frame, but for its symbols.

    Attributes:
        number: Its number in the trial.
        pair: The number of its pair of images, which seeds the channel.
        slots: Real numbers sent for each patch.
        high: Rows of patches.
        wide: Columns of patches.
        model: The place of its model in the list that BEGIN gives.
        kept: Whether its image is to be kept; a frame for warming up is not.
        pieces: How many datagrams its symbols come in by multicast; 0 where they follow the head.
        within_ms: In which time these are expected.
        shares: The share of each user.
        snr_db: The signal-to-noise ratio of each user, as it is believed to be.
        scales: The code of each user's scale.
    """

    number: int
    pair: int
    slots: int
    high: int
    wide: int
    model: int
    kept: bool
    pieces: int
    within_ms: int
    shares: Tuple[float, ...]
    snr_db: Tuple[float, ...]
    scales: Tuple[int, ...]

    @property
    def data_bytes(self) -> int:
        """The bytes of the symbols: two for each real number."""
        return 2 * self.slots * self.high * self.wide


class Report(NamedTuple):
    """A receiver's report on a frame. Stamps are its monotonic clock in nanoseconds.

    Attributes:
        number: The frame's number.
        received_ns: All of it had arrived.
        started_ns: The receiver began to work on it.
        decoded_ns: The image was there, and the wait for the pace had ended.
        replied_ns: This answer was made.
        measured_snr_db: The signal-to-noise ratio that the receiver met.
        gain_db: Its channel's gain.
        believed_db: What it took for its channel's gain.
        late: Whether decoding took longer than the pace that the board was to keep.
        digest: The digest of the image.
    """

    number: int
    received_ns: int
    started_ns: int
    decoded_ns: int
    replied_ns: int
    measured_snr_db: float
    gain_db: float
    believed_db: float
    late: bool
    digest: str


class Pieces(NamedTuple):
    """Pieces of a frame that a receiver lacked.

    Attributes:
        number: The frame's number.
        indexes: The numbers of the pieces, rising.
        data: The pieces, one behind the other.
    """

    number: int
    indexes: Sequence[int]
    data: memoryview


def what_is(payload: memoryview) -> int:
    """Return what a message is.

    Raises:
        FrameError: It is no message of semantic broadcast.
    """
    if len(payload) < _TOP.size:
        raise FrameError("the message ends within its head")
    magic, version, what = _TOP.unpack_from(payload)
    if magic != MAGIC or version != VERSION:
        raise FrameError("not a message of semantic broadcast, or of another version")
    return int(what)


def request(sequence: int, parts: Sequence[Buffer]) -> List[Buffer]:
    """Return the frame of a request, in pieces."""
    return [pack_header(Kind.DISPATCH, sum(map(len, parts)), sequence), *parts]


def pack_done(what: int = What.DONE) -> bytes:
    """Return a message that says nothing but what it is."""
    return _TOP.pack(MAGIC, VERSION, what)


def pack_begin(about: Mapping[str, Any]) -> bytes:
    """Return the message that begins a trial."""
    text = json.dumps(about, separators=(",", ":"), allow_nan=False).encode()
    if len(text) > MAX_BEGIN_BYTES:
        raise FrameError(f"a trial's beginning of {len(text)} bytes is larger than {MAX_BEGIN_BYTES}")
    return _TOP.pack(MAGIC, VERSION, What.BEGIN) + text


def unpack_begin(payload: memoryview) -> Dict[str, Any]:
    """Return the JSON object that begins a trial.

    Raises:
        FrameError: It is none.
    """
    _check(payload, What.BEGIN, _TOP.size)
    if len(payload) > _TOP.size + MAX_BEGIN_BYTES:
        raise FrameError("the beginning of a trial is too long")
    try:
        value = parse_json(bytes(payload[_TOP.size :]))
    except ValueError as error:
        raise FrameError(f"the beginning of a trial is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise FrameError("the beginning of a trial is no JSON object")
    return value


def frame_request(head: FrameHead, data: Buffer = b"") -> List[Buffer]:
    """Return the message of a frame, in pieces.

    Args:
        head: The frame.
        data: Its symbols; nothing where they come by multicast.
    """
    users = len(head.shares)
    packed = _FRAME.pack(
        MAGIC,
        VERSION,
        What.FRAME,
        head.number,
        head.pair,
        head.slots,
        head.high,
        head.wide,
        head.model,
        head.kept,
        users,
        head.pieces,
        head.within_ms,
    )
    packed += struct.pack(_of_users(users), *head.shares, *head.snr_db, *head.scales)
    return [packed, data] if len(data) else [packed]


def unpack_frame(payload: memoryview) -> Tuple[FrameHead, memoryview]:
    """Return a frame and its symbols, which point into ``payload``; none where they come by multicast.

    Raises:
        FrameError: The sizes do not agree, or a number is out of its range.
    """
    _check(payload, What.FRAME, _FRAME.size)
    _, _, _, number, pair, slots, high, wide, model, kept, users, pieces, within_ms = _FRAME.unpack_from(
        payload
    )
    middle = _FRAME.size + struct.calcsize(_of_users(users))
    if len(payload) < middle or not users:
        raise FrameError("the frame ends within what it says of its users")
    told = struct.unpack_from(_of_users(users), payload, _FRAME.size)
    shares, snr_db, scales = told[:users], told[users : 2 * users], told[2 * users :]
    head = FrameHead(
        number, pair, slots, high, wide, model, bool(kept), pieces, within_ms, shares, snr_db, scales
    )
    if not head.data_bytes or head.data_bytes > MAX_FRAME_BYTES:
        raise FrameError("the frame holds no symbols or too many")
    if not all(0 <= share <= 1 for share in shares) or not all(map(math.isfinite, snr_db)):
        raise FrameError("a share or a signal-to-noise ratio is none")
    if len(payload) != middle + (0 if pieces else head.data_bytes):
        raise FrameError("the frame is not as long as its head says")
    if pieces and pieces != pieces_of(head.data_bytes):
        raise FrameError("the frame comes in another number of pieces than its size makes")
    return head, payload[middle:]


def _of_users(users: int) -> str:
    """Return the format of what a frame says of its users."""
    return f"<{2 * users}f{users}B"


def pieces_of(data_bytes: int) -> int:
    """Return in how many pieces so many bytes travel by multicast.

    Raises:
        FrameError: They are too many.
    """
    pieces = -(-data_bytes // PIECE_BYTES)
    if pieces > MAX_PIECES:
        raise FrameError(f"{data_bytes} bytes are more than {MAX_PIECES} datagrams carry")
    return pieces


def pieces_request(number: int, indexes: Sequence[int], data: Buffer) -> List[Buffer]:
    """Return the message that brings pieces again, in pieces.

    Args:
        number: The frame's number.
        indexes: The numbers of the pieces, rising.
        data: All symbols of the frame.
    """
    view = memoryview(data)
    head = _LIST.pack(MAGIC, VERSION, What.PIECES, number, len(indexes)) + array("H", indexes).tobytes()
    # Joined: a kernel takes no more than 1024 buffers at once.
    return [head, b"".join(view[PIECE_BYTES * index : PIECE_BYTES * (index + 1)] for index in indexes)]


def unpack_pieces(payload: memoryview) -> Pieces:
    """Return pieces; they point into ``payload``.

    Raises:
        FrameError: The list is wrong.
    """
    number, indexes, rest = _unpack_list(payload, What.PIECES)
    if not PIECE_BYTES * (len(indexes) - 1) < len(rest) <= PIECE_BYTES * len(indexes):
        raise FrameError("the pieces are not as long as their number says")
    return Pieces(number, indexes, rest)


def pack_missing(number: int, indexes: Sequence[int]) -> bytes:
    """Return what asks again for pieces of a frame."""
    return _LIST.pack(MAGIC, VERSION, What.MISSING, number, len(indexes)) + array("H", indexes).tobytes()


def unpack_missing(payload: memoryview) -> Tuple[int, Sequence[int]]:
    """Return a frame's number and the pieces of it that a receiver lacks.

    Raises:
        FrameError: The list is wrong.
    """
    number, indexes, rest = _unpack_list(payload, What.MISSING)
    if len(rest):
        raise FrameError("the list of pieces is longer than it says")
    return number, indexes


def pack_report(report: Report) -> bytes:
    """Return a receiver's report."""
    *numbers, digest = report
    return _REPORT.pack(MAGIC, VERSION, What.REPORT, *numbers, digest.encode())


def unpack_report(payload: memoryview) -> Report:
    """Return a receiver's report.

    Raises:
        FrameError: It is none.
    """
    _check(payload, What.REPORT, _REPORT.size)
    if len(payload) != _REPORT.size:
        raise FrameError("a report of the wrong size")
    _, _, _, number, received_ns, started_ns, decoded_ns, replied_ns, *rest = _REPORT.unpack(payload)
    *levels_db, late, digest = rest
    try:
        text = digest.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError as error:
        raise FrameError("the digest in a report is no text") from error
    measured_db, gain_db, believed_db = levels_db
    if not all(map(math.isfinite, levels_db)):
        raise FrameError("a level in a report is none")
    stamps = number, received_ns, started_ns, decoded_ns, replied_ns
    return Report(*stamps, measured_db, gain_db, believed_db, late, text)


def _unpack_list(payload: memoryview, what: int) -> Tuple[int, Sequence[int], memoryview]:
    _check(payload, what, _LIST.size)
    _, _, _, number, count = _LIST.unpack_from(payload)
    end = _LIST.size + 2 * count
    if not 0 < count <= MAX_PIECES or len(payload) < end:
        raise FrameError("the list of pieces is not as long as it says")
    indexes = array("H")
    indexes.frombytes(payload[_LIST.size : end])
    if any(indexes[place] >= indexes[place + 1] for place in range(count - 1)):
        raise FrameError("the numbers of pieces are not in rising order")
    return number, indexes, payload[end:]


def _check(payload: memoryview, what: int, size: int) -> None:
    if what_is(payload) != what:
        raise FrameError(f"message {what} was expected, not {what_is(payload)}")
    if len(payload) < size:
        raise FrameError("the message ends within its head")
