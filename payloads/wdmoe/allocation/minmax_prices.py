"""Two bands shared among a few devices whose rates are in proportion to their shares, in plain floats.

At prices of both bands a device divides its time between its directions as x : y = sqrt(a p) : sqrt(b q), and what is
left is one equation: with v = (sqrt(a), sqrt(b)), the largest eigenvalue of sum of v v' / (T - f) is 1, a 2 x 2 matrix.
Newton's method on its reciprocal, which is concave in T, finds T from below (docs/bandwidth.md). Which shares are at an
end, the smallest one or the one at the highest rate, is found as a set, and checked against the prices.
"""

from __future__ import annotations

from math import sqrt
from typing import List, Optional, Tuple

__all__ = ["FREE", "HIGH", "LOW", "Pair", "Pins", "linear_bands"]

_INFINITE = float("inf")
_ROUNDS = 200
#: The last step's part of the time; each leaves less than its square.
_PRECISION = 1e-13
_PINNED_ROUNDS = 60
#: Rounds in which all shares move to and from their ends together; after that fewer and fewer do, as they may go in
#: circles.
_ALL_AT_ONCE = 6
_HALVES = 60
#: Where the search of a time begins, in seconds, where nothing is known to take longer.
_SHORTEST_S = 1e-12
#: By how much of it a time may be beyond its end.
_SLACK = 1e-12

#: Where a share is: between its ends, at the smallest, or where the time is at its least.
FREE, LOW, HIGH = 0, 1, 2

Floats = List[float]
#: Something of each link: of the downlinks, and of the uplinks.
Pair = Tuple[Floats, Floats]
Pins = Tuple[List[int], List[int]]


