"""The least attention waiting latency for many devices or many problems at once, under any rule, limits included.

One share for both directions: the smallest shares that reach a time T (:mod:`payloads.wdmoe.allocation.inverse`)
fall as T rises, and the optimum is the least T at which they fit into the band; a secant of 1 / (their sum)
finds it, guarded by
bisection, which also holds where the sum jumps. This is exact under every rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Tuple

import numpy as np

from payloads.linkd.rule import Rule
from payloads.wdmoe.allocation.inverse import Sent, inverse_of

if TYPE_CHECKING:
    from numpy import bool_
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["least_time", "many_same"]

_PRECISION = 1e-12
#: A time is least where what falls with it leaves no more than this part of itself of the band.
_TIGHT = 1e-10
_ROUNDS = 200


def many_same(rule: Rule, fixed_s: Array, sent: Sent, loaded: NDArray[bool_], floor: float) -> Array:
    """Return one share for both directions of each device, as fractions of the bands.

    Args:
        rule: The links' rule.
        fixed_s: (N, D), what each device takes beside its bits.
        sent: What is sent, for N problems of D devices.
        loaded: (N, D) bool, which devices take part; the others get the smallest share.
        floor: The smallest share.

    Returns:
        (N, D) shares, 1 together at most.
    """
    sent = sent._replace(mbit=np.where(loaded, sent.mbit, 0.0))
    inverse = inverse_of(rule, sent, floor)
    devices = loaded.shape[1]
    equal = np.full(loaded.shape, 1.0 / devices)
    worst = np.where(loaded, fixed_s + sent.seconds(rule, equal), 0.0).max(axis=1)
    best = np.where(loaded, fixed_s + inverse.best_s, 0.0).max(axis=1)

    def shares_at(time_s: Array) -> Tuple[Array, Array]:
        return inverse(np.where(loaded, time_s[:, None] - fixed_s, 1e300))

    def area(time_s: Array) -> Tuple[Array, Array, Array]:
        shares, bend = shares_at(time_s)
        above = np.where(bend > 0, shares, 0.0).sum(axis=1)
        return above, np.where(bend > 0, 0.0, shares).sum(axis=1), bend.sum(axis=1)

    return shares_at(least_time(area, best, worst))[0]


def least_time(area: Callable[[Array], Tuple[Array, Array, Array]], best: Array, worst: Array) -> Array:
    """Return the least times at which shares fit into the band.

    Args:
        area: What the shares are together at times (N,), in three parts: those that fall as the time rises, those that
            do not (infinite where no share will do), and how fast they fall.
        best: (N,), times below which nothing fits.
        worst: (N,), times at which all fits.

    Returns:
        (N,) times at which all fits, within a relative 1e-10 of the least.
    """
    # A little more than what just fits, so that no rounding says that it does not.
    low, high = np.array(best), np.maximum(worst, best) * (1.0 + 1e-9)
    above, held, bend = area(low)
    high = np.where(above + held <= 1.0, low, high)
    time, width = low, high - low
    tight = np.zeros(low.shape, bool)
    for turn in range(_ROUNDS):
        if (tight | (high - low <= _PRECISION * high)).all():
            break
        left = 1.0 - held
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            step = above * (above / left - 1.0) / bend
        # A little too far, so that the next one fits.
        newton = time + step * (1.0 + 1e-9) + _PRECISION / 4 * time
        good = np.isfinite(newton) & (left > 0) & (newton > low) & (newton < high)
        if (
            turn >= 8 and turn % 4 == 0
        ):  # Newton's method that creeps, as where the sum jumps, is no better than halves
            good &= high - low < 0.1 * width
            width = high - low
        time = np.where(tight, high, np.where(good, newton, (low + high) / 2))
        above, held, bend = area(time)
        fits = above + held <= 1.0
        low, high = np.where(fits, low, time), np.where(fits, time, high)
        tight |= fits & (1.0 - held - above <= _TIGHT * above)
    return high
