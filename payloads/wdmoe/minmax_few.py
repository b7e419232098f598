"""The least attention waiting latency for a handful of devices, in plain floats, as a base station asks for it.

Up to some hundred devices Python's floats beat NumPy, whose every operation costs a microsecond. The mathematics, and
where it comes from, stand in docs/bandwidth.md; in short, with u = 1 / share:

- linear rule, one share for both directions: device k takes f_k + c_k u_k, so at the optimum u_k = (T - f_k) / c_k, and
  Newton's method on 1 / sum of shares finds T from below without ever passing it;
- linear rule, a share of each band: the split of a device's time between its directions has a closed form, and T is
  where the largest eigenvalue of a 2 x 2 matrix is 1; the same Newton's method finds it;
- Shannon's rule: the time of a direction is concave in u, so its tangent lies above it: a linear problem whose optimum
  is feasible and never worse. Repeated, it converges to the optimum.

Limits of the rates are left out: where a solution meets one, nothing is returned, and minmax_many finds another.
"""

from __future__ import annotations

from math import log1p, sqrt
from typing import List, NamedTuple, Optional, Sequence, Tuple

__all__ = ["Link", "few_same", "few_separate", "linear_same", "linear_separate"]

_INFINITE = float("inf")
_ROUNDS = 200
_PRECISION = 1e-13
#: What the last round gains when each squares what is left, as with one share under Shannon's rule.
_LAST_GAIN = 1e-7
#: What a round may still gain when the rounds of two bands under Shannon's rule end: each gains a tenth of the last.
_ENOUGH = 1e-9
#: Below this, log1p(x) - x / (1 + x) is better taken from its series.
_SMALL_X = 1e-3

Floats = List[float]
Low = Tuple[List[bool], List[bool]]


class Link(NamedTuple):
    """One direction of one device: its time at a share w is ``work / (w log1p(sigma / w))``, or ``work / w``.

    Attributes:
        work: Seconds at the whole band, but for Shannon's logarithm; 0 where nothing is sent.
        sigma: The SNR over the whole band; infinite for the linear rule.
    """

    work: float
    sigma: float


def few_same(
    fixed: Floats, down: Sequence[Link], up: Sequence[Link], budget: float, floor: float
) -> Optional[Floats]:
    """Return one share for both directions of each device, as fractions of the bands.

    Args:
        fixed: What each device takes beside its bits, in seconds.
        down: Its downlink.
        up: Its uplink.
        budget: What the shares are together.
        floor: The smallest share.

    Returns:
        The shares; ``None`` where no optimum was found, which floats that are far apart may come to.
    """
    if down[0].sigma == _INFINITE:
        return linear_same(fixed, [one.work + two.work for one, two in zip(down, up)], budget, floor)[1]
    share = budget / len(fixed)
    shares = [share] * len(fixed)
    before = _INFINITE
    for _ in range(_ROUNDS):
        at, per = [], []
        for f, w, one, two in zip(fixed, shares, down, up):
            f_one, c_one = _tangent(one, w)
            f_two, c_two = _tangent(two, w)
            at.append(f + f_one + f_two)
            per.append(c_one + c_two)
        time_s, shares = linear_same(at, per, budget, floor, before, 1e-8)
        # Each round squares what is left: after one that gained this little there is nothing.
        if before - time_s <= _LAST_GAIN * time_s:
            return shares
        before = time_s
    return None


def few_separate(
    fixed: Floats, down: Sequence[Link], up: Sequence[Link], budget: float, floor: float
) -> Optional[Tuple[Floats, Floats]]:
    """Return each device's shares of both bands, as fractions of them.

    Args:
        fixed: What each device takes beside its bits, in seconds.
        down: Its downlink.
        up: Its uplink.
        budget: What the shares of a direction are together.
        floor: The smallest share.

    Returns:
        The shares of the downlink and of the uplink; ``None`` where no optimum was found.
    """
    count = len(fixed)
    if down[0].sigma == _INFINITE:
        found = linear_separate(fixed, [one.work for one in down], [two.work for two in up], budget, floor)
        return None if found is None else found[1:]
    one_w = two_w = [budget / count] * count
    before = _INFINITE
    low: Optional[Low] = None
    for _ in range(_ROUNDS):
        ones = [_tangent(link, w) for link, w in zip(down, one_w)]
        twos = [_tangent(link, w) for link, w in zip(up, two_w)]
        at = [f + one[0] + two[0] for f, one, two in zip(fixed, ones, twos)]
        slopes = [one[1] for one in ones], [two[1] for two in twos]
        low = low or ([slope == 0.0 for slope in slopes[0]], [slope == 0.0 for slope in slopes[1]])
        found = linear_separate(at, *slopes, budget, floor, low)
        if found is None:
            return None
        time_s, one_w, two_w = found
        if before - time_s <= _ENOUGH * time_s:
            return one_w, two_w
        before = time_s
    return None


