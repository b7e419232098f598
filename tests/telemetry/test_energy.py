from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.telemetry.energy import EnergyError, coverage, energy_joules, trapezoid_mj

moments = st.lists(st.integers(0, 10_000), min_size=2, max_size=60, unique=True).map(
    lambda values: np.sort(np.array(values, dtype=float)) / 100
)
powers = st.floats(0, 60_000)


@st.composite
def traces(draw):
    t_s = draw(moments)
    mw = draw(st.lists(powers, min_size=t_s.size, max_size=t_s.size))
    return t_s, np.array(mw)


@given(moments, st.floats(-500, 500), powers, st.floats(0, 1), st.floats(0, 1))
def test_a_linear_ramp_is_integrated_exactly(t_s, slope, start_mw, share0, share1):
    span = t_s[-1] - t_s[0]
    t0, t1 = sorted((t_s[0] + share0 * span, t_s[0] + share1 * span))
    energy = trapezoid_mj(t_s, start_mw + slope * t_s, t0, t1)
    exact = start_mw * (t1 - t0) + slope * (t1**2 - t0**2) / 2
    assert energy == pytest.approx(exact, rel=1e-9, abs=1e-4)


@given(traces(), st.lists(st.floats(-20, 120), min_size=3, max_size=3, unique=True).map(sorted))
def test_adjacent_windows_add_up(trace, borders):
    first, middle, last = borders
    whole = trapezoid_mj(*trace, first, last)
    parts = trapezoid_mj(*trace, first, middle) + trapezoid_mj(*trace, middle, last)
    assert parts == pytest.approx(whole, rel=1e-9, abs=1e-6)


@given(traces(), st.floats(-20, 120), st.floats(0.01, 100))
def test_energy_lies_between_the_least_and_the_greatest_power(trace, t0, length):
    mean = trapezoid_mj(*trace, t0, t0 + length) / length
    assert trace[1].min() - 1e-6 <= mean <= trace[1].max() + 1e-6


def test_a_first_order_response_is_within_a_tenth_of_a_percent():
    # The step response of a board with a time constant of 0.3 s, read 20 times a second.
    tau, idle, active = 0.3, 3600.0, 21_000.0
    t_s = np.arange(0, 10, 0.05)
    energy = energy_joules(t_s, idle + active * (1 - np.exp(-t_s / tau)), 0.0, 9.0)
    exact = idle * 9 + active * (9 - tau * (1 - math.exp(-9 / tau)))
    assert energy.checked().joules == pytest.approx(exact / 1000, rel=1e-3)
    assert energy.mean_mw == pytest.approx(exact / 9, rel=1e-3)


@given(moments, st.floats(-20, 120), st.floats(0.01, 100), st.floats(0.001, 5))
def test_coverage_is_a_share_and_grows_with_patience(t_s, t0, length, period_s):
    one, two = (coverage(t_s, t0, t0 + length, period_s, gap) for gap in (3.0, 6.0))
    assert 0.0 <= one <= two <= 1.0


def test_a_hole_is_not_covered():
    t_s = np.concatenate((np.arange(0, 40), np.arange(60, 101))) / 10.0
    assert coverage(t_s, 0.0, 10.0, 0.1) == pytest.approx(0.79)
    # Two lost samples are none yet.
    assert coverage(np.delete(np.arange(101) / 10.0, [50, 51]), 0.0, 10.0, 0.1) == pytest.approx(1.0)


TWENTY_HZ = np.arange(0, 200) / 20.0


@pytest.mark.parametrize(
    ("t_s", "window", "words"),
    [
        ([], (0, 1), "no power was recorded"),
        ([1.0], (0, 2), "no power was recorded"),
        (TWENTY_HZ, (20, 30), "no power was recorded in this window"),
        (TWENTY_HZ, (5, 15), "power was recorded for 49.5 % of the window, 95 % are needed"),
        (TWENTY_HZ, (5, 5), "the window has no length"),
        (np.delete(TWENTY_HZ, range(100, 120)), (0, 9.9), "power was recorded for 89.4 % of the window"),
    ],
)
def test_missing_power_is_an_error_and_no_figure(t_s, window, words):
    energy = energy_joules(t_s, np.full(len(t_s), 1000.0), *window)
    assert energy.error is not None
    assert energy.error.startswith(words)
    assert math.isnan(energy.joules)
    assert math.isnan(energy.mean_mw)
    with pytest.raises(EnergyError, match=r"power|window"):
        energy.checked()


def test_a_logger_slower_than_asked_is_seen_when_the_period_is_known():
    t_s = np.arange(0, 10.0)
    assert energy_joules(t_s, np.ones(10), 0, 9).error is None
    assert energy_joules(t_s, np.ones(10), 0, 9, period_s=0.05).error is not None


def test_readings_that_are_no_numbers_are_an_error():
    mw = np.ones(200)
    mw[7] = np.nan
    assert energy_joules(TWENTY_HZ, mw, 0, 9).error == "the power has readings that are no numbers"


def test_the_order_of_the_samples_does_not_matter():
    mw = np.sin(TWENTY_HZ) + 2
    shuffled = np.random.default_rng(3).permutation(TWENTY_HZ.size)
    assert energy_joules(TWENTY_HZ[shuffled], mw[shuffled], 1, 9) == energy_joules(TWENTY_HZ, mw, 1, 9)
