"""Intervals over repeats: a paired bootstrap, widened for how few repeats there are.

The unit that is resampled is the trial (one repeat), never the token: tokens of one trial are not independent. Two
policies are resampled together, repeat by repeat, so that what both shared in a repeat drops out of the difference.

A plain percentile bootstrap is too narrow for a handful of repeats: with three it covers about 75 % where it says 95.
So the distances of its quantiles from the estimate are stretched by ``sqrt(n / (n - 1)) * t / z``, the factor that
makes them Student's interval where the repeats are normal (the idea of Hesterberg 2015, "What teachers should know
about the bootstrap", The American Statistician 69(4), section 4.3). Quantities that cannot be negative are stretched
on the logarithm, so an interval never reaches below zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "LEVEL",
    "RESAMPLES",
    "Interval",
    "bootstrap_mean",
    "bootstrap_ratio",
    "paired_change",
    "percentiles",
    "student_quantile",
    "wilson",
]

LEVEL = 0.95
RESAMPLES = 10_000
SEED = 20240405


@dataclass(frozen=True)
class Interval:
    """An estimate and how sure it is.

    Attributes:
        value: The estimate.
        low: The lower end, or NaN where one repeat gives none.
        high: The upper end, or NaN.
        n: The repeats behind it.
        level: The share of such intervals that hold the truth.
    """

    value: float
    low: float
    high: float
    n: int
    level: float = LEVEL

    @property
    def known(self) -> bool:
        """Return whether there is an interval at all."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def excludes_zero(self) -> bool:
        """Return whether the whole interval lies on one side of zero."""
        return self.known and (self.low > 0 or self.high < 0)

    @property
    def half_width(self) -> float:
        """Return half of the interval's length, or NaN."""
        return (self.high - self.low) / 2

    def scaled(self, factor: float) -> Interval:
        """Return the interval in another unit; the factor is positive."""
        return Interval(self.value * factor, self.low * factor, self.high * factor, self.n, self.level)


def bootstrap_mean(values: ArrayLike, *, level: float = LEVEL, seed: int = SEED) -> Interval:
    """Return the mean of repeats with its interval.

    Args:
        values: One value a repeat: a trial's mean, not a token's value.
        level: The share of intervals that hold the truth.
        seed: Makes the resamples repeatable.
    """
    data = np.asarray(values, dtype=float)
    data = data[np.isfinite(data)]
    if data.size == 0:
        return Interval(math.nan, math.nan, math.nan, 0, level)
    means = data[_resamples(data.size, seed)].mean(axis=1)
    return _interval(float(data.mean()), means, data.size, level, positive=bool((data > 0).all()))


def paired_change(
    reference: ArrayLike, other: ArrayLike, *, level: float = LEVEL, seed: int = SEED
) -> Interval:
    """Return the relative change of a mean, ``mean(other) / mean(reference) - 1``, from paired repeats.

    Args:
        reference: One positive value a repeat.
        other: The other policy's values, of the same repeats in the same order.
        level: The share of intervals that hold the truth.
        seed: Makes the resamples repeatable.

    Raises:
        ValueError: The two are not pairs, or not positive.
    """
    base, new = np.asarray(reference, dtype=float), np.asarray(other, dtype=float)
    if base.shape != new.shape or base.ndim != 1:
        raise ValueError(f"these are not pairs: {base.shape} against {new.shape}")
    if base.size == 0:
        return Interval(math.nan, math.nan, math.nan, 0, level)
    if not ((base > 0).all() and (new > 0).all()):
        raise ValueError("a relative change needs positive values")
    chosen = _resamples(base.size, seed)
    ratios = new[chosen].mean(axis=1) / base[chosen].mean(axis=1)
    ratio = _interval(float(new.mean() / base.mean()), ratios, base.size, level, positive=True)
    return Interval(ratio.value - 1, ratio.low - 1, ratio.high - 1, ratio.n, level)


