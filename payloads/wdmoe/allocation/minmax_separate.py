"""A share of each band for each device, for many devices or many problems at once.

Under the linear rule and Shannon's this is what :mod:`payloads.wdmoe.allocation.minmax_few` does, in arrays,
and limits of the rates with it: a link whose rate would pass a limit is given the limit, and the band is shared anew.
It is exact where
no link stays below ``min_mbit``; which links to give up there is a question of sets, and answered once for each.

Under a table each band is a staircase, and what divides a device's time between its directions is taken from linear
rules at the efficiencies in force. With that division the least time is exact (inverse.py); another might be better.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Sequence, Tuple

import numpy as np

from payloads.linkd.rule import Rule
from payloads.station.rates import offered_mbit, rates_mbit
from payloads.wdmoe.allocation.inverse import Inverse, Sent, inverse_of, share_of_rate
from payloads.wdmoe.allocation.minmax_many import least_time, many_same

if TYPE_CHECKING:
    from numpy import bool_
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Mask = NDArray[bool_]

__all__ = ["many_separate"]

_PRECISION = 1e-13
_ENOUGH = 1e-10
_ROUNDS = 200
_LIMIT_ROUNDS = 8
_TABLE_ROUNDS = 4
#: Where a table's row is looked up for a device that has no band at all.
_LEAST_SHARE = 1e-6
_LN_2 = float(np.log(2.0))


def many_separate(rule: Rule, fixed_s: Array, sent: Sent, loaded: Mask, floor: float) -> Array:
    """Return each device's shares of both bands, as fractions of them.

    Args:
        rule: The links' rule.
        fixed_s: (N, D), what each device takes beside its bits.
        sent: What is sent, for N problems of D devices.
        loaded: (N, D), which devices take part; the others get the smallest share.
        floor: The smallest share.

    Returns:
        (2, N, D) shares, 1 together at most in each direction.
    """
    fixed_s = np.where(loaded, fixed_s, -np.inf)
    sent = sent._replace(mbit=np.where(loaded, sent.mbit, 0.0))
    if rule.kind == "table":
        return _by_rows(rule, fixed_s, sent, floor)
    problem = _Problem(rule, fixed_s, sent, floor)
    best, clear = problem.solve(np.zeros(sent.mbit.shape, bool))
    if clear:
        return best
    # A limit matters. One share for both directions is solved exactly, and says which links to give up.
    one = many_same(rule, fixed_s, sent, loaded, floor)
    given = np.stack([one, one])
    offered = offered_mbit(rule, sent.states, given * sent.bands[:, None, None])
    for other in (given, problem.solve((sent.mbit > 0) & (offered < rule.min_mbit))[0]):
        better = problem.time_s(other) < problem.time_s(best)
        best = np.where(better[:, None], other, best)
    return best


class _Problem:
    """N problems of D devices; where a rate meets a limit, it is given the limit, and the band is shared anew."""

    def __init__(self, rule: Rule, fixed_s: Array, sent: Sent, floor: float) -> None:
        self._rule, self._fixed_s, self._sent, self._floor = rule, fixed_s, sent, floor
        bands = sent.bands[:, None, None]
        if rule.kind == "linear":
            self._pace, self._sigma = sent.states * bands, np.full(sent.states.shape, np.inf)
        else:
            width = bands * rule.bandwidth_mhz
            self._pace = np.broadcast_to(width * rule.scale / _LN_2, sent.states.shape)
            self._sigma = sent.states / width

    def time_s(self, shares: Array) -> Array:
        """Return the largest times, (N,)."""
        time_s: Array = (self._fixed_s + self._sent.seconds(self._rule, shares)).max(axis=-1)
        return time_s

    def solve(self, lost: Mask) -> Tuple[Array, bool]:
        """Return the best shares (2, N, D) that were found, and whether no rate met a limit.

        Args:
            lost: (2, N, D), links that get the lowest rate and no more than the smallest share.
        """
        rule, sent = self._rule, self._sent
        held_s = np.where(np.isfinite(self._fixed_s), self._fixed_s, 0.0)
        low = np.full(sent.mbit.shape, self._floor)
        left = sent.mbit > 0
        best = np.full(sent.mbit.shape, 1.0 / sent.mbit.shape[-1])
        limited = lost | (left & (sent.states <= 0))
        high = np.zeros(limited.shape, bool)
        clear = True
        for _ in range(_LIMIT_ROUNDS):
            if limited.any():
                clear = False
                limit = np.where(high, rule.max_mbit, rule.min_mbit)
                held_s = held_s + np.where(limited, sent.mbit / limit, 0.0).sum(axis=0)
                low = np.where(high, np.maximum(self._share_of_highest(high), low), low)
                left &= ~limited
            work = np.where(left, sent.mbit / np.where(left, self._pace, 1.0), 0.0)
            sigma = np.where(left | (rule.kind == "linear"), self._sigma, 1.0)
            shares = _without_limits(held_s, work, sigma, low)
            better = self.time_s(shares) < self.time_s(best)
            best = np.where(better[:, None], shares, best)
            offered = offered_mbit(rule, sent.states, shares * sent.bands[:, None, None])
            high = left & (offered > rule.max_mbit)
            limited = high | (left & (offered < rule.min_mbit))
            if not limited.any():
                break
        return best, clear

    def _share_of_highest(self, links: Mask) -> Array:
        """Return the shares at which these links come to the highest rate."""
        ends = self._rule.max_mbit / np.where(links, self._pace, 1.0)
        if self._rule.kind == "linear":
            return ends
        return share_of_rate(self._sigma, ends)


def _without_limits(held_s: Array, work: Array, sigma: Array, low: Array) -> Array:
    """Return the shares (2, N, D) that are best where no rate has a limit, each at least ``low``."""
    at_low = work == 0.0
    if np.isinf(sigma).any():
        return _linear(held_s, work, low, at_low)[1]
    shares: Array = np.maximum(np.full(work.shape, 1.0 / work.shape[-1]), low)
    before = np.full(work.shape[1], np.inf)
    for _ in range(_ROUNDS):
        given = np.where(work > 0, shares, 1.0)
        x = sigma / given
        log = np.log1p(x)
        bend = np.where(x < 1e-3, x * x * (0.5 - x * (2 / 3 - 0.75 * x)), log - x / (1.0 + x))
        slopes = work * bend / (log * log)
        tangent_s = held_s + ((work / log - slopes) / given).sum(axis=0)
        time_s, shares = _linear(tangent_s, slopes, low, at_low)
        if (before - time_s <= _ENOUGH * time_s).all():
            break
        before = time_s
    return shares


def _linear(fixed_s: Array, work: Array, low: Array, at_low: Mask) -> Tuple[Array, Array]:
    """Minimise the largest ``fixed + sum over directions of work / share``.

    Args:
        fixed_s: (N, D).
        work: (2, N, D), seconds at share 1.
        low: (2, N, D), smallest shares.
        at_low: (2, N, D), which shares are thought to be the smallest; it is changed to those that are.

    Returns:
        (N,) times, and (2, N, D) shares.
    """
    for _ in range(20):
        budgets = 1.0 - np.where(at_low, low, 0.0).sum(axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            held = np.where(at_low & (work > 0), work / low, 0.0).sum(axis=0)
        roots = np.where(at_low, 0.0, np.sqrt(work / budgets[..., None]))
        time_s, prices = _eigenvalue_one(fixed_s + held, roots)
        scales = (prices / np.sqrt(budgets))[..., None]
        span = (time_s[:, None] - fixed_s)[None]
        some = span > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            root = np.sqrt(work)
            both = (root * scales).sum(axis=0)
            wanted = np.where(work > 0, root * both / (scales * span), 0.0)
            # With one direction only there is nothing to divide, whatever its band's price.
            wanted = np.where((work[::-1] == 0) & (work > 0), work / span, wanted)
            other = wanted[::-1] < low[::-1]
            after = work / (span - work[::-1] / low[::-1])
        wanted = np.where(other & (wanted >= low), after, wanted)
        wanted = np.where(some, wanted, 0.0)
        now = np.where(at_low, wanted <= low * (1 + 1e-12), wanted < low * (1 - 1e-12))
        shares = np.maximum(wanted, low)
        same = bool((now == at_low).all())
        at_low[...] = now
        if same:
            break
    above = np.where(shares > low, shares - low, 0.0)
    total = above.sum(axis=-1, keepdims=True)
    left = 1.0 - low.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = above / np.where(total > 0, total, 1.0)
    # Where the prices ran away there is no better start than equal parts.
    sound = np.isfinite(parts).all(axis=-1, keepdims=True)
    return time_s, low + left * np.where(sound, parts, 1.0 / parts.shape[-1])


def _eigenvalue_one(fixed_s: Array, roots: Array) -> Tuple[Array, Array]:
    """Return where the matrix sum of v v' / (T - fixed) has the largest eigenvalue 1, (N,), and its vector, (2, N)."""
    one, two = roots
    some = (one > 0) | (two > 0)
    value, vector = _eigen((one * one).sum(axis=1), (one * two).sum(axis=1), (two * two).sum(axis=1))
    weights = (vector[0][:, None] * one + vector[1][:, None] * two) ** 2
    time_s = (weights * fixed_s).sum(axis=1) / np.where(value > 0, value, 1.0) + value
    alone = np.where(some, fixed_s + one * one + two * two, -np.inf)
    time_s = np.maximum(time_s, alone.max(axis=1))
    time_s = np.where(some.any(axis=1), time_s, fixed_s.max(axis=1))
    for _ in range(_ROUNDS):
        part = np.where(some, 1.0 / np.where(some, time_s[:, None] - fixed_s, 1.0), 0.0)
        a, b = one * part, two * part
        value, vector = _eigen((one * a).sum(axis=1), (one * b).sum(axis=1), (two * b).sum(axis=1))
        bend = ((vector[0][:, None] * a + vector[1][:, None] * b) ** 2).sum(axis=1)
        step = np.where(bend > 0, value * (value - 1.0) / np.where(bend > 0, bend, 1.0), 0.0)
        time_s = time_s + step
        if (step <= _PRECISION * time_s).all():
            break
    return time_s, vector


