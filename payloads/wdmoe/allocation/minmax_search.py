"""The least time at which the smallest shares of a few devices fit into the band, in plain floats. Exact.

A device's smallest share, its need, falls as the time T that it is given rises, under every rule and whatever limits
its rates have: a link at its lowest rate takes the same time with any smaller share, and at its highest more share does
not help. So the least T is where the sum of needs comes to what there is. The sum is smooth nearly everywhere, and
Newton's method on its reciprocal finds T within a bracket. It may jump where a device's need does: where the lowest
rate suffices, and at the end of a table's row. These times are known beforehand and are gone through by halves.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from math import log, log1p
from typing import TYPE_CHECKING, Callable, List, Protocol, Sequence, Tuple

if TYPE_CHECKING:
    from payloads.wdmoe.allocation.minmax_few import Link

__all__ = [
    "Area",
    "LinearNeed",
    "Need",
    "ShannonNeed",
    "least_time",
    "search_same",
    "seconds_in_piece",
    "share_in_piece",
    "sum_of",
    "u_of_time",
]

_INFINITE = float("inf")
_ROUNDS = 200
_PRECISION = 1e-12
#: A time is least where what falls with it leaves no more than this part of itself of the band.
_TIGHT = 1e-11
#: Shares fit where no more than this part of what there is is missing.
_FITS = 1e-12
#: A step in u after which the next would be lost in rounding.
_LAST_STEP = 1e-9
#: A step that is this much too far, so that no rounding says that it fell short.
_BEYOND = 1e-12
#: A bound from below is raised by this much, so that what is left of it after subtracting is not too little.
NOT_BELOW = 1.0 + 1e-14

Floats = List[float]
#: What the needs are together at a time: those that fall as it rises, those that do not, and how fast they fall.
Area = Callable[[float], Tuple[float, float, float]]


class Need(Protocol):
    """The smallest share with which a device's bits are through in some time.

    Attributes:
        best_s: The least time that they can take.
        floor_s: What they take with the smallest share that is given out; there the need may jump.
    """

    best_s: float
    floor_s: float

    def __call__(self, span_s: float) -> Tuple[float, float]:
        """Return the smallest share, infinite where none will do, and how fast it falls as the time rises."""


def search_same(
    fixed: Floats, needs: Sequence[Need], budget: float, shares: Floats, guess_s: float
) -> Floats:
    """Return the shares with which the last device is done as early as can be; what is left over is spread.

    Args:
        fixed: What each device takes beside its bits, in seconds.
        needs: What share it needs for them.
        budget: What the shares are together.
        shares: Shares that fit.
        guess_s: Where to look first.
    """
    pairs = list(zip(fixed, needs))
    low_s = max([f + need.best_s for f, need in pairs]) * NOT_BELOW
    # With the smallest shares it takes no longer; these always fit.
    high_s = max([f + need.floor_s for f, need in pairs])
    jumps = sorted({(f + need.floor_s) * NOT_BELOW for f, need in pairs})
    time_s = least_time(sum_of(pairs), budget, low_s, high_s, jumps, guess_s)
    found = [need(time_s - f)[0] for f, need in pairs]
    total = sum(found)
    return [share * (budget / total) for share in found] if 0.0 < total < _INFINITE else shares


def sum_of(pairs: Sequence[Tuple[float, Need]]) -> Area:
    """Return what sums needs up; beside each stands what the device takes beside its bits."""

    def area(time_s: float) -> Tuple[float, float, float]:
        falls = held = bends = 0.0
        for f, need in pairs:
            share, bend = need(time_s - f)
            if bend > 0.0:
                falls += share
                bends += bend
            else:
                held += share
        return falls, held, bends

    return area


def least_time(
    area: Area, budget: float, low_s: float, high_s: float, jumps: Sequence[float], guess_s: float
) -> float:
    """Return the least time at which all needs fit, or a little more.

    Args:
        area: The sums of the needs at a time.
        budget: What there is.
        low_s: A time below which nothing fits.
        high_s: A time at which all fits.
        jumps: Rising: the times at which the sum may jump.
        guess_s: Where to look first.
    """
    if high_s <= low_s:
        return low_s
    time_s = guess_s if low_s < guess_s < high_s else low_s
    for turn in range(_ROUNDS):
        falls, held, bends = area(time_s)
        left = budget - held
        if falls <= left + _FITS * budget:
            if time_s <= low_s or left - falls <= _TIGHT * falls:
                return time_s
            high_s = time_s
        else:
            low_s = time_s
        if high_s - low_s <= _PRECISION * high_s:
            return high_s
        another = 0.0
        if left > 0.0 and bends > 0.0:
            step = falls * (falls / left - 1.0) / bends
            another = time_s + step + abs(step) * 1e-7 + _PRECISION / 4 * time_s
        elif time_s == low_s:
            another = high_s
        # Newton's method knows nothing of jumps that it passes.
        to_s = min(max(another, low_s), high_s)
        first = bisect_right(jumps, min(time_s, to_s))
        last = bisect_left(jumps, max(time_s, to_s))
        if first < last:
            time_s = jumps[(first + last) // 2]
        elif turn % 8 == 7:
            time_s = (low_s + high_s) / 2
        elif another >= high_s:
            # Right below there may be a jump; if not, there is more to gain.
            time_s = high_s - _PRECISION * high_s
        elif another > low_s:
            time_s = another
        else:
            # Right above a time that does not fit; where that fits it is the least.
            time_s = low_s + _PRECISION * high_s
    return high_s


class LinearNeed:
    """Rates in proportion to shares, within limits."""

    def __init__(self, down: Link, up: Link, budget: float, floor: float) -> None:
        self._work = down.work, up.work
        self._limits = down.least_s, down.most_s, up.least_s, up.most_s
        self._budget, self._floor = budget, floor
        self.floor_s = seconds_in_piece(*self._work, self._limits, floor)
        self.best_s = seconds_in_piece(*self._work, self._limits, budget)

    def __call__(self, span_s: float) -> Tuple[float, float]:
        """Return the smallest share, and how fast it falls as the time rises."""
        if span_s >= self.floor_s:
            return self._floor, 0.0
        if span_s < self.best_s:
            return _INFINITE, 0.0
        return share_in_piece(span_s, *self._work, self._limits, self._floor, self._budget)


Limits = Tuple[float, float, float, float]


def seconds_in_piece(one: float, two: float, limits: Limits, share: float) -> float:
    """Return the time of both directions where rates are in proportion to the share, within limits."""
    if share <= 0.0:
        return limits[1] + limits[3]
    return min(max(one / share, limits[0]), limits[1]) + min(max(two / share, limits[2]), limits[3])


def share_in_piece(
    span_s: float, one: float, two: float, limits: Limits, low: float, high: float
) -> Tuple[float, float]:
    """Return the smallest share from ``low`` to ``high`` that suffices for a time, and how fast it falls.

    Args:
        span_s: The time; with ``high`` it suffices, with ``low`` it does not.
        one: Seconds of the downlink at share 1; infinite where it has no rate.
        two: Seconds of the uplink.
        limits: The least and the most seconds of the downlink, and of the uplink.
        low: Where the piece begins.
        high: Where it ends.
    """
    share = (one + two) / span_s
    if limits[0] <= one / share <= limits[1] and limits[2] <= two / share <= limits[3]:
        return min(max(share, low), high), share / span_s
    # A limit matters: between two kinks the time is a + c / share.
    kinks = [work / limit for work, limit in zip((one, one, two, two), limits) if limit > 0.0]
    for kink in sorted(kink for kink in kinks if low < kink < high):
        if seconds_in_piece(one, two, limits, kink) <= span_s:
            high = kink
            break
        low = kink
    middle = (low + high) / 2
    held_s = work = 0.0
    for each, least_s, most_s in ((one, *limits[:2]), (two, *limits[2:])):
        time_s = each / middle
        if time_s <= least_s:
            held_s += least_s
        elif time_s >= most_s:
            held_s += most_s
        else:
            work += each
    left_s = span_s - held_s
    if work == 0.0 or left_s <= 0.0:
        return high, 0.0
    share = work / left_s
    return min(max(share, low), high), share / left_s


class ShannonNeed:
    """Shannon's rule, within limits."""

    def __init__(self, down: Link, up: Link, budget: float, floor: float, share: float) -> None:
        self._down, self._up = down, up
        self._floor = floor
        self._ends = 1.0 / budget, 1.0 / floor if floor > 0.0 else _INFINITE
        self._u = 1.0 / share if share > 0.0 else self._ends[0]
        self.best_s = _seconds(down, up, self._ends[0])[0]
        if floor > 0.0:
            self.floor_s = _seconds(down, up, self._ends[1])[0]
        else:
            self.floor_s = down.most_s + up.most_s

    def __call__(self, span_s: float) -> Tuple[float, float]:
        """Return the smallest share, and how fast it falls as the time rises."""
        if span_s >= self.floor_s:
            return self._floor, 0.0
        if span_s < self.best_s:
            return _INFINITE, 0.0
        down, up = self._down, self._up
        left, right = self._ends
        u = min(max(self._u, left), right)
        slope = 0.0
        for turn in range(_ROUNDS):
            seconds, slope = _seconds(down, up, u)
            lacks_s = span_s - seconds
            if lacks_s >= 0.0:
                left = u
            else:
                right = u
            if slope > 0.0:
                another = u + lacks_s / slope
            elif lacks_s >= 0.0:
                # Flat: on to where a highest rate ends, where more time begins to allow for less share.
                another = min(_kink(link, link.least_s, u) for link in (down, up)) * (1.0 + _BEYOND)
            else:
                another = max(_kink(link, link.most_s, 0.0) for link in (down, up)) * (1.0 - _BEYOND)
            if slope > 0.0 and abs(another - u) <= _LAST_STEP * u:
                u = another
                break
            if not left < another < right or turn % 8 == 7:
                another = (left + right) / 2 if right < _INFINITE else 2.0 * left
                if right - left <= 1e-15 * right:
                    u = left
                    break
            u = another
        self._u = u
        share = 1.0 / u
        return (
            (share, share * share / slope if slope > 0.0 else 0.0)
            if share > self._floor
            else (self._floor, 0.0)
        )


