"""Estimates that a hiccup cannot move far, and their intervals over trials. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Estimate", "bootstrap", "clipped", "line", "median_of", "slope_through"]

Floats = NDArray[np.float64]
RESAMPLES = 200
LEVEL = 0.95
#: A value farther from the median than so many median absolute deviations counts as if it were there.
_REACH_MADS = 10.0


@dataclass(frozen=True)
class Estimate:
    """One number of a calibration.

    Attributes:
        value: The estimate.
        low: The lower end of its 95 % interval; NaN where one trial gives none.
        high: The upper end.
        n: How many observations it rests on.
    """

    value: float
    low: float
    high: float
    n: int


def median_of(values: Floats) -> float:
    """Return the median; NaN of nothing."""
    return float(np.median(values)) if len(values) else math.nan


def clipped(values: Floats) -> Floats:
    """Return values with outliers moved in to ten median absolute deviations from the median.

    A mean of these is near the mean that adds up to a token's time, and no single pause of the machine can move it far.
    """
    if not len(values):
        return values
    middle = np.median(values)
    reach = _REACH_MADS * np.median(np.abs(values - middle))
    return np.asarray(np.clip(values, middle - reach, middle + reach))


def line(x: Floats, y: Floats, weights: Floats) -> tuple[float, float]:
    """Return intercept and slope, not negative, of the line with the least weighted sum of absolute deviations.

    Iteratively reweighted least squares; where ``x`` does not vary, or the slope would be negative, it is 0.

    Args:
        x: (n,).
        y: (n,).
        weights: (n,), positive.
    """

    def level() -> float:
        order = np.argsort(y)
        below = np.cumsum(weights[order])
        return float(y[order][np.searchsorted(below, below[-1] / 2)])

    if len(y) == 0:
        return math.nan, 0.0
    if np.ptp(x) == 0:
        return level(), 0.0
    tiny = 1e-6 * (np.median(np.abs(y)) + 1e-12)
    now, intercept, slope = weights, 0.0, 0.0
    for _ in range(60):
        before = intercept, slope
        total = now.sum()
        mean_x, mean_y = now @ x / total, now @ y / total
        slope = float(now @ ((x - mean_x) * (y - mean_y)) / (now @ (x - mean_x) ** 2))
        intercept = float(mean_y - slope * mean_x)
        if abs(slope - before[1]) <= 1e-5 * abs(slope) and abs(intercept - before[0]) <= 1e-5 * abs(
            intercept
        ):
            break
        now = weights / np.maximum(np.abs(y - intercept - slope * x), tiny)
    if slope <= 0:
        return level(), 0.0
    return intercept, slope


def slope_through(x: Floats, y: Floats) -> float:
    """Return the slope of the line through nought with the least sum of absolute deviations; NaN of nothing."""
    kept = x > 0
    if not kept.any():
        return math.nan
    ratios, weights = y[kept] / x[kept], x[kept]
    order = np.argsort(ratios)
    below = np.cumsum(weights[order])
    return float(ratios[order][np.searchsorted(below, below[-1] / 2)])


def bootstrap(
    trials: Sequence[str],
    fit: Callable[[Mapping[str, int]], Mapping[str, float]],
    counts: Mapping[str, int],
    *,
    seed: int = 20240405,
) -> dict[str, Estimate]:
    """Fit, and fit again with trials drawn anew: the trial is what repeats, not the dispatch.

    The quantiles' distances from the estimate are stretched as in ``testbed.report.stats``, for a handful of trials.

    Args:
        trials: The trials.
        fit: Gives every number by its name from how often each trial counts; NaN where it cannot.
        counts: How many observations each number rests on, by its name.
        seed: Makes the draws repeatable.
    """
    from scipy import stats

    whole = fit(dict.fromkeys(trials, 1))
    n = len(trials)
    if n < 2:
        return {
            name: Estimate(value, math.nan, math.nan, counts.get(name, 0)) for name, value in whole.items()
        }
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in whole}
    for _ in range(RESAMPLES):
        chosen = np.bincount(generator.integers(0, n, n), minlength=n)
        again = fit({trial: int(times) for trial, times in zip(trials, chosen, strict=True) if times})
        for name, value in again.items():
            drawn[name].append(value)
    tail = (1 - LEVEL) / 2
    stretch = math.sqrt(n / (n - 1)) * stats.t.ppf(1 - tail, n - 1) / stats.norm.ppf(1 - tail)
    result = {}
    for name, value in whole.items():
        found = np.array(drawn[name])
        found = found[np.isfinite(found)]
        low, high = np.quantile(found, [tail, 1 - tail]) if len(found) else (math.nan, math.nan)
        low, high = value + stretch * (min(low, value) - value), value + stretch * (max(high, value) - value)
        result[name] = Estimate(value, max(0.0, float(low)), float(high), counts.get(name, 0))
    return result