def _tangent(link: Link, share: float) -> Tuple[float, float]:
    """Return f and c such that f + c u touches the link's time at u = 1 / share, and lies above it elsewhere."""
    work, sigma = link
    if work == 0.0:
        return 0.0, 0.0
    x = sigma / share
    log = log1p(x)
    bend = x * x * (0.5 - x * (2 / 3 - 0.75 * x)) if x < _SMALL_X else log - x / (1.0 + x)
    slope = work * bend / (log * log)
    return work / (share * log) - slope / share, slope


def linear_same(
    fixed: Floats,
    per: Floats,
    budget: float,
    floor: float,
    start_s: float = _INFINITE,
    precision: float = _PRECISION,
) -> Tuple[float, Floats]:
    """Minimise the largest ``fixed + per / share``.

    Args:
        fixed: Seconds that no share changes.
        per: Seconds at share 1; not negative, not all 0.
        budget: What the shares are together; more than all floors.
        floor: The smallest share.
        start_s: A time that is not below the largest, if one is known.
        precision: The last step's part of the time.

    Returns:
        The largest time among the devices with a share above the floor, and the shares.
    """
    # Two lower bounds: everything for one device, and Jensen's inequality.
    least_s = 0.0
    if start_s == _INFINITE:
        whole = sum(per)
        least_s = sum(map(_times, fixed, per)) / whole + whole / budget
    for f, c in zip(fixed, per):
        if f + c / budget > least_s:
            least_s = f + c / budget
    time_s = start_s if start_s < _INFINITE else least_s
    for _ in range(_ROUNDS):
        above = bend = 0.0
        left = budget
        for f, c in zip(fixed, per):
            span = time_s - f
            share = c / span if span > 0.0 else 0.0
            if share <= floor:
                left -= floor
            else:
                above += share
                bend += share / span
        if not bend > 0.0:
            time_s = least_s
            break
        step = above * (above / left - 1.0) / bend
        # From above it comes below; there it stays.
        time_s = max(time_s + step, least_s)
        if -precision * time_s <= step <= precision * time_s:
            break
    shares = []
    for f, c in zip(fixed, per):
        share = c / (time_s - f) if time_s > f else 0.0
        shares.append(share if share > floor else floor)
    return time_s, _fill(shares, budget, floor)


def linear_separate(
    fixed: Floats, down: Floats, up: Floats, budget: float, floor: float, low: Optional[Low] = None
) -> Optional[Tuple[float, Floats, Floats]]:
    """Minimise the largest ``fixed + down / share_down + up / share_up``; both bands are shared for themselves.

    Args:
        fixed: Seconds that no share changes.
        down: Seconds of the downlink at share 1; not negative.
        up: Seconds of the uplink at share 1; not negative.
        budget: What the shares of a direction are together; more than all floors.
        floor: The smallest share.
        low: Which shares of both bands are thought to be at the floor, to begin with; it is changed to those that are.

    Returns:
        The largest time among the devices with a share above the floor, and the shares of both bands; ``None`` where
        the set of shares at the floor is not found.
    """
    count = len(fixed)
    low = low or ([value == 0.0 for value in down], [value == 0.0 for value in up])
    for _ in range(20):
        budgets = budget - floor * sum(low[0]), budget - floor * sum(low[1])
        at, ones, twos = list(fixed), [0.0] * count, [0.0] * count
        for k in range(count):
            for pinned, work, root, band in (
                (low[0][k], down[k], ones, budgets[0]),
                (low[1][k], up[k], twos, budgets[1]),
            ):
                if not pinned:
                    root[k] = sqrt(work / band)
                elif work:
                    at[k] += work / floor
        time_s, price_one, price_two = _largest_eigenvalue_one(at, ones, twos)
        one_w, two_w, same = _split(fixed, down, up, low, (price_one, price_two, time_s, floor), budgets)
        if same:
            return time_s, _fill(one_w, budget, floor), _fill(two_w, budget, floor)
    return None


