"""A few devices under a table of modulation and coding: NumPy lays the rows out, plain floats search.

A wider band lowers the SNR, at some width the next row holds, and the rate drops. Between two such widths the rate is
in proportion to the width. What matters of these pieces are those whose end is faster than all before: a device's need
(:mod:`payloads.wdmoe.allocation.minmax_search`) is within one of them, and jumps from the one's end into the next.

With one share for both directions this is exact. With a share of each band a device divides its time between its
directions. For a given division the least time is exact. The first division is that of the best one share for both,
others are those of linear rules at the efficiencies in force: never worse than one share, but another division might be
better still.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from typing import TYPE_CHECKING, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from payloads.linkd.rule import Rule
from payloads.wdmoe.allocation.minmax_prices import FREE, LOW, Pair, Pins, linear_bands
from payloads.wdmoe.allocation.minmax_search import (
    NOT_BELOW,
    Limits,
    least_time,
    seconds_in_piece,
    share_in_piece,
    sum_of,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["Sending", "rows_same", "rows_separate"]

_INFINITE = float("inf")
#: The share at the end of a row is taken this much smaller, so that no rounding puts it into the next row.
_INSIDE = 1.0 - 1e-12
#: A little more than a time at which all fits, so that no rounding says that it does not.
_BEYOND = 1.0 + 1e-9
#: Divisions of the devices' times that are tried in turn, from each of two beginnings.
_DIVISIONS = 2
#: How much worse than the best a division may be that another is looked for from.
_DETOUR = 1.2
_LEAST_PART = 1e-9

Floats = List[float]


class Sending(NamedTuple):
    """What a few devices send; row 0 is the downlink, row 1 the uplink. Some of them send something.

    Attributes:
        fixed: What each device takes beside its bits, in seconds.
        mbit: (2, D).
        states: (2, D).
        bands: (2,), what of both bands there is to share; shares are fractions of it.
        budget: What the shares of a direction are together.
        floor: The smallest share.
    """

    fixed: Floats
    mbit: Array
    states: Array
    bands: Sequence[float]
    budget: float
    floor: float


class _Table(NamedTuple):
    """A rule's rows as arrays.

    Attributes:
        thresholds: (R,), the lowest SNR of each row, rising.
        falling: (R,), the same from the last to the first.
        carries: (R + 1,), Mbit/s per MHz below the first row, in the first row, and so on.
    """

    thresholds: Array
    falling: Array
    carries: Array


@lru_cache(maxsize=64)
def _table(rule: Rule) -> _Table:
    thresholds = np.asarray(rule.thresholds)
    carries = np.asarray(rule.efficiencies) * ((1 - rule.overhead) * rule.scale)
    return _Table(thresholds, thresholds[::-1].copy(), np.concatenate([[0.0], carries]))


class _Rows(NamedTuple):
    """Where rows end for some devices, and what the rates are up to there.

    Attributes:
        ends: Shares, (2, D, R + 1), or (D, 2 R + 1) where both directions have one share; rising; the last is 1.
        slopes: (2, D, ...), what the rates are in proportion to shares up to each end: Mbit/s at share 1.
        rates: (2, D, ...), Mbit/s at the ends, within the limits.
    """

    ends: Array
    slopes: Array
    rates: Array


def _rows(rule: Rule, sending: Sending, one_share: bool) -> _Rows:
    table = _table(rule)
    width = np.array(sending.bands)[:, None, None] * rule.bandwidth_mhz
    sigma = sending.states[..., None] / width
    devices, rows = sending.states.shape[1], len(table.falling)
    each = np.minimum(sigma / table.falling, 1.0) * _INSIDE
    if one_share:
        ends = np.ones((devices, 2 * rows + 1))
        ends[:, :rows], ends[:, rows : 2 * rows] = each
        ends.sort(axis=1)
    else:
        ends = np.ones((2, devices, rows + 1))
        ends[..., :rows] = each
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = table.carries[table.thresholds.searchsorted(sigma / ends, "right")] * width
    slopes[sending.states <= 0.0] = 0.0
    return _Rows(ends, slopes, np.minimum(np.maximum(slopes * ends, rule.min_mbit), rule.max_mbit))


def rows_same(rule: Rule, sending: Sending) -> Floats:
    """Return one share for both directions of each device, as fractions of the bands; together the budget at most.

    Args:
        rule: A table.
        sending: What is sent.
    """
    ends, slopes, rates = _rows(rule, sending, one_share=True)
    mbit = sending.mbit[..., None]
    seconds = (mbit / rates).sum(axis=0)
    seconds[ends < sending.floor] = _INFINITE
    reached = np.minimum.accumulate(seconds, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        works = np.where(mbit > 0.0, mbit / slopes, 0.0)
    least, most = (sending.mbit / rule.max_mbit).tolist(), (sending.mbit / rule.min_mbit).tolist()
    limits = zip(least[0], most[0], least[1], most[1])
    lists = zip(ends.tolist(), works[0].tolist(), works[1].tolist(), (-reached).tolist(), limits)
    pairs = [(f, _Both(*each, sending.floor)) for f, each in zip(sending.fixed, lists)]
    low_s = max([f + need.best_s for f, need in pairs]) * NOT_BELOW
    equal = sending.budget / len(pairs)
    high_s = max([f + need.seconds(equal) for f, need in pairs]) * _BEYOND
    times = (reached + np.array(sending.fixed)[:, None]) * NOT_BELOW
    jumps = {(f + need.floor_s) * NOT_BELOW for f, need in pairs}
    jumps.update(times[(times > low_s) & (times < high_s)].tolist())
    time_s = least_time(sum_of(pairs), sending.budget, low_s, high_s, sorted(jumps), low_s)
    return [need(time_s - f)[0] for f, need in pairs]


def rows_separate(rule: Rule, sending: Sending) -> Pair:
    """Return each device's shares of both bands, as fractions of them; together the budget at most in each direction.

    Args:
        rule: A table.
        sending: What is sent.
    """
    ends, slopes, rates = _rows(rule, sending, one_share=False)
    rates[ends < sending.floor] = 0.0
    reached = np.maximum.accumulate(rates, axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        ends_s = sending.mbit[..., None] / reached
    limits = rule.min_mbit, rule.max_mbit
    one, two = (
        [_One(*each, limits, sending.floor) for each in zip(*row)]
        for row in zip(sending.mbit.tolist(), ends.tolist(), slopes.tolist(), reached.tolist())
    )
    bands = _Bands(sending, one, two, ends_s)
    share = rows_same(rule, sending)
    best: Pair = share, share
    best_s = bands.seconds(best)
    equal = [sending.budget / len(share)] * len(share)
    for spent in (bands.spent(best), bands.spent_as_linear((equal, equal))):
        for _ in range(_DIVISIONS):
            found = None if spent is None else bands.fitted(spent, _DETOUR * best_s)
            if found is None:
                break
            found_s = bands.seconds(found)
            if found_s < best_s:
                best, best_s = found, found_s
            spent = bands.spent_as_linear(found)
    return best


class _Both:
    """What share of both bands a device needs."""

    def __init__(
        self, ends: Floats, one: Floats, two: Floats, reached: Floats, limits: Limits, floor: float
    ) -> None:
        self._ends, self._one, self._two, self._limits, self._floor = ends, one, two, limits, floor
        self._reached = reached  # minus the least time up to each end
        self.best_s = -reached[-1]
        self.floor_s = self.seconds(floor)

    def seconds(self, share: float) -> float:
        """Return the time with a share; at the very end of a row what it takes right behind it."""
        at = bisect_left(self._ends, share)
        return seconds_in_piece(self._one[at], self._two[at], self._limits, share)

    def __call__(self, span_s: float) -> Tuple[float, float]:
        """Return the smallest share, and how fast it falls as the time rises."""
        if span_s >= self.floor_s:
            return self._floor, 0.0
        at = bisect_left(self._reached, -span_s)
        if at == len(self._reached):
            return _INFINITE, 0.0
        low = max(self._ends[at - 1], self._floor) if at else self._floor
        return share_in_piece(span_s, self._one[at], self._two[at], self._limits, low, self._ends[at])


class _One:
    """What share of one band a device needs for one direction."""

    def __init__(
        self,
        mbit: float,
        ends: Floats,
        slopes: Floats,
        reached: Floats,
        limits: Tuple[float, float],
        floor: float,
    ) -> None:
        self._mbit, self._ends, self._slopes, self._limits, self._floor = mbit, ends, slopes, limits, floor
        self._reached = reached  # the highest rate up to each end
        self.floor_s = self.seconds(floor)
        self.best_s = mbit / reached[-1]

    def seconds(self, share: float) -> float:
        """Return the time with a share; at the very end of a row what it takes right behind it."""
        rate = self._slopes[bisect_left(self._ends, share)] * share
        return self._mbit / min(max(rate, self._limits[0]), self._limits[1])

    def __call__(self, span_s: float) -> Tuple[float, float]:
        """Return the smallest share, and how fast it falls as the time rises."""
        if span_s >= self.floor_s:
            return self._floor, 0.0
        if span_s < self.best_s:
            return _INFINITE, 0.0
        rate = self._mbit / span_s
        at = bisect_left(self._reached, rate * (1.0 - 1e-15))
        if at == len(self._reached):
            return _INFINITE, 0.0
        share, end = rate / self._slopes[at], self._ends[at]
        return (share, share / span_s) if share < end else (end, 0.0)


class _Bands:
    """Both bands of one layer, each shared for itself."""

    def __init__(self, sending: Sending, one: Sequence[_One], two: Sequence[_One], ends_s: Array) -> None:
        self._sending, self._one, self._two = sending, one, two
        self._ends_s = ends_s
        self._works = sending.mbit[0].tolist(), sending.mbit[1].tolist()

    def spent(self, shares: Pair) -> Pair:
        """Return the seconds that the directions take with shares."""
        return (
            [need.seconds(w) for need, w in zip(self._one, shares[0])],
            [need.seconds(w) for need, w in zip(self._two, shares[1])],
        )

    def seconds(self, shares: Pair) -> float:
        """Return the latency with shares."""
        return max([f + a + b for f, a, b in zip(self._sending.fixed, *self.spent(shares))])

    def spent_as_linear(self, shares: Pair) -> Optional[Pair]:
        """Return the seconds of both directions were rates in proportion to shares, as they are at these."""
        sending, least = self._sending, max(self._sending.floor, 1e-6)
        works: Pair = (
            [need.seconds(max(w, least)) * max(w, least) for need, w in zip(self._one, shares[0])],
            [need.seconds(max(w, least)) * max(w, least) for need, w in zip(self._two, shares[1])],
        )
        lows = [sending.floor] * len(sending.fixed)
        pins: Pins = (
            [FREE if work else LOW for work in works[0]],
            [FREE if work else LOW for work in works[1]],
        )
        none = [0.0] * len(lows)
        budgets = sending.budget, sending.budget
        found = linear_bands(sending.fixed, works, (none, none), budgets, (lows, lows), pins)
        if found is None:
            return None
        one_w, two_w = found[1]
        return (
            [work / max(w, 1e-300) for work, w in zip(works[0], one_w)],
            [work / max(w, 1e-300) for work, w in zip(works[1], two_w)],
        )

    def fitted(self, spent: Pair, before_s: float) -> Optional[Pair]:
        """Return the shares with the least time where devices divide theirs in these proportions.

        ``None`` where that is no earlier than ``before_s``.
        """
        sending = self._sending
        parts = []
        for a, b, mbit_one, mbit_two in zip(*spent, *self._works):
            part = a / (a + b) if a + b > 0.0 else 0.5
            if mbit_one and mbit_two:
                part = min(max(part, _LEAST_PART), 1.0 - _LEAST_PART)
            parts.append((part, 1.0 - part))
        links = list(zip(sending.fixed, self._one, self._two, parts))

        def area(time_s: float) -> Tuple[float, float, float]:
            fall_one = held_one = bend_one = fall_two = held_two = bend_two = 0.0
            for f, one, two, (part, other) in links:
                span = time_s - f
                share, bend = one(part * span)
                if bend > 0.0:
                    fall_one += share
                    bend_one += bend * part
                else:
                    held_one += share
                share, bend = two(other * span)
                if bend > 0.0:
                    fall_two += share
                    bend_two += bend * other
                else:
                    held_two += share
            if fall_one + held_one > fall_two + held_two:
                return fall_one, held_one, bend_one
            return fall_two, held_two, bend_two

        high_s = before_s * (1.0 - 1e-9)
        falls, held, _ = area(high_s)
        if falls + held > sending.budget:
            return None
        least = [
            f + max(need.best_s / part if need.best_s else 0.0 for need, part in zip((one, two), shared))
            for f, one, two, shared in links
        ]
        low_s = max(least) * NOT_BELOW
        shared = np.array(parts).T
        with np.errstate(divide="ignore", invalid="ignore"):
            times = (np.array(sending.fixed) + self._ends_s.transpose(2, 0, 1) / shared) * NOT_BELOW
            jumps = set(times[(times > low_s) & (times < high_s)].tolist())
        for f, one, two, (part, other) in links:
            for need, each in ((one, part), (two, other)):
                if need.floor_s:
                    jumps.add((f + need.floor_s / each) * NOT_BELOW)
        time_s = least_time(area, sending.budget, low_s, high_s, sorted(jumps), low_s)
        return (
            [one(part * (time_s - f))[0] for f, one, _, (part, _) in links],
            [two(other * (time_s - f))[0] for f, _, two, (_, other) in links],
        )
