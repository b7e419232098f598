"""Energy from time-stamped samples of power.

Power between two samples is taken as linear, so the energy of a window is the sum of trapezoids, with the power at
the window's ends interpolated. Windows that lie side by side therefore add up to the window that spans them.

A figure that too few samples support is worse than none: where the samples cover less of the window than asked for,
the result carries an error and no energy, never a blank or a zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from testbed.errors import TestbedError

__all__ = [
    "GAP_PERIODS",
    "MIN_COVERAGE",
    "Energy",
    "EnergyError",
    "coverage",
    "energy_joules",
    "sampling_period_s",
    "trapezoid_mj",
]

GAP_PERIODS = 3.0
"""Samples that are farther apart than this many periods leave a hole."""
MIN_COVERAGE = 0.95
"""The least share of a window that samples must cover."""


class EnergyError(TestbedError):
    """There is no energy to give, or none to trust."""


@dataclass(frozen=True)
class Energy:
    """The energy of one window, or why there is none.

    Attributes:
        joules: The energy; NaN where there is an error.
        mean_mw: The mean power in milliwatts; NaN where there is an error.
        coverage: The share of the window that samples cover, from 0 to 1.
        samples: The samples inside the window.
        error: What is wrong, or None.
    """

    joules: float
    mean_mw: float
    coverage: float
    samples: int
    error: str | None = None

    def checked(self) -> Energy:
        """Return this energy if it is sound.

        Raises:
            EnergyError: It is not.
        """
        if self.error is not None:
            raise EnergyError(self.error, hint="look at the log of the device's power logger")
        return self


def trapezoid_mj(t_s: NDArray[np.float64], mw: NDArray[np.float64], t0_s: float, t1_s: float) -> float:
    """Return the integral of power over a window in millijoules.

    Args:
        t_s: When the samples were taken, ascending, at least one.
        mw: The power in milliwatts. Before the first sample and after the last it is taken as constant.
        t0_s: The window's start.
        t1_s: The window's end.
    """
    inside = (t_s > t0_s) & (t_s < t1_s)
    times = np.concatenate(([t0_s], t_s[inside], [t1_s]))
    power = np.interp(times, t_s, mw)
    return float(np.sum(np.diff(times) * (power[1:] + power[:-1])) / 2)


def coverage(
    t_s: NDArray[np.float64], t0_s: float, t1_s: float, period_s: float, gap_periods: float = GAP_PERIODS
) -> float:
    """Return the share of a window that lies between samples that are close enough to each other.

    Args:
        t_s: When the samples were taken, ascending.
        t0_s: The window's start.
        t1_s: The window's end, after its start.
        period_s: The time between samples as it should be.
        gap_periods: The most periods between two samples that leave no hole.
    """
    # Time stamps jitter, and two differences of floats are never quite the same.
    close = np.diff(t_s) <= gap_periods * period_s * (1 + 1e-9)
    starts, ends = t_s[:-1][close], t_s[1:][close]
    covered = np.clip(ends, t0_s, t1_s) - np.clip(starts, t0_s, t1_s)
    return float(min(np.sum(covered) / (t1_s - t0_s), 1.0))


def sampling_period_s(t_s: NDArray[np.float64]) -> float:
    """Return the usual time between samples: the median, which holes do not move."""
    return float(np.median(np.diff(t_s)))


def energy_joules(
    t_s: ArrayLike,
    mw: ArrayLike,
    t0_s: float,
    t1_s: float,
    *,
    period_s: float | None = None,
    min_coverage: float = MIN_COVERAGE,
) -> Energy:
    """Return the energy of a window, with an error where the samples do not support one.

    Args:
        t_s: When the samples were taken, in seconds.
        mw: The power in milliwatts.
        t0_s: The window's start.
        t1_s: The window's end.
        period_s: The time between samples as it should be; from the samples themselves where not given.
        min_coverage: The least share of the window that samples must cover.
    """
    times, power = np.asarray(t_s, dtype=float), np.asarray(mw, dtype=float)
    order = np.argsort(times, kind="stable")
    times, power = times[order], power[order]
    samples = int(np.count_nonzero((times >= t0_s) & (times <= t1_s)))
    if not t1_s > t0_s:
        return _nothing(0.0, samples, "the window has no length")
    if times.size < 2:
        return _nothing(0.0, samples, "no power was recorded")
    if not np.isfinite(power).all():
        return _nothing(0.0, samples, "the power has readings that are no numbers")
    period = sampling_period_s(times) if period_s is None else period_s
    share = coverage(times, t0_s, t1_s, period)
    if samples == 0 and share == 0:
        return _nothing(share, samples, "no power was recorded in this window")
    if share < min_coverage:
        error = (
            f"power was recorded for {100 * share:.1f} % of the window, {100 * min_coverage:g} % are needed"
        )
        return _nothing(share, samples, error)
    energy_mj = trapezoid_mj(times, power, t0_s, t1_s)
    return Energy(energy_mj / 1000, energy_mj / (t1_s - t0_s), share, samples)


def _nothing(share: float, samples: int, error: str) -> Energy:
    return Energy(float("nan"), float("nan"), share, samples, error)
