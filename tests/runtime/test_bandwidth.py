"""Bandwidth allocation: pure rules over loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.wdmoe.bandwidth import allocate, changed, check_bandwidth, period_of

LOADS = st.lists(st.integers(0, 10**9), min_size=1, max_size=16).map(lambda loads: np.array(loads, float))


@given(LOADS, st.floats(0, 0.99))
def test_shares_are_shares_and_nobody_falls_below_the_floor(loads, floor):
    for settings in ({"kind": "uniform"}, {"kind": "proportional", "floor": floor}):
        shares = allocate(settings, loads)
        assert shares.shape == loads.shape
        assert shares.sum() == pytest.approx(1)
        assert (shares >= min(floor, 1 / len(loads)) - 1e-12).all() or settings["kind"] == "uniform"


@given(LOADS.filter(lambda loads: loads.any()))
def test_without_a_floor_all_loaded_devices_finish_together(loads):
    shares = allocate({"kind": "proportional", "floor": 0}, loads)
    busy = loads > 0
    assert (shares[~busy] == 0).all()
    times = loads[busy] / shares[busy]
    assert times == pytest.approx(times[0])


@given(LOADS)
def test_more_load_never_means_less_bandwidth(loads):
    shares = allocate({"kind": "proportional"}, loads)
    order = np.argsort(loads, kind="stable")
    assert (np.diff(shares[order]) >= -1e-15).all()


def test_without_any_load_all_are_alike():
    assert allocate({"kind": "proportional"}, np.zeros(4)).tolist() == [0.25] * 4


def test_a_change_of_less_than_one_percent_is_none():
    before = np.array([0.5, 0.25, 0.25])
    assert not changed(before, before * [1.009, 0.995, 1.0])
    assert changed(before, np.array([0.5, 0.2475, 0.2526]))
    assert changed(np.array([0.0, 1.0]), np.array([0.01, 0.99]))


@pytest.mark.parametrize(
    ("settings", "period"),
    [
        ({"kind": "scenario"}, None),
        ({"kind": "uniform"}, None),
        ({"kind": "proportional"}, "layer"),
        ({"kind": "proportional", "per": "token"}, "token"),
    ],
)
def test_what_follows_no_load_is_made_once(settings, period):
    assert check_bandwidth(settings) == []
    assert period_of(settings) == period


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, "kind: expected one of proportional, scenario, uniform, got None"),
        ({"kind": ["uniform"]}, "kind: expected one of"),
        ({"kind": "uniform", "per": "layer"}, "per: unknown setting of the kind uniform"),
        ({"kind": "proportional", "per": "day"}, "per: expected one of layer, token, trial, got 'day'"),
        ({"kind": "proportional", "floor": 1}, "floor: expected a share of the band"),
        ({"kind": "proportional", "floor": True}, "floor: expected a share of the band"),
        ({"kind": "proportional", "floor": float("nan")}, "floor: expected a share of the band"),
        ({"kind": "proportional", "floors": 0}, "floors: unknown setting of the kind proportional"),
    ],
)
def test_wrong_settings_are_said(settings, line):
    (problem,) = check_bandwidth(settings)
    assert problem.startswith(line)


def test_a_check_of_settings_needs_no_numpy():
    code = (
        "import sys, payloads.wdmoe.bandwidth as b; b.check_bandwidth({}); assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
