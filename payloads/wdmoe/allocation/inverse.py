"""The smallest share of the band with which a device is done in a given time, for whole arrays of devices. Exact.

Times here never fall when a share does, limits of the rate included: below ``min_mbit`` and above ``max_mbit`` more
band changes nothing. The one exception is a table of modulation and coding: a wider band lowers the SNR, at some width
the next row holds, and the rate drops. Between two such widths the rate is in proportion to the width, so each of
these pieces is a linear rule, and the smallest share is the smallest of all pieces'.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, Optional, Tuple, Union

import numpy as np

from payloads.linkd.rule import Rule

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["LinearInverse", "Sent", "ShannonInverse", "inverse_of", "share_of_rate"]

#: The share at the end of a table's row is taken this much smaller, so that no rounding puts it into the next row.
_INSIDE = 1.0 - 1e-12
_ROUNDS = 60
_VAST = 1e200
_LN_2 = math.log(2.0)


class Sent(NamedTuple):
    """What N problems of D devices send over their links. Row 0 is the downlink, row 1 the uplink.

    Attributes:
        mbit: (2, N, D), what is sent, in Mbit.
        states: (2, N, D), the links' states.
        bands: (2,), what of the bands there is to share; shares are fractions of it.
    """

    mbit: Array
    states: Array
    bands: Array

    def seconds(self, rule: Rule, shares: Array) -> Array:
        """Return the time (N, D) that it takes with fractions (N, D) or (2, N, D) of the bands."""
        from payloads.station.rates import rates_mbit

        rates = rates_mbit(rule, self.states, shares * self.bands[:, None, None])
        seconds: Array = (self.mbit / rates).sum(axis=0)
        return seconds


Inverse = Union["LinearInverse", "ShannonInverse"]


def inverse_of(rule: Rule, sent: Sent, floor: float) -> Inverse:
    """Return what finds smallest shares.

    Args:
        rule: The links' rule.
        sent: What is sent.
        floor: The smallest share that is given, above or equal to 0.
    """
    return ShannonInverse(rule, sent, floor) if rule.kind == "shannon" else LinearInverse(rule, sent, floor)


class LinearInverse:
    """Smallest shares where rates are in proportion to shares, piece by piece.

    Attributes:
        best_s: (N, D), the least time that a device can have, with up to the whole band.
    """

    def __init__(self, rule: Rule, sent: Sent, floor: float) -> None:
        slopes, low, high = _pieces(rule, sent)
        self._mbit = sent.mbit[..., None]
        self._slopes = slopes
        self._limits = rule.min_mbit, rule.max_mbit
        self._start = np.maximum(low, floor)
        self._end = np.maximum(high, self._start)
        with np.errstate(divide="ignore", invalid="ignore"):
            kinks = [np.clip(limit / slopes, 0.0, _VAST) for limit in self._limits]
            self._per = np.where(self._mbit > 0, self._mbit / np.where(slopes > 0, slopes, np.inf), 0.0)
        #: Times at the lower and upper ends of the pieces, and where either direction meets a limit, (2, ...).
        self._start_s = np.where(high >= self._start, self._time(self._start), np.inf)
        self._end_s = np.where(high >= self._start, self._time(self._end), np.inf)
        self._lowest_s = np.stack([self._time(kink) for kink in kinks[0]])
        self._highest_s = np.stack([self._time(kink) for kink in kinks[1]])
        self.best_s: Array = self._end_s.min(axis=-1)

    def _time(self, share: Array) -> Array:
        time: Array = (self._mbit / np.clip(self._slopes * share, *self._limits)).sum(axis=0)
        return time

    def __call__(self, span_s: Array) -> Tuple[Array, Array]:
        """Return the smallest shares, and how fast they fall as the time rises.

        Args:
            span_s: (N, D), the time that each device has for its bits.

        Returns:
            (N, D) shares, infinite where none will do, and their derivatives, 0 where a share is an end of a piece.
        """
        span = span_s[..., None]
        at_lowest = span >= self._lowest_s
        at_highest = span < self._highest_s
        free = ~(at_lowest | at_highest)
        limited = np.where(at_lowest, self._limits[0], self._limits[1])
        left = span - np.where(free, 0.0, self._mbit / limited).sum(axis=0)
        per = np.where(free, self._per, 0.0).sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            inside = np.where((left > 0) & (per > 0), per / left, self._end)
            bend = np.where((left > 0) & (per > 0), inside / left, 0.0)
        inside = np.clip(inside, self._start, self._end)
        idle = span >= self._start_s
        shares = np.where(idle, self._start, np.where(span >= self._end_s, inside, np.inf))
        piece = shares.argmin(axis=-1)[..., None]
        bend = np.where(idle, 0.0, bend)
        found: Array = np.take_along_axis(shares, piece, -1)[..., 0]
        return found, np.take_along_axis(bend, piece, -1)[..., 0]


def _pieces(rule: Rule, sent: Sent) -> Tuple[Array, Array, Array]:
    """Return what the shares of each piece are multiplied by, (2, N, D, P), and where it begins and ends, (N, D, P)."""
    bands = sent.bands[:, None, None]
    if rule.kind == "linear":
        nothing = np.zeros((*sent.states.shape[1:], 1))
        return (sent.states * bands)[..., None], nothing, nothing + 1.0
    width = bands * rule.bandwidth_mhz
    thresholds = np.asarray(rule.thresholds)
    efficiencies = np.asarray(rule.efficiencies) * (1 - rule.overhead) * rule.scale
    #: (2, N, D, rows): above this share a row holds no more.
    ends = np.minimum((sent.states / width)[..., None] / thresholds, 1.0) * _INSIDE
    high = np.concatenate([ends[0], ends[1], np.ones((*ends.shape[1:3], 1))], axis=-1)
    high.sort(axis=-1)
    low = np.concatenate([np.zeros((*ends.shape[1:3], 1)), high[..., :-1]], axis=-1)
    # The row that holds at the end of a piece is the highest whose own end is not before it.
    holds = (ends[..., None, :] >= high[..., None]).sum(axis=-1)
    slopes = np.where(holds > 0, efficiencies[np.maximum(holds - 1, 0)], 0.0) * width[..., None]
    return slopes, low, high


class ShannonInverse:
    """Smallest shares under Shannon's rule.

    Attributes:
        best_s: (N, D), the least time that a device can have, with the whole band.
    """

    def __init__(self, rule: Rule, sent: Sent, floor: float) -> None:
        self._rule, self._sent = rule, sent
        width = sent.bands[:, None, None] * rule.bandwidth_mhz
        #: SNR over the whole band, and the rate of a share is pace * share * log1p(sigma / share).
        self._sigma = sent.states / width
        self._work = sent.mbit / (width * rule.scale / _LN_2)
        self._limits = rule.min_mbit, rule.max_mbit
        self._start = np.full(sent.mbit.shape[1:], floor)
        self._start_s = sent.seconds(rule, self._start)
        self.best_s: Array = sent.seconds(rule, np.ones_like(self._start))
        kinks = [share_of_rate(self._sigma, limit / (width * rule.scale / _LN_2)) for limit in self._limits]
        self._lowest_s = np.stack([sent.seconds(rule, kink) for kink in kinks[0]])
        self._highest_s = np.stack([sent.seconds(rule, kink) for kink in kinks[1]])
        self._guess: Optional[Array] = None

    def __call__(self, span_s: Array) -> Tuple[Array, Array]:
        """Return the smallest shares, and how fast they fall as the time rises; see :class:`LinearInverse`."""
        at_lowest = span_s >= self._lowest_s
        at_highest = span_s < self._highest_s
        free = ~(at_lowest | at_highest) & (self._work > 0) & (self._sigma > 0)
        limited = np.where(at_lowest, self._limits[0], self._limits[1])
        left = span_s - np.where(free, 0.0, self._sent.mbit / limited).sum(axis=0)
        solve = free.any(axis=0) & (span_s < self._start_s) & (span_s >= self.best_s) & (left > 0)
        # In u = 1 / share the time is concave, so that Newton's method never passes the solution from below; u = 1,
        # the whole band, is below.
        u = np.ones_like(span_s)
        slope = np.ones_like(span_s)
        work = np.where(free & solve, self._work, 0.0)
        sigma = np.where(work > 0, self._sigma, 1.0)
        for _ in range(_ROUNDS):
            time, slope = _time_of_inverse(work, sigma, u)
            slope = np.where(solve, slope, 1.0)
            step = np.where(solve, (left - time) / slope, 0.0)
            u = np.maximum(u + step, 1.0)
            if (step <= 1e-14 * u).all():
                break
        shares = np.where(
            solve, np.maximum(1.0 / u, self._start), np.where(span_s < self.best_s, np.inf, 1.0)
        )
        shares = np.where(span_s >= self._start_s, self._start, shares)
        bend: Array = np.where(solve & (shares > self._start), shares * shares / slope, 0.0)
        return shares, bend


def _time_of_inverse(work: Array, sigma: Array, u: Array) -> Tuple[Array, Array]:
    """Return the sum over directions of ``work u / log1p(sigma u)``, and its derivative by u."""
    x = sigma * u
    log = np.log1p(x)
    small = x * x * (0.5 - x * (2 / 3 - 0.75 * x))
    bend = np.where(x < 1e-3, small, log - x / (1.0 + x))
    return (work * u / log).sum(axis=0), (work * bend / (log * log)).sum(axis=0)


def share_of_rate(sigma: Array, rate: Union[Array, float]) -> Array:
    """Return the share w at which ``w log1p(sigma / w)`` comes to a rate; vast where it never does."""
    reachable = sigma > rate
    rate = np.where(reachable, rate, 0.5)
    sigma = np.where(reachable, sigma, 1.0)
    # With x = sigma / w: log1p(x) = x rate / sigma; the difference is concave, and x is to the right of its top.
    ratio = sigma / rate
    x = np.maximum(2.0 * (ratio - 1.0), 2.0 * ratio * np.log(ratio))
    for _ in range(_ROUNDS):
        step = (np.log1p(x) - x / ratio) / (1.0 / (1.0 + x) - 1.0 / ratio)
        x = np.maximum(x - step, 1e-300)
        if (np.abs(step) <= 1e-14 * x).all():
            break
    share: Array = np.where(reachable, sigma / x, _VAST)
    return share
