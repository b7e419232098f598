"""Performance regions: what the users get together, and whether one scheme's lies outside another's.

A scheme's region is every pair of qualities (user 1, user 2) that it can give or undercut: what lies below and to the
left of its swept points and of the lines between any two of them, since two shares can take turns from frame to frame
and the mean is then on that line. A point's margin is how much *both* users have more than the region could give them,

    margin = min over points x of the region of max(p_1 - x_1, p_2 - x_2),

above 0 outside and below 0 inside, in the unit of the measure. Beyond the last share that a baseline was swept at,
nothing is known of it: a point that beats it only by that is not counted as outside.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from testbed.report.broadcast.cubes import (
    Cube,
    Samples,
    can_vary,
    cubes_of,
    ends_of,
    intervals_of,
    panels_of,
    resampled,
    without_common,
)
from testbed.report.broadcast.facts import MEASURES, Facts, Measure, Panel
from testbed.report.numbers import decimals_of, plain
from testbed.report.stats import Interval

__all__ = ["Point", "Region", "Standing", "Verdict", "margins", "places_of", "regions_of"]

GAP = "\N{NO-BREAK SPACE}"

Verdict = Literal["outside", "open", "inside", "past"]


@dataclass(frozen=True)
class Point:
    """One swept share of a scheme.

    Attributes:
        share: User 1's share.
        values: What each user gets, with the interval over all that varies.
        compared: The same without what the learned schemes share: for comparing points with each other.
        received: The share of each user's images that could be decoded.
    """

    share: float
    values: tuple[Interval, ...]
    compared: tuple[Interval, ...]
    received: tuple[float, ...]

    def texts(self, user: int, unit: str = "") -> tuple[str, str]:
        """Return what a user gets, and its interval, as texts; the interval's is empty where there is none.

        They have as many digits as comparisons with other points support: more than the mean alone would.

        Args:
            user: The user, from 0.
            unit: The unit of the measure.
        """
        decimals, own = max(0, decimals_of(self.compared[user])), self.values[user]
        end = f"{GAP}{unit}" if unit else ""
        value = f"{plain(own.value, decimals)}{end}"
        if not own.known:
            return value, ""
        return value, f"{plain(own.low, decimals)} to {plain(own.high, decimals)}{end}"


@dataclass(frozen=True)
class Standing:
    """Where one swept point of the subject stands against a baseline's region.

    Attributes:
        baseline: The baseline.
        share: The subject's share.
        margin: How much both users have more than the baseline's region gives.
        verdict: outside or inside where the interval says so, open where it holds 0, past where the point lies beyond
            the end of what the baseline was swept at.
    """

    baseline: str
    share: float
    margin: Interval
    verdict: Verdict


@dataclass(frozen=True)
class Region:
    """One measure in one panel.

    Attributes:
        panel: Where.
        measure: Of what.
        points: The swept points of each scheme, ablations too.
        standings: Where the subject stands against each baseline.
        without: Where the whole scheme stands against each of its ablations.
        cubes: The values behind them.
        left_out: Schemes of the campaign that have nothing to be compared: no repeat that is whole, or none in common.
    """

    panel: Panel
    measure: Measure
    points: Mapping[str, Sequence[Point]]
    standings: Sequence[Standing]
    cubes: Mapping[str, Cube]
    without: Sequence[Standing] = ()
    left_out: Sequence[str] = ()

    @property
    def counted(self) -> tuple[int, int, int]:
        """Return how many pairs, repeats and (the most of any scheme) training seeds are behind it."""
        shapes = [cube.values.shape for cube in self.cubes.values()]
        return shapes[0][4], shapes[0][3], max(shape[2] for shape in shapes)


def regions_of(facts: Facts) -> list[Region]:
    """Return every measure in every panel, PSNR first; a measure that a set of images has not is left out.

    Args:
        facts: What was compared.
    """
    parts = panels_of(facts)
    found = []
    for measure in MEASURES:
        for panel, images in parts.items():
            cubes = cubes_of(facts, images, measure)
            if cubes:
                found.append(_region(facts, panel, measure, cubes))
    return found


def places_of(regions: Sequence[Region]) -> dict[tuple[str, float], dict[str, Region]]:
    """Return the PSNR regions by set and ratio, each by scenario."""
    found: dict[tuple[str, float], dict[str, Region]] = {}
    for region in regions:
        if region.measure.column == "psnr_db":
            found.setdefault((region.panel.set, region.panel.ratio), {})[region.panel.scenario] = region
    return found


def margins(points: NDArray[np.float64], swept: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how much both users have more than a region gives, for each point.

    Args:
        points: (..., 2), higher is better.
        swept: (..., shares, 2), the swept points of the region; what stands before the last axes fits ``points``.

    Returns:
        (...): above 0 outside, below 0 inside.
    """
    # Along the diagonal through a point x_1 - x_2 stays what it is, so that a region is the farthest x_1 at each such
    # difference: that of a swept point, of the line between two of them where it has that difference, or none.
    at = points[..., 0] - points[..., 1]
    corners = np.minimum(swept[..., 0], swept[..., 1] + at[..., None])
    farthest = corners.max(axis=-1)
    pairs = np.array(list(itertools.combinations(range(swept.shape[-2]), 2)), dtype=int).reshape(-1, 2)
    if pairs.size:
        begin, end = swept[..., pairs[:, 0], :], swept[..., pairs[:, 1], :]
        first, last = begin[..., 0] - begin[..., 1], end[..., 0] - end[..., 1]
        span = np.where(first == last, np.inf, last - first)
        slope = (end[..., 0] - begin[..., 0]) / span
        along = at[..., None] - first
        on_line = along * (at[..., None] - last) <= 0
        lines = np.where(on_line, begin[..., 0] + slope * along, -np.inf)
        farthest = np.maximum(farthest, lines.max(axis=-1))
    result: NDArray[np.float64] = points[..., 0] - farthest
    return result


