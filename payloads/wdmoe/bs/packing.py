"""A layer's pairs as messages to devices, and their answers as rows again: pure, no sockets.

A pair is one token's wish for one expert; its place is ``token * k + choice``. A device's message carries each token's
row once, however many of its experts want it; its answer holds one row for each pair, which lands at the pair's place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import torch

from payloads.wdmoe.wire_rows import decode_rows, encode_rows, wire_dtype
from payloads.wire.frames import Buffer, FrameError, Result, pack_dispatch, pack_lists, unpack_result

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Gathered", "Outgoing", "Parcel", "outgoing", "split"]


#: Up to so many pairs of a layer, and rows of an answer, NumPy takes longer to begin than Python to end.
_FEW_PAIRS, _FEW_ROWS = 32, 8


class Outgoing(NamedTuple):
    """A layer's tokens, as they travel.

    Attributes:
        layer: The layer.
        step: The token step.
        chosen: k, the choices of a token.
        dtype: Element type on the wire.
        width: H, the elements of a row.
        rows: (N, bytes of a row), the tokens' rows.
    """

    layer: int
    step: int
    chosen: int
    dtype: str
    width: int
    rows: NDArray[np.uint8]


class Parcel(NamedTuple):
    """One device's share of a layer.

    Attributes:
        device: The device's number.
        places: The pairs that it answers, in the order of its answer's rows.
        tokens: The rows that travel to it.
        sequence: The sequence number in the frame.
        buffers: The frame, in pieces.
    """

    device: int
    places: NDArray[np.int64]
    tokens: int
    sequence: int
    buffers: List[Buffer]


def outgoing(
    layer: int, step: int, hidden: torch.Tensor, chosen: int, activations: Optional[str] = None
) -> Outgoing:
    """Return tokens (N, H) as they travel; ``activations`` is their element type there, ``None`` for their own."""
    wire = wire_dtype(activations, hidden.dtype)
    return Outgoing(layer, step, chosen, wire, hidden.shape[1], encode_rows(hidden, wire).numpy())


def split(
    out: Outgoing,
    experts: NDArray[np.int64],
    places: NDArray[np.int64],
    device_of: NDArray[np.int64],
    next_sequence: Callable[[int], int],
) -> List[Parcel]:
    """Return each device's share of some pairs.

    Args:
        out: The tokens.
        experts: (P,), the experts of the pairs, rising.
        places: (P,), the places of the pairs.
        device_of: (E,), the device that serves each expert.
        next_sequence: Gives the number of a device's next request.

    Raises:
        FrameError: They do not fit a frame.
    """
    if not len(experts):
        return []
    shares = (
        _few(experts, places, device_of) if len(experts) <= _FEW_PAIRS else _many(experts, places, device_of)
    )
    return [_parcel(out, device, share, next_sequence(device)) for device, share in shares.items()]


class _Share(NamedTuple):
    """What one device answers: its experts, how many pairs each of them has, and the pairs."""

    experts: List[int]
    counts: List[int]
    places: NDArray[np.int64]


def _few(
    experts: NDArray[np.int64], places: NDArray[np.int64], device_of: NDArray[np.int64]
) -> Dict[int, _Share]:
    """Return each device's share of a few pairs, as in each step of decoding: there plain Python is quicker."""
    shares: Dict[int, Tuple[List[int], List[int], List[int]]] = {}
    devices = device_of.tolist()
    for expert, place in zip(experts.tolist(), places.tolist()):
        share = shares.get(devices[expert])
        if share is None:
            shares[devices[expert]] = [expert], [1], [place]
            continue
        if share[0][-1] == expert:
            share[1][-1] += 1
        else:
            share[0].append(expert)
            share[1].append(1)
        share[2].append(place)
    return {device: _Share(which, counts, np.array(mine)) for device, (which, counts, mine) in shares.items()}


def _many(
    experts: NDArray[np.int64], places: NDArray[np.int64], device_of: NDArray[np.int64]
) -> Dict[int, _Share]:
    """Return each device's share of many pairs."""
    ends = [*(np.flatnonzero(experts[1:] != experts[:-1]) + 1).tolist(), len(experts)]
    shares: Dict[int, List[Tuple[int, int, int]]] = {}
    start = 0
    for end in ends:
        expert = int(experts[start])
        shares.setdefault(int(device_of[expert]), []).append((expert, start, end))
        start = end
    return {
        device: _Share(
            [expert for expert, _, _ in share],
            [end - start for _, start, end in share],
            np.concatenate([places[start:end] for _, start, end in share]),
        )
        for device, share in shares.items()
    }


def _parcel(out: Outgoing, device: int, share: _Share, sequence: int) -> Parcel:
    rows, mine = out.rows, share.places
    if len(rows) == 1:
        data, numbers = rows, [0] * len(mine)
    else:
        # Each token's row travels once, even when several experts of the device want it.
        tokens, inverse = np.unique(mine // out.chosen, return_inverse=True)
        data, numbers = rows if len(tokens) == len(rows) else rows[tokens], inverse.tolist()
    head = pack_dispatch(
        out.layer, out.dtype, out.step, len(data), out.width, len(share.experts), len(mine), sequence
    )
    lists = pack_lists(share.experts, share.counts, numbers)
    return Parcel(device, mine, len(data), sequence, [head, data.reshape(-1).data, lists])


class Gathered:
    """The answers' rows, each at the place of its pair; zeros where a pair was not asked for.

    Args:
        out: What was asked.
        dtype: The element type of the computation.
        whole: Whether every pair will be answered.
    """

    def __init__(self, out: Outgoing, dtype: torch.dtype, whole: bool) -> None:
        pairs = len(out.rows) * out.chosen
        self._wire, self._dtype = out.dtype, dtype
        # Bytes of zeros are rows of zeros in every type, int8 with its scale included.
        shape = pairs, out.rows.shape[1]
        self._bytes: NDArray[np.uint8] = np.empty(shape, np.uint8) if whole else np.zeros(shape, np.uint8)
        self._memory = self._bytes.reshape(-1).data

    def take(self, out: Outgoing, parcel: Parcel, payload: memoryview) -> Result:
        """Put a device's answer where it belongs, and return it.

        Raises:
            FrameError: It is none, or none to this question.
        """
        result = unpack_result(payload)
        pairs, width = len(parcel.places), self._bytes.shape[1]
        if (result.layer, result.step, result.assignments) != (out.layer, out.step, pairs) or (
            len(result.data) != pairs * width or result.dtype != out.dtype
        ):
            raise FrameError(f"its answer does not fit the question for layer {out.layer}")
        if pairs > _FEW_ROWS:
            self._bytes[parcel.places] = np.frombuffer(result.data, dtype=np.uint8).reshape(pairs, width)
            return result
        memory, data = self._memory, result.data
        for row, place in enumerate(parcel.places.tolist()):
            memory[place * width : (place + 1) * width] = data[row * width : (row + 1) * width]
        return result

    def clear(self, parcel: Parcel) -> None:
        """Say that a device's answer is not there, where every pair was expected to be answered."""
        self._bytes[parcel.places] = 0

    def rows(self) -> torch.Tensor:
        """Return the rows (N k, H)."""
        return decode_rows(torch.from_numpy(self._bytes), self._wire, self._dtype)
