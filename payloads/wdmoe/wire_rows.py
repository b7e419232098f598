"""Rows of activations as they travel: in an element type of their own, which need not be that of the computation.

``int8`` is symmetric, with a scale of its own for each row: a row travels as its H elements and then its scale, a
float32, so that a row is one piece of memory whatever its type. Needs torch and the standard library.
"""

from __future__ import annotations

from typing import Dict, Optional

import torch

from payloads.wire.frames import row_bytes

__all__ = ["decode_rows", "encode_rows", "wire_dtype"]

_LARGEST = 127
_SCALE_BYTES = 4
#: Below this a scale would lose digits; rows so small are taken for zeros.
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny
_NAMES: Dict[torch.dtype, str] = {getattr(torch, name): name for name in ("float32", "float16", "bfloat16")}


def wire_dtype(activations: Optional[str], dtype: torch.dtype) -> str:
    """Return the element type on the wire: the one asked for, or that of the computation."""
    return activations or _NAMES[dtype]


def encode_rows(rows: torch.Tensor, wire: str) -> torch.Tensor:
    """Return rows (N, H) as bytes (N, bytes of a row)."""
    if wire != "int8":
        return rows.to(getattr(torch, wire)).contiguous().view(torch.uint8)
    values = rows.float()
    # What is no number makes its row's scale none, and so the whole row at the other end: it is not hidden.
    scale = (values.abs().amax(dim=1, keepdim=True) / _LARGEST).clamp_min(_SMALLEST_SCALE)
    count, width = rows.shape
    out = torch.empty(count, row_bytes(wire, width), dtype=torch.uint8)
    out[:, :width] = (values / scale).round_().to(torch.int8).view(torch.uint8)
    out[:, width:] = scale.view(torch.uint8)
    return out


def decode_rows(data: torch.Tensor, wire: str, dtype: torch.dtype) -> torch.Tensor:
    """Return rows (N, H) of type ``dtype`` from their bytes (N, bytes of a row)."""
    if wire != "int8":
        return data.view(getattr(torch, wire)).to(dtype)
    width = data.shape[1] - _SCALE_BYTES
    # A copy, since a single row is contiguous as it is, but its scale may lie between two words.
    scale = data[:, width:].clone(memory_format=torch.contiguous_format).view(torch.float32)
    return (data[:, :width].view(torch.int8) * scale).to(dtype)