def _seconds(down: Link, up: Link, u: float) -> Tuple[float, float]:
    """Return the time of both directions at 1 / share, and its derivative."""
    seconds = slope = 0.0
    for work, sigma, least_s, most_s in (down, up):
        if work == 0.0:
            continue
        x = sigma * u
        logarithm = log1p(x)
        time_s = work * u / logarithm
        if time_s <= least_s:
            seconds += least_s
        elif time_s >= most_s:
            seconds += most_s
        else:
            bend = x * x * (0.5 - x * (2 / 3 - 0.75 * x)) if x < 1e-3 else logarithm - x / (1.0 + x)
            seconds += time_s
            slope += work * bend / (logarithm * logarithm)
    return seconds, slope


def _kink(link: Link, time_s: float, beyond: float) -> float:
    """Return the u at which a link comes to a limit of its time; above ``beyond`` 0 infinite where it is behind it."""
    if link.work == 0.0:
        return _INFINITE if beyond else 0.0
    u = u_of_time(link.work, link.sigma, time_s)
    return _INFINITE if u < beyond else u


def u_of_time(work: float, sigma: float, time_s: float) -> float:
    """Return the u = 1 / share at which ``work u / log1p(sigma u)`` comes to a time; 0 where it is always longer."""
    ratio = sigma * time_s / work if work > 0.0 else 0.0
    if ratio <= 1.0:
        return 0.0
    # With x = sigma u: log1p(x) = x / ratio; the difference is concave, and x is to the right of its top.
    x = max(2.0 * (ratio - 1.0), 2.0 * ratio * log(ratio))
    for _ in range(60):
        step = (log1p(x) - x / ratio) / (1.0 / (1.0 + x) - 1.0 / ratio)
        x = max(x - step, 1e-300)
        if abs(step) <= 1e-9 * x:
            break
    return x / sigma
