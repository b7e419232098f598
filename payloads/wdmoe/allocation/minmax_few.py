"""One share for both directions of each of a few devices, in plain floats, as a base station asks for it.

Up to some hundred devices Python's floats beat NumPy, whose every operation costs a microsecond. The mathematics, and
where it comes from, stand in docs/bandwidth.md; in short, with u = 1 / share:

- linear rule: device k takes f_k + c_k u_k, so at the optimum u_k = (T - f_k) / c_k, and Newton's method on 1 / sum of
  shares finds T from below without ever passing it;
- Shannon's rule: the time of a direction is concave in u, so its tangent lies above it: a linear problem whose optimum
  is feasible and never worse. Repeated, it converges to the optimum.

A link at a limit of its rate has a tangent too: the limit's time, whatever its share. Shares at which all who have more
than the smallest are done at once, and each of them would be later with less, cannot be beaten, limits or not. Where
the tangents do not come to such shares, as where a device is at both its highest rates, T is searched for
(:mod:`payloads.wdmoe.allocation.minmax_search`).
"""

from __future__ import annotations

from math import log1p
from typing import List, NamedTuple, Optional, Sequence, Tuple

from payloads.wdmoe.allocation.minmax_search import LinearNeed, Need, ShannonNeed, search_same

__all__ = ["Link", "few_same", "linear_same", "tangent"]

_INFINITE = float("inf")
_ROUNDS = 200
_PRECISION = 1e-13
#: Rounds of tangents before T is searched for, which costs about as much as five of them, and always ends.
_TANGENT_ROUNDS = 6
#: What a round changes of the time when the next one squares it away.
_LAST_GAIN = 1e-6
#: By how much of it the times of those who are done last may differ.
_ALIKE = 1e-11
#: Below this, log1p(x) - x / (1 + x) is better taken from its series.
SMALL_X = 1e-3

Floats = List[float]


class Link(NamedTuple):
    """One direction of one device: its time at a share w is ``work / (w log1p(sigma / w))``, or ``work / w``.

    Attributes:
        work: Seconds at the whole band, but for Shannon's logarithm; 0 where nothing is sent.
        sigma: The SNR over the whole band; infinite for the linear rule.
        least_s: Seconds at the highest rate, which no share makes fewer.
        most_s: Seconds at the lowest rate, which no share makes more.
    """

    work: float
    sigma: float
    least_s: float
    most_s: float


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
    needs: List[Need]
    if down[0].sigma == _INFINITE:
        per = [one.work + two.work for one, two in zip(down, up)]
        time_s, shares = _INFINITE, [budget / len(fixed)] * len(fixed)
        if any(per):
            time_s, shares = linear_same(fixed, per, budget, floor)
            if all(
                one.least_s <= one.work / w <= one.most_s and two.least_s <= two.work / w <= two.most_s
                for w, one, two in zip(shares, down, up)
                if w > 0.0
            ):
                return shares
        needs = [LinearNeed(one, two, budget, floor) for one, two in zip(down, up)]
        return search_same(fixed, needs, budget, shares, time_s)
    time_s, shares, optimal = _by_tangents(fixed, down, up, budget, floor)
    if optimal:
        return shares
    needs = [ShannonNeed(one, two, budget, floor, w) for one, two, w in zip(down, up, shares)]
    return search_same(fixed, needs, budget, shares, time_s)


def _by_tangents(
    fixed: Floats, down: Sequence[Link], up: Sequence[Link], budget: float, floor: float
) -> Tuple[float, Floats, bool]:
    """Return a time, shares, and whether nothing beats them."""
    time_s = before_s = _INFINITE
    shares = [budget / len(fixed)] * len(fixed)
    above = False  # whether the last time is known not to be below the least
    for _ in range(_TANGENT_ROUNDS):
        at, per = [], []
        optimal = before_s - time_s <= _LAST_GAIN * time_s
        limited = tight = False
        latest_s = time_s * (1.0 + _ALIKE)
        for f, w, one, two in zip(fixed, shares, down, up):
            f_one, c_one = tangent(one, w)
            f_two, c_two = tangent(two, w)
            f += f_one + f_two
            c = c_one + c_two
            at.append(f)
            per.append(c)
            if (c_one == 0.0 and one.work) or (c_two == 0.0 and two.work):
                limited = True
            if optimal:
                done_s = f + c / w if c else f
                if done_s > latest_s:
                    optimal = False
                elif w > floor:
                    tight = True
                    if not (c and done_s >= time_s * (1.0 - _ALIKE)):
                        optimal = False
        if optimal and tight:
            return time_s, shares, True
        if not any(per):
            break
        before_s = time_s
        # Newton's method starts from the last time where that is an upper bound.
        above = above and not limited
        time_s, shares = linear_same(at, per, budget, floor, before_s if above else _INFINITE, 1e-9)
        above = not limited
        if limited and max([f for f, c in zip(at, per) if c == 0.0], default=0.0) >= time_s * (1.0 - _ALIKE):
            break  # the last is one whose links are both at a limit
    return time_s, shares, False


def tangent(link: Link, share: float) -> Tuple[float, float]:
    """Return f and c such that f + c u touches the link's time at u = 1 / share, and lies above it near there."""
    work, sigma, least_s, most_s = link
    if work == 0.0:
        return 0.0, 0.0
    if share <= 0.0:
        return most_s, 0.0
    x = sigma / share
    log = log1p(x)
    time_s = work / (share * log)
    if time_s <= least_s:
        return least_s, 0.0
    if time_s >= most_s:
        return most_s, 0.0
    bend = x * x * (0.5 - x * (2 / 3 - 0.75 * x)) if x < SMALL_X else log - x / (1.0 + x)
    slope = work * bend / (log * log)
    return time_s - slope / share, slope


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
        before_s, time_s = time_s, max(time_s + step, least_s)
        if abs(time_s - before_s) <= precision * time_s:
            break
    shares = []
    for f, c in zip(fixed, per):
        share = c / (time_s - f) if time_s > f else 0.0
        shares.append(share if share > floor else floor)
    return time_s, _fill(shares, budget, floor)


def _fill(shares: Floats, budget: float, floor: float) -> Floats:
    """Return the shares, those above the floor scaled so that all are the budget together."""
    above = sum(share for share in shares if share > floor)
    if above <= 0.0:
        return shares
    factor = (budget - (sum(shares) - above)) / above
    return [share * factor if share > floor else share for share in shares]


def _times(one: float, two: float) -> float:
    return one * two
