"""Sums, bests and orders over many short rows, faster than NumPy's reductions, which are slow along a short axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy import bool_, floating, int64
    from numpy.typing import NDArray

    Floats = NDArray[floating[Any]]

__all__ = ["best_column", "best_row", "order_of", "picked", "row_any", "row_sum"]

_SHORT = 16
_FEW = 256


def row_sum(values: Floats) -> Floats:
    """Return (N, 1), the sum of each row of (N, k)."""
    if not 0 < values.shape[1] <= _SHORT or len(values) == 1:
        total: Floats = values.sum(axis=1, keepdims=True)
        return total
    total = values[:, :1].copy()
    for column in range(1, values.shape[1]):
        total += values[:, column : column + 1]
    return total


def row_any(values: NDArray[bool_]) -> NDArray[bool_]:
    """Return (N,), whether anything in each row of (N, k) is true."""
    if not 0 < values.shape[1] <= _SHORT or len(values) == 1:
        return np.asarray(values.any(axis=1))
    found = values[:, 0].copy()
    for column in range(1, values.shape[1]):
        found |= values[:, column]
    return found


def best_column(values: Floats) -> NDArray[int64]:
    """Return (N,), the column of the largest value in each row of (N, k); of equal ones the first."""
    if len(values) < _FEW or values.shape[1] > _SHORT:
        at: NDArray[int64] = values.argmax(axis=1)
        return at
    return best_row(np.ascontiguousarray(values.T))


def best_row(values: Floats) -> NDArray[int64]:
    """Return (N,), the row of the largest value in each column of (k, N); of equal ones the first."""
    if values.shape[1] < _FEW:
        at: NDArray[int64] = values.argmax(axis=0)
        return at
    best = values[0].copy()
    at = np.zeros(len(best), dtype=np.int64)
    for row in range(1, len(values)):
        better = values[row] > best
        np.maximum(best, values[row], out=best)
        np.copyto(at, row, where=better)
    return at


def picked(values: NDArray[Any], columns: NDArray[int64]) -> NDArray[Any]:
    """Return (N, k), the values of (N, E) in the given (N, k) columns."""
    tokens, width = values.shape
    starts = np.arange(0, tokens * width, width)[:, None]
    return values.ravel().take(columns + starts)


def order_of(values: Floats) -> NDArray[int64]:
    """Return the order that sorts values that are not negative, to single precision; equal ones stay as they are."""
    if len(values) < _FEW:
        return values.argsort(kind="stable")
    # Such numbers sort as their bits do, and NumPy sorts 16 bits by radix: the low half first, then the high half.
    bits = values.astype(np.float32).view(np.uint32)
    order = (bits & 0xFFFF).astype(np.uint16).argsort(kind="stable")
    return order[(bits >> 16).astype(np.uint16)[order].argsort(kind="stable")]