def _region(facts: Facts, panel: Panel, measure: Measure, cubes: Mapping[str, Cube]) -> Region:
    samples = {name: resampled(cube) for name, cube in cubes.items()}
    alike = [scheme.name for scheme in facts.schemes.values() if scheme.learned and not scheme.ablates]
    compared = {name: resampled(cube) for name, cube in without_common(cubes, alike).items()}
    points = {name: _points(cube, samples[name], compared[name]) for name, cube in cubes.items()}
    standings = []
    subject = facts.subject
    if subject is not None and subject.name in cubes and len(facts.users) >= 2:
        for baseline in facts.baselines:
            if baseline.name in cubes:
                pair = cubes[subject.name], cubes[baseline.name]
                standings += _standings(*pair, samples[subject.name], samples[baseline.name])
    without = []
    for scheme in facts.schemes.values():
        whole = scheme.ablates
        if whole in cubes and scheme.name in cubes and len(facts.users) >= 2:
            without += _standings(cubes[whole], cubes[scheme.name], samples[whole], samples[scheme.name])
    left_out = [name for name in facts.schemes if name not in cubes]
    return Region(panel, measure, points, standings, cubes, without, left_out)


def _points(cube: Cube, samples: Samples, compared: Samples) -> list[Point]:
    values, close = intervals_of(cube, samples), intervals_of(cube, compared)
    return [
        Point(share, values[place], close[place], tuple(map(float, cube.received[place])))
        for place, share in enumerate(cube.shares)
    ]


def _standings(mine: Cube, theirs: Cube, samples: Samples, others: Samples) -> list[Standing]:
    """Return where each point of a cube stands; users 1 and 2 only."""
    swept, points = theirs.means[:, :2], mine.means[:, :2]
    sure, n = can_vary(mine) or can_vary(theirs), len(mine.pairs) * len(mine.repeats)
    values = margins(points, swept[None])
    drawn = margins(samples[:, :, :2], others[:, None, :, :2])
    low, high = ends_of(drawn)
    found = []
    for place, share in enumerate(mine.shares):
        ends = (float(low[place]), float(high[place])) if sure else (math.nan, math.nan)
        margin = Interval(float(values[place]), *ends, n)
        verdict = _verdict(points[place], swept, theirs.shares, margin)
        found.append(Standing(theirs.scheme, share, margin, verdict))
    return found


def _verdict(
    point: NDArray[np.float64], swept: NDArray[np.float64], shares: Sequence[float], margin: Interval
) -> Verdict:
    # All to user 1, or to user 2, is a real end; any other last share is only where the sweep stopped.
    ends = ((0, 1, max(shares) < 1), (1, 0, min(shares) > 0))
    for gaining, losing, open_ended in ends:
        last = swept[int(swept[:, gaining].argmax())]
        if open_ended and point[gaining] > last[gaining] and point[losing] <= last[losing]:
            return "past"
    if not margin.known:
        return "open"
    return "outside" if margin.low > 0 else "inside" if margin.high < 0 else "open"
