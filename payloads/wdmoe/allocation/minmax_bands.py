"""A share of each band for each of a few devices, in plain floats, as a base station asks for it.

The problem, and where its mathematics come from, stand in docs/bandwidth.md; linear rules are minmax_prices.py's. Here:

- Shannon's rule: around a share, a direction's time is taken as a + c / (share + d) with the same value, slope and
  curvature, which is a linear rule again, with more band. Repeated, each round more than squares what is left. Should
  that not settle, d = 0 does: then the time lies below what it is taken as, and no round is worse than the last;
- ``max_mbit``: a time that no share makes less; the problem stays convex, and the solution the best;
- ``min_mbit``: a link that would have less gets it without any share, and the bands are shared anew. Which links to
  give up is a question of sets: it is answered twice, and one share for both directions is looked at as well.
"""

from __future__ import annotations

from math import log1p
from typing import TYPE_CHECKING, List, Optional, Sequence, Tuple

from payloads.wdmoe.allocation.minmax_few import SMALL_X, few_same
from payloads.wdmoe.allocation.minmax_prices import FREE, LOW, Pair, Pins, linear_bands

if TYPE_CHECKING:
    from payloads.wdmoe.allocation.minmax_few import Link

__all__ = ["few_separate"]

_INFINITE = float("inf")
_ROUNDS = 200
#: By how much of it a latency may be off what the last round took it for.
_ALIKE = 1e-10
#: What the last round changes of the latency; what it leaves is less than the square.
_LAST_CHANGE = 1e-6
#: Rounds with matched curvatures before the plain tangents, which always end.
_CURVED_ROUNDS = 20
#: What a round leaves of a share, at least: the curve is not to be trusted far from where it was taken.
_MOST_CUT = 0.1
#: How often links below the lowest rate are given up.
_LOST_ROUNDS = 8
#: How far a rate may be below the lowest, as a part of it.
_SLACK = 1e-11

Floats = List[float]
Flags = Tuple[List[bool], List[bool]]


def few_separate(
    fixed: Floats, down: Sequence[Link], up: Sequence[Link], budget: float, floor: float
) -> Optional[Pair]:
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
    problem = _Problem(fixed, (down, up), budget, floor)
    found = problem.solve(None)
    if found is None:
        return None
    best_s, best, gave_up = found
    # Nothing is to be gained from giving up a link that at its lowest rate would not be through in time.
    if (
        any(gave_up[0])
        or any(gave_up[1])
        or any(
            one.work and two.work and f + min(one.most_s + two.least_s, two.most_s + one.least_s) < best_s
            for f, one, two in zip(fixed, down, up)
        )
    ):
        one = few_same(fixed, down, up, budget, floor)
        if one is not None:
            same = one, one
            lost = problem.below(same)
            others = [(problem.seconds(same), same, lost)]
            if lost != gave_up and (any(lost[0]) or any(lost[1])):
                again = problem.solve(lost)
                others += [] if again is None else [again]
            best = min([found, *others], key=lambda each: each[0])[1]
    return best


