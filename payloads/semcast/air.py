"""A frame as it travels: symbols as 16-bit floating point numbers, scales in 8 bits each.

Both ends and the local play use these, so that all of them compute with the same, rounded, numbers.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Tuple

import torch

from payloads.semcast.settings import Frame

__all__ = ["SCALE_BITS", "Sent", "at_unit_power", "from_wire", "to_wire"]

#: Bits of side information for each user's scale.
SCALE_BITS = 8
#: Scales from 2 ** -6 to 2 ** 6 in equal steps of their logarithm, 1/21 of an octave each.
_LEAST_LOG2, _MOST_LOG2 = -6.0, 6.0
_STEPS: int = 2**SCALE_BITS - 1
_BYTES = 4


class Sent(NamedTuple):
    """One frame on its way.

    Attributes:
        data: The symbols, 2 n numbers of 16 bits, little-endian, real and imaginary parts in turn.
        scale_codes: Each user's scale, as a whole number below 256.
        symbols: n, the complex symbols.
        side_bits: What the receivers have to be told beside the symbols.
    """

    data: bytes
    scale_codes: Tuple[int, ...]
    symbols: int
    side_bits: int


def to_wire(frame: Frame) -> Sent:
    """Return a frame (B = 1) as it travels."""
    if len(frame.symbols) != 1:
        raise ValueError(f"one frame was expected, not {len(frame.symbols)}")
    halves = frame.symbols[0].to("cpu", torch.float16)
    data = bytearray(_BYTES * len(halves))
    torch.frombuffer(data, dtype=torch.float16).copy_(halves.flatten())
    codes = tuple(_code(float(value)) for value in frame.scale[0])
    return Sent(bytes(data), codes, len(halves), SCALE_BITS * len(codes))


def from_wire(sent: Sent) -> Frame:
    """Return a frame (B = 1) from how it travelled.

    Raises:
        ValueError: The data are not as long as the symbols, or a scale is none.
    """
    if len(sent.data) != _BYTES * sent.symbols:
        raise ValueError(
            f"{_BYTES * sent.symbols} bytes were expected for {sent.symbols} symbols, not {len(sent.data)}"
        )
    if not all(0 <= code <= _STEPS for code in sent.scale_codes):
        raise ValueError(f"scales from 0 to {_STEPS} were expected, not {sent.scale_codes}")
    # A bytearray, since torch warns about buffers that it may not write to.
    halves = torch.frombuffer(bytearray(sent.data), dtype=torch.float16)
    scale = torch.tensor([[_scale(code) for code in sent.scale_codes]])
    return Frame(halves.float().reshape(1, sent.symbols, 2), scale)


def at_unit_power(symbols: torch.Tensor) -> torch.Tensor:
    """Return a frame's symbols (B, n, 2) at mean power 1, as they are radiated: rounding them was off by up to 1e-4."""
    power = symbols.double().square().sum(dim=(1, 2), keepdim=True) / symbols.shape[1]
    return symbols * power.clamp_min(1e-20).rsqrt().float()


def _code(scale: float) -> int:
    log2 = math.log2(max(scale, 2.0**_LEAST_LOG2))
    part: float = (min(log2, _MOST_LOG2) - _LEAST_LOG2) / (_MOST_LOG2 - _LEAST_LOG2)
    return round(part * _STEPS)


def _scale(code: int) -> float:
    return float(2.0 ** (_LEAST_LOG2 + code / _STEPS * (_MOST_LOG2 - _LEAST_LOG2)))