def _eigen(aa: Array, ab: Array, bb: Array) -> Tuple[Array, Array]:
    """Return the largest eigenvalues of ((aa, ab), (ab, bb)), (N,), and their vectors of length 1, (2, N)."""
    half = (aa - bb) / 2.0
    root = np.sqrt(half * half + ab * ab)
    vector = np.where(half >= 0, [half + root, ab], [ab, root - half])
    length = np.sqrt((vector * vector).sum(axis=0))
    vector = np.where(length > 0, vector / np.where(length > 0, length, 1.0), np.sqrt(0.5))
    return (aa + bb) / 2.0 + root, vector


def _by_rows(rule: Rule, fixed_s: Array, sent: Sent, floor: float) -> Array:
    """Return shares under a table: a division of each device's time, then the smallest shares that it allows."""
    bands = sent.bands[:, None, None]
    best = shares = np.full(sent.mbit.shape, 1.0 / sent.mbit.shape[-1])
    best_s = (fixed_s + sent.seconds(rule, best)).max(axis=-1)
    equal_s = sent.mbit / rates_mbit(rule, sent.states, shares * bands)
    inverses = [
        inverse_of(rule, sent._replace(mbit=sent.mbit * side[:, None, None]), floor) for side in np.eye(2)
    ]
    held_s = np.where(np.isfinite(fixed_s), fixed_s, 0.0)
    low, at_low = np.full(sent.mbit.shape, floor), sent.mbit == 0
    for _ in range(_TABLE_ROUNDS):
        around = np.maximum(shares, _LEAST_SHARE)
        work = sent.mbit / rates_mbit(rule, sent.states, around * bands) * around
        guess = _linear(held_s, work, low, at_low)[1]
        spent = np.maximum(work / np.maximum(guess, _LEAST_SHARE), 1e-12 * sent.mbit)
        total = spent.sum(axis=0)
        parts = np.where(total > 0, spent / np.where(total > 0, total, 1.0), 0.5)
        divided = _Divided(inverses, fixed_s, parts)
        least_s = np.stack([inverse.best_s for inverse in inverses]) / np.where(parts > 0, parts, 1.0)
        worst_s = equal_s / np.where(parts > 0, parts, 1.0)
        time_s = least_time(
            divided.area, (fixed_s + least_s).max(axis=(0, -1)), (fixed_s + worst_s).max(axis=(0, -1))
        )
        shares = divided.shares(time_s)[0]
        got_s = (fixed_s + sent.seconds(rule, shares)).max(axis=-1)
        better = got_s < best_s
        best, best_s = np.where(better[:, None], shares, best), np.where(better, got_s, best_s)
    return best


class _Divided(NamedTuple):
    """What the bands have to give where each device's time is divided between its directions in fixed parts."""

    inverses: Sequence[Inverse]
    fixed_s: Array
    parts: Array

    def shares(self, time_s: Array) -> Tuple[Array, Array]:
        """Return the smallest shares (2, N, D) at times (N,), and how fast they fall."""
        span = np.where(np.isfinite(self.fixed_s), time_s[:, None] - self.fixed_s, 1e300)
        found = [inverse(part * span) for inverse, part in zip(self.inverses, self.parts)]
        return np.stack([shares for shares, _ in found]), np.stack([bend for _, bend in found]) * self.parts

    def area(self, time_s: Array) -> Tuple[Array, Array, Array]:
        """Return the sums of the band that is fuller, as :func:`least_time` wants them."""
        shares, bend = self.shares(time_s)
        fuller = shares.sum(axis=-1).argmax(axis=0)
        row = np.arange(len(time_s))
        shares, bend = shares[fuller, row], bend[fuller, row]
        falls = np.where(bend > 0, shares, 0.0).sum(axis=-1)
        return falls, np.where(bend > 0, 0.0, shares).sum(axis=-1), bend.sum(axis=-1)