class _Problem:
    """One layer."""

    def __init__(
        self, fixed: Floats, links: Tuple[Sequence[Link], Sequence[Link]], budget: float, floor: float
    ) -> None:
        self._fixed, self._links, self._budget, self._floor = fixed, links, budget, floor
        self._linear = links[0][0].sigma == _INFINITE
        self._lows = [floor] * len(fixed)

    def seconds(self, shares: Pair) -> float:
        """Return the latency with shares."""
        times = list(self._fixed)
        for links, row in zip(self._links, shares):
            for k, link in enumerate(links):
                if link.work:
                    times[k] += min(max(_free_seconds(link, row[k]), link.least_s), link.most_s)
        return max(times)

    def below(self, shares: Pair) -> Flags:
        """Return which links are below the lowest rate with shares."""
        flags = [
            [bool(link.work) and _free_seconds(link, w) > link.most_s for link, w in zip(links, row)]
            for links, row in zip(self._links, shares)
        ]
        return flags[0], flags[1]

    def solve(self, lost: Optional[Flags]) -> Optional[Tuple[float, Pair, Flags]]:
        """Return the best latency that is found, its shares, and which links were given up.

        Args:
            lost: Links that get the lowest rate and no more than the smallest share.
        """
        count = len(self._fixed)
        held = list(self._fixed)
        works: Pair = [0.0] * count, [0.0] * count
        for side, (links, each) in enumerate(zip(self._links, works)):
            for k, link in enumerate(links):
                if not link.work:
                    continue
                if lost is not None and lost[side][k]:
                    held[k] += link.most_s
                elif self._floor > 0.0 and _free_seconds(link, self._floor) <= link.least_s:
                    held[k] += link.least_s  # the smallest share is enough for the highest rate
                else:
                    each[k] = link.work
        shares: Pair = [self._budget / count] * count, [self._budget / count] * count
        best: Optional[Tuple[float, Pair]] = None
        pins: Pins = (
            [LOW if not work else FREE for work in works[0]],
            [LOW if not work else FREE for work in works[1]],
        )
        gave_up: Flags = ([False] * count, [False] * count) if lost is None else lost
        for _ in range(_LOST_ROUNDS):
            found: Optional[Pair] = (self._lows, self._lows)
            if any(works[0]) or any(works[1]):
                found = self._without_lowest(held, works, pins, shares)
            if found is None:
                break
            shares = _spread(found[0], self._budget), _spread(found[1], self._budget)
            time_s = self.seconds(shares)
            if best is None or time_s < best[0]:
                best = time_s, shares
            settled = True
            for links, each, row, pin, gone in zip(self._links, works, shares, pins, gave_up):
                for k, link in enumerate(links):
                    if each[k] and _free_seconds(link, row[k]) > link.most_s * (1.0 + _SLACK):
                        held[k] += link.most_s
                        each[k], pin[k], gone[k], settled = 0.0, LOW, True, False
            if settled:
                break
        return None if best is None else (*best, gave_up)

    def _without_lowest(self, held: Floats, works: Pair, pins: Pins, shares: Pair) -> Optional[Pair]:
        """Return the best shares where no rate has a lower limit.

        Args:
            held: Seconds that no share changes.
            works: What work links have; those that have none get the smallest share.
            pins: Which shares are at an end, to begin with; it is changed to those that are.
            shares: Where to begin.
        """
        lows, budget = self._lows, self._budget
        count = len(held)
        if self._linear:
            fewest = [
                [link.least_s if work else 0.0 for link, work in zip(links, row)]
                for links, row in zip(self._links, works)
            ]
            found = linear_bands(held, works, (fewest[0], fewest[1]), (budget, budget), (lows, lows), pins)
            return None if found is None else found[1]
        before_s = _INFINITE
        for turn in range(_ROUNDS):
            curved = turn < _CURVED_ROUNDS
            if turn == _CURVED_ROUNDS:
                for pin, row in zip(pins, works):
                    pin[:] = [FREE if work else LOW for work in row]
            at = list(held)
            slopes: Pair = [0.0] * count, [0.0] * count
            ahead: Pair = [0.0] * count, [0.0] * count
            least = [0.0] * count, [0.0] * count
            for links, row, each, slope, beyond, few in zip(self._links, works, shares, slopes, ahead, least):
                for k, work in enumerate(row):
                    if work:
                        link = links[k]
                        f, slope[k], beyond[k] = _around(work, link.sigma, each[k], curved)
                        at[k] += f
                        few[k] = link.least_s - f
            found = linear_bands(
                at,
                slopes,
                least,
                (budget + sum(ahead[0]), budget + sum(ahead[1])),
                ([low + d for low, d in zip(lows, ahead[0])], [low + d for low, d in zip(lows, ahead[1])]),
                pins,
                0.0 if before_s == _INFINITE else before_s,
            )
            if found is None:
                return None
            time_s, given = found
            shares, cut = self._next(works, shares, given, ahead)
            # What is cut less than it should be leaves too little for others.
            fit = (_spread(shares[0], budget), _spread(shares[1], budget)) if cut else shares
            change_s = abs(before_s - time_s)
            if (
                change_s <= _LAST_CHANGE * time_s
                and abs(self._latency(held, works, fit) - time_s) <= _ALIKE * time_s
            ):
                return fit
            before_s = time_s
        return shares

    def _next(self, works: Pair, before: Pair, given: Pair, ahead: Pair) -> Tuple[Pair, bool]:
        """Return the shares after a round, and whether one should have fallen further than a round may let it."""
        cut = False
        after: List[Floats] = []
        for row in zip(works, before, given, ahead):
            each = []
            for work, was, w, d in zip(*row):
                w -= d
                if work and w < _MOST_CUT * was:
                    w, cut = _MOST_CUT * was, True
                each.append(w if w > self._floor else self._floor)
            after.append(each)
        return (after[0], after[1]), cut

    def _latency(self, held: Floats, works: Pair, shares: Pair) -> float:
        """Return the latency where no rate has a lower limit."""
        times = list(held)
        for links, row, each in zip(self._links, works, shares):
            for k, work in enumerate(row):
                if work:
                    link, share = links[k], each[k]
                    time_s = work / (share * log1p(link.sigma / share))
                    times[k] += time_s if time_s > link.least_s else link.least_s
        return max(times)


def _free_seconds(link: Link, share: float) -> float:
    """Return a direction's time with a share, but for limits."""
    if share <= 0.0:
        return _INFINITE
    return link.work / share if link.sigma == _INFINITE else link.work / (share * log1p(link.sigma / share))


def _around(work: float, sigma: float, share: float, curved: bool) -> Tuple[float, float, float]:
    """Return a, c and d such that ``a + c / (share + d)`` is the time there, and so are its slope and its curvature.

    Without the curvature d is 0, and the time lies below everywhere.
    """
    x = sigma / share
    log = log1p(x)
    y = x / (1.0 + x)
    bend = x * x * (0.5 - x * (2 / 3 - 0.75 * x)) if x < SMALL_X else log - y
    time_s = work / (share * log)
    # The time's derivative is - time bend / (share log).
    fall = time_s * bend / log
    if not curved:
        return time_s - fall, fall * share, 0.0
    ratio = 2.0 * bend / (2.0 * bend * bend / log + y * y)  # (share + d) / share
    if ratio < 1.0:  # what rounding makes of 1
        ratio = 1.0
    return time_s - fall * ratio, fall * ratio * ratio * share, (ratio - 1.0) * share


def _spread(shares: Floats, budget: float) -> Floats:
    """Return the shares, and in proportion to them what is left over."""
    total = sum(shares)
    return [share * (budget / total) for share in shares] if total > 0.0 else shares