def bootstrap_ratio(
    numerator: ArrayLike, denominator: ArrayLike, *, level: float = LEVEL, seed: int = SEED
) -> Interval:
    """Return ``sum(numerator) / sum(denominator)`` over units that are resampled together.

    Used for the mean negative log-likelihood of a text, where the units are its windows.

    Args:
        numerator: One value a unit.
        denominator: One positive value a unit.
        level: The share of intervals that hold the truth.
        seed: Makes the resamples repeatable.
    """
    top, bottom = np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    if top.size == 0 or bottom.sum() == 0:
        return Interval(math.nan, math.nan, math.nan, 0, level)
    chosen = _resamples(top.size, seed)
    ratios = top[chosen].sum(axis=1) / bottom[chosen].sum(axis=1)
    return _interval(float(top.sum() / bottom.sum()), ratios, top.size, level, positive=False)


def wilson(right: float, n: int, *, level: float = LEVEL) -> Interval:
    """Return a share of independent yes-or-no answers with Wilson's interval, which holds for all right or none.

    Args:
        right: How many were yes; a fraction where one answer is the mean of several.
        n: How many there were.
        level: The share of intervals that hold the truth.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22(158).
    """
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0, level)
    z, share = NormalDist().inv_cdf((1 + level) / 2), right / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half), n, level)


def percentiles(values: ArrayLike, at: Sequence[float] = (50, 95, 99)) -> tuple[float, ...]:
    """Return percentiles of values, with linear interpolation; NaN where there are none."""
    data = np.asarray(values, dtype=float)
    data = data[np.isfinite(data)]
    if data.size == 0:
        return tuple(math.nan for _ in at)
    return tuple(float(value) for value in np.percentile(data, list(at)))


def _resamples(n: int, seed: int) -> NDArray[np.int32]:
    """Return the indices of the resamples, shape (RESAMPLES, n)."""
    return _drawn(n, seed, RESAMPLES)


@lru_cache(maxsize=2)
def _drawn(n: int, seed: int, resamples: int) -> NDArray[np.int32]:
    """Draw the resamples; a report asks for the same ones again and again."""
    drawn = np.random.default_rng(seed).integers(0, n, size=(resamples, n)).astype(np.int32)
    drawn.flags.writeable = False
    return drawn


def _interval(
    value: float, resampled: NDArray[np.float64], n: int, level: float, *, positive: bool
) -> Interval:
    if n < 2:
        return Interval(value, math.nan, math.nan, n, level)
    tail = (1 - level) / 2
    low, high = (float(end) for end in np.quantile(resampled, [tail, 1 - tail]))
    stretch = math.sqrt(n / (n - 1)) * student_quantile(1 - tail, n - 1) / NormalDist().inv_cdf(1 - tail)
    if positive:
        # exp() of a huge stretch would overflow; an interval of e**±300 says "nothing is known" as well.
        down, up = stretch * math.log(low / value), stretch * math.log(high / value)
        return Interval(value, value * math.exp(max(down, -300)), value * math.exp(min(up, 300)), n, level)
    return Interval(value, value + stretch * (low - value), value + stretch * (high - value), n, level)


def student_quantile(probability: float, degrees: int) -> float:
    """Return a quantile of Student's distribution, for a probability above one half.

    Args:
        probability: Between 0.5 and 1.
        degrees: Degrees of freedom, at least 1.

    Source: the closed forms of the distribution function for whole degrees of freedom (Abramowitz and Stegun,
    26.7.3 and 26.7.4), inverted by bisection.
    """
    if not 0.5 <= probability < 1 or degrees < 1:
        raise ValueError(f"no quantile for probability {probability} and {degrees} degrees of freedom")
    low, high = 0.0, 1.0
    while _student_cdf(high, degrees) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        if _student_cdf(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _student_cdf(t: float, degrees: int) -> float:
    theta = math.atan(t / math.sqrt(degrees))
    cosine, sine = math.cos(theta), math.sin(theta)
    if degrees % 2:
        term, total = cosine, cosine if degrees > 1 else 0.0
        for k in range(3, degrees - 1, 2):
            term *= cosine**2 * (k - 1) / k
            total += term
        inside = 2 / math.pi * (theta + sine * total)
    else:
        term, total = 1.0, 1.0
        for k in range(2, degrees, 2):
            term *= cosine**2 * (k - 1) / k
            total += term
        inside = sine * total
    return 0.5 + inside / 2