def _largest_eigenvalue_one(fixed: Floats, ones: Floats, twos: Floats) -> Tuple[float, float, float]:
    """Return where the matrix sum of v v' / (T - fixed), v = (one, two), has the eigenvalue 1, and its eigenvector.

    Newton's method on 1 / (largest eigenvalue), which is concave in T, never passes it from below.
    """
    aa = sum(map(_times, ones, ones))
    ab = sum(map(_times, ones, twos))
    bb = sum(map(_times, twos, twos))
    value, e, g = _eigen(aa, ab, bb)
    weights = [(e * one + g * two) ** 2 for one, two in zip(ones, twos)]
    time_s = sum(map(_times, weights, fixed)) / value + value
    for f, one, two in zip(fixed, ones, twos):
        alone = f + one * one + two * two
        if alone > time_s and alone > f:
            time_s = alone
    for _ in range(_ROUNDS):
        aa = ab = bb = aa_bend = ab_bend = bb_bend = 0.0
        for f, one, two in zip(fixed, ones, twos):
            if one == 0.0 and two == 0.0:
                continue
            part = 1.0 / (time_s - f)
            one_part, two_part = one * part, two * part
            aa += one * one_part
            ab += one * two_part
            bb += two * two_part
            aa_bend += one_part * one_part
            ab_bend += one_part * two_part
            bb_bend += two_part * two_part
        value, e, g = _eigen(aa, ab, bb)
        bend = e * e * aa_bend + 2.0 * e * g * ab_bend + g * g * bb_bend
        step = value * (value - 1.0) / bend
        time_s += step
        if step <= _PRECISION * time_s:
            break
    return time_s, e, g


def _eigen(aa: float, ab: float, bb: float) -> Tuple[float, float, float]:
    """Return the largest eigenvalue of ((aa, ab), (ab, bb)), none negative, and its eigenvector of length 1."""
    half = (aa - bb) / 2.0
    root = sqrt(half * half + ab * ab)
    e, g = (half + root, ab) if half >= 0.0 else (ab, root - half)
    length = sqrt(e * e + g * g)
    if length == 0.0:  # a multiple of the identity
        return aa, sqrt(0.5), sqrt(0.5)
    return (aa + bb) / 2.0 + root, e / length, g / length


def _split(
    fixed: Floats,
    down: Floats,
    up: Floats,
    low: Low,
    at: Tuple[float, float, float, float],
    budgets: Tuple[float, float],
) -> Tuple[Floats, Floats, bool]:
    """Return the shares at prices of the bands and a time, and whether those at the floor are the ones that were taken.

    ``low``, which shares are at the floor, is changed to what it ought to be.
    """
    price_one, price_two, time_s, floor = at
    scale_one, scale_two = price_one / sqrt(budgets[0]), price_two / sqrt(budgets[1])
    one_w, two_w = [floor] * len(fixed), [floor] * len(fixed)
    same = True
    for k, (f, a, b) in enumerate(zip(fixed, down, up)):
        span = time_s - f
        if span <= 0.0:  # whatever it gets, it is not what the others wait for
            one, two = 0.0, 0.0
        elif a == 0.0 or b == 0.0:
            one, two = a / span, b / span
        else:
            one_root, two_root = sqrt(a), sqrt(b)
            both = one_root * scale_one + two_root * scale_two
            # A band that nobody is short of is given away.
            one = one_root * both / (scale_one * span) if scale_one > 0.0 else _INFINITE
            two = two_root * both / (scale_two * span) if scale_two > 0.0 else _INFINITE
            # Who is given more than it would take in one direction takes less of the other.
            if one < floor and two >= floor:
                two = b / (span - a / floor)
            elif two < floor and one >= floor:
                one = a / (span - b / floor)
        slack = 1e-12 * floor
        for pinned, share, shares in ((low[0], one, one_w), (low[1], two, two_w)):
            if share > floor:
                shares[k] = share
            at_floor = share <= floor + slack if pinned[k] else share < floor - slack
            if at_floor != pinned[k]:
                pinned[k] = at_floor
                same = False
    return one_w, two_w, same


def _fill(shares: Floats, budget: float, floor: float) -> Floats:
    """Return the shares, those above the floor scaled so that all are the budget together."""
    above = sum(share for share in shares if share > floor)
    if above <= 0.0:
        return shares
    factor = (budget - (sum(shares) - above)) / above
    return [share * factor if share > floor else share for share in shares]


def _times(one: float, two: float) -> float:
    return one * two