def linear_bands(
    fixed: Floats,
    works: Pair,
    least: Pair,
    budgets: Tuple[float, float],
    lows: Pair,
    pins: Pins,
    near_s: float = 0.0,
) -> Optional[Tuple[float, Pair]]:
    """Minimise the largest sum of ``fixed`` and, for both directions, the larger of ``work / share`` and ``least``.

    Args:
        fixed: Seconds that no share changes.
        works: Seconds at share 1; not negative.
        least: Seconds that a direction takes at least; none where not above 0. With the smallest share it is longer.
        budgets: What the shares of a direction are together; more than all lows.
        lows: The smallest shares.
        pins: Where shares are thought to be, to begin with, ``LOW`` where there is no work; changed to where they are.
        near_s: A time that the largest is thought to be near.

    Returns:
        The largest time, and the shares of both bands; ``None`` where numbers are too far apart.
    """
    # Nobody is done before all of its links have their highest rates.
    wall_s = max([f + max(one, 0.0) + max(two, 0.0) for f, one, two in zip(fixed, *least)])
    for turn in range(_PINNED_ROUNDS):
        at = list(fixed)
        roots: List[Floats] = []
        left = list(budgets)
        for row, (work, fewest, low, pin) in enumerate(zip(works, least, lows, pins)):
            band = budgets[row]
            for k, where in enumerate(pin):
                if where == LOW:
                    band -= low[k]
                    if work[k]:
                        at[k] += work[k] / low[k]
                elif where == HIGH:
                    band -= work[k] / fewest[k]
                    at[k] += fewest[k]
            if band <= 0.0:  # too much was pinned at once
                for k, where in enumerate(pin):
                    if where == HIGH:
                        band += work[k] / fewest[k]
                        at[k] -= fewest[k]
                        pin[k] = FREE
            left[row] = band
            roots.append([sqrt(value / band) if where == FREE else 0.0 for value, where in zip(work, pin)])
        time_s, price_one, price_two = _largest_eigenvalue_one(at, roots[0], roots[1], wall_s, near_s)
        near_s = time_s
        prices = price_one / sqrt(left[0]), price_two / sqrt(left[1])
        shares, moved = _split(fixed, works, least, lows, pins, prices, time_s)
        if turn >= _ALL_AT_ONCE and moved:
            apart = min(2 + (turn - _ALL_AT_ONCE) // 6, len(moved))
            moved = moved[turn // 3 % apart :: apart]
        for row, k, where in moved:
            pins[row][k] = where
        if not moved:
            filled = _fill(shares[0], budgets[0], lows[0]), _fill(shares[1], budgets[1], lows[1])
            return max(time_s, *at), filled
    return _by_halves(fixed, works, least, budgets, lows, wall_s)


def _by_halves(
    fixed: Floats, works: Pair, least: Pair, budgets: Tuple[float, float], lows: Pair, low_s: float
) -> Optional[Tuple[float, Pair]]:
    """Return what :func:`linear_bands` does, where its sets go in circles: slow, and certain.

    At a time T the need for a band falls as its price rises, and that for the other rises. So a price at which both
    are short proves that T is too early, one at which none is that it is not.
    """
    ends = [FREE if work else LOW for work in works[0]], [FREE if work else LOW for work in works[1]]

    def fits(time_s: float) -> Optional[Pair]:
        cheap, dear = 0.0, 1.0
        for _ in range(_HALVES):
            price = (cheap + dear) / 2.0
            shares, _moved = _split(fixed, works, least, lows, ends, (price, 1.0 - price), time_s)
            short = sum(shares[0]) > budgets[0], sum(shares[1]) > budgets[1]
            if short[0] and short[1]:
                return None
            if not (short[0] or short[1]):
                return shares
            cheap, dear = (price, dear) if short[0] else (cheap, price)
        return None

    high_s = low_s = max(low_s * (1.0 + 1e-15), _SHORTEST_S)
    best = fits(high_s)
    while best is None and high_s < _INFINITE:
        low_s, high_s = high_s, 2.0 * high_s
        best = fits(high_s)
    if best is None:
        return None
    while high_s - low_s > _PRECISION * high_s:
        time_s = (low_s + high_s) / 2.0
        if not low_s < time_s < high_s:
            break
        found = fits(time_s)
        if found is None:
            low_s = time_s
        else:
            best, high_s = found, time_s
    return high_s, (_fill(best[0], budgets[0], lows[0]), _fill(best[1], budgets[1], lows[1]))


def _largest_eigenvalue_one(
    fixed: Floats, ones: Floats, twos: Floats, least_s: float, near_s: float
) -> Tuple[float, float, float]:
    """Return where the matrix sum of v v' / (T - fixed), v = (one, two), has the eigenvalue 1, and its eigenvector.

    T is ``least_s`` at least; there the bands need not be used up.
    """
    squares = [(f, one * one, one * two, two * two) for f, one, two in zip(fixed, ones, twos) if one or two]
    if not squares:
        return least_s, 0.0, 0.0
    for f, one_one, _, two_two in squares:
        if f + one_one + two_two > least_s:
            least_s = f + one_one + two_two
    time_s = near_s
    if not near_s > least_s:
        time_s = least_s
        aa = sum([one_one for _, one_one, _, _ in squares])
        ab = sum([one_two for _, _, one_two, _ in squares])
        bb = sum([two_two for _, _, _, two_two in squares])
        value, e, g = _eigen(aa, ab, bb)
        ee, eg, gg = e * e, 2.0 * e * g, g * g
        mean = sum([f * (ee * one + eg * both + gg * two) for f, one, both, two in squares])
        if mean / value + value > time_s:
            time_s = mean / value + value
    for _ in range(_ROUNDS):
        aa = ab = bb = aa_bend = ab_bend = bb_bend = 0.0
        for f, one_one, one_two, two_two in squares:
            part = 1.0 / (time_s - f)
            one_one *= part
            one_two *= part
            two_two *= part
            aa += one_one
            ab += one_two
            bb += two_two
            aa_bend += one_one * part
            ab_bend += one_two * part
            bb_bend += two_two * part
        value, e, g = _eigen(aa, ab, bb)
        step = value * (value - 1.0) / (e * e * aa_bend + 2.0 * e * g * ab_bend + g * g * bb_bend)
        # From above it comes below; there it stays.
        before_s, time_s = time_s, max(time_s + step, least_s)
        if abs(time_s - before_s) <= _PRECISION * time_s:
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
    works: Pair,
    least: Pair,
    lows: Pair,
    pins: Pins,
    prices: Tuple[float, float],
    time_s: float,
) -> Tuple[Pair, List[Tuple[int, int, int]]]:
    """Return the shares at prices of the bands and a time, and which, by row and device, ought to be at which end."""
    price_one, price_two = prices
    (works_one, works_two), (least_one, least_two), (lows_one, lows_two) = works, least, lows
    (pins_one, pins_two), moved = pins, []
    one_w, two_w = list(lows_one), list(lows_two)
    for k, f in enumerate(fixed):
        span = time_s - f
        a, b = works_one[k], works_two[k]
        # The division that the prices ask for, within what the other direction can take and leave.
        if a == 0.0:
            if b == 0.0:
                continue
            x, y = 0.0, span
        elif b == 0.0:
            x, y = span, 0.0
        else:
            one, two = sqrt(a) * price_one, sqrt(b) * price_two
            both = one + two
            x = span * one / both if both > 0.0 else span / 2.0
            y = span - x
            if not (pins_one[k] or pins_two[k]) and x > least_one[k] and y > least_two[k] and x > 0.0 < y:
                one, two = a / x, b / y
                if one >= lows_one[k] and two >= lows_two[k]:
                    one_w[k], two_w[k] = one, two
                    continue  # as most are: at no end
        if a:
            low, fewest = lows_one[k], least_one[k]
            most = a / low if low > 0.0 else _INFINITE
            if b:
                other_low = lows_two[k]
                idle = span - b / other_low if other_low > 0.0 else -_INFINITE
                full = span - least_two[k] if least_two[k] > 0.0 else span
                own = idle if x < idle else full if x > full else x
            else:
                own = x
            where = _end(own, fewest, most, pins_one[k])
            if where != pins_one[k]:
                moved.append((0, k, where))
            one_w[k] = low if where == LOW else a / (fewest if where == HIGH else max(own, 1e-300))
        if b:
            low, fewest = lows_two[k], least_two[k]
            most = b / low if low > 0.0 else _INFINITE
            if a:
                other_low = lows_one[k]
                idle = span - a / other_low if other_low > 0.0 else -_INFINITE
                full = span - least_one[k] if least_one[k] > 0.0 else span
                own = idle if y < idle else full if y > full else y
            else:
                own = y
            where = _end(own, fewest, most, pins_two[k])
            if where != pins_two[k]:
                moved.append((1, k, where))
            two_w[k] = low if where == LOW else b / (fewest if where == HIGH else max(own, 1e-300))
    return (one_w, two_w), moved


def _end(time_s: float, least: float, most: float, pin: int) -> int:
    """Return where a share is whose time would be this."""
    if least > 0.0 and time_s <= least * (1.0 + _SLACK if pin == HIGH else 1.0 - _SLACK):
        return HIGH
    if time_s >= most * (1.0 - _SLACK if pin == LOW else 1.0 + _SLACK):
        return LOW
    return FREE


def _fill(shares: Floats, budget: float, lows: Floats) -> Floats:
    """Return the shares, those above the smallest scaled so that all are the budget together."""
    above = held = 0.0
    for share, low in zip(shares, lows):
        if share > low:
            above += share
        else:
            held += share
    if above <= 0.0:
        return shares
    factor = (budget - held) / above
    return [share * factor if share > low else share for share, low in zip(shares, lows)]
