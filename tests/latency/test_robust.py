"""Estimates that outliers cannot move far."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.simulate.robust import bootstrap, clipped, line, slope_through

SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS, st.floats(0.01, 5), st.floats(0.05, 2))
def test_a_line_is_found_among_outliers(seed, intercept, slope):
    generator = np.random.default_rng(seed)
    x = generator.integers(1, 40, 300).astype(float)
    y = intercept + slope * x
    y[generator.random(300) < 0.2] += 100.0  # pauses of the machine
    found = line(x, y, np.ones(300))
    assert found == pytest.approx((intercept, slope), rel=1e-3, abs=1e-3)


@given(SEEDS)
def test_what_falls_with_more_work_gets_no_slope(seed):
    x = np.random.default_rng(seed).integers(1, 40, 100).astype(float)
    level, slope = line(x, 10.0 - 0.1 * x, np.ones(100))
    assert slope == 0
    assert 6 <= level <= 9.9
    assert line(np.ones(3), np.array([1.0, 2.0, 9.0]), np.ones(3)) == (2.0, 0.0)
    assert math.isnan(line(np.array([]), np.array([]), np.array([]))[0])


@given(SEEDS, st.floats(0.1, 9))
def test_a_slope_through_nought_ignores_outliers(seed, slope):
    x = np.random.default_rng(seed).integers(0, 50, 99).astype(float)
    y = slope * x
    y[:20] += 1e3
    assert slope_through(x, y) == pytest.approx(slope)
    assert math.isnan(slope_through(np.zeros(3), np.ones(3)))


def test_one_pause_moves_a_clipped_mean_little_and_a_skew_stays():
    values = np.random.default_rng(0).exponential(1.0, 1000)
    mean = clipped(values).mean()
    assert mean == pytest.approx(values.mean(), rel=0.02)
    assert clipped(np.append(values, 1e6)).mean() == pytest.approx(mean, rel=0.02)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    generator, held, tries = np.random.default_rng(5), 0, 60
    for _ in range(tries):
        level = dict(zip("abcdef", generator.normal(10, 1, 6), strict=True))

        def fit(counts, level=level):
            return {"mean": sum(level[name] * n for name, n in counts.items()) / sum(counts.values())}

        found = bootstrap(list(level), fit, {"mean": 6})["mean"]
        held += found.low <= 10 <= found.high
    assert held / tries > 0.85
