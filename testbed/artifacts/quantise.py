"""Weights as 8 bits: symmetric, with a scale for each output channel. Pure; a few rows at a time.

A row of a weight matrix is what makes one number of the output. Its scale is its largest magnitude / 127, so that
``weight ~ scale * q`` with q in -127..127 and an error of at most half a scale. A row of zeros has scale 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LEVELS", "NotFiniteError", "as_float32", "quantise_rows"]

LEVELS = 127


class NotFiniteError(ValueError):
    """A weight is infinite or no number."""


def as_float32(data: memoryview | bytes, dtype: str) -> npt.NDArray[np.float32]:
    """Return the numbers of raw bytes.

    Args:
        data: The bytes, little-endian.
        dtype: ``F32``, ``F16`` or ``BF16``.
    """
    if dtype == "BF16":
        # The upper half of a float32: numpy has no type for it.
        wide = np.frombuffer(data, "<u2").astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    plain: npt.NDArray[Any] = np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype])
    return plain.astype(np.float32)


def quantise_rows(weights: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return rows as 8 bits, and their scales.

    Args:
        weights: (rows, columns); overwritten, since fresh memory for each step takes longer than the step.

    Returns:
        (rows, columns) int8 and (rows,) float32.

    Raises:
        NotFiniteError: A weight is not finite.
    """
    largest = np.maximum(weights.max(axis=1, initial=0.0), -weights.min(axis=1, initial=0.0))
    if not np.isfinite(largest).all():
        raise NotFiniteError("a weight is not a finite number")
    scales = (largest / np.float32(LEVELS)).astype(np.float32)
    # A magnitude so small that its 127th is not a float32 counts as zero.
    divisors = np.where(scales > 0, scales, np.float32(1))[:, None]
    np.divide(weights, divisors, out=weights)
    np.rint(weights, out=weights)
    if (scales < np.finfo(np.float32).tiny).any():
        # A subnormal scale is coarse enough for its row to reach beyond the last level.
        np.clip(weights, -LEVELS, LEVELS, out=weights)
    return weights.astype(np.int8), scales
