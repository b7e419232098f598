"""Bandwidth allocation: settings, plain rules, and when an allocation is made anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.linkd.channel import Rule
from payloads.station.link_state import LinkState
from payloads.wdmoe.allocation.bandwidth import (
    Allocator,
    allocate,
    changed,
    check_bandwidth,
    period_of,
    rounds_of,
)
from payloads.wdmoe.latency import Demand

BITS = st.lists(st.integers(0, 10**9), min_size=1, max_size=16).map(lambda bits: np.array(bits, float))


def demand_of(bits, fixed_s=0.001):
    bits = np.asarray(bits, float)
    return Demand(np.where(bits > 0, fixed_s, 0.0), bits, 2 * bits, bits > 0)


def links_of(devices, share=None, kind="linear"):
    states = np.arange(1.0, 2 * devices + 1).reshape(2, devices) * 10
    rule = Rule(kind, bandwidth_mhz=10, min_mbit=0.01)
    return LinkState(rule, states, np.full((2, devices), share or 1 / devices))


@given(BITS, st.floats(0, 0.99))
def test_shares_are_shares_and_nobody_falls_below_the_floor(bits, floor):
    for settings in ({"kind": "uniform"}, {"kind": "proportional", "floor": floor}):
        shares = allocate(settings, [demand_of(bits)], links_of(len(bits)))
        assert shares.shape == (2, len(bits))
        assert shares.sum(axis=1) == pytest.approx(1)
        assert (shares >= min(floor, 0.5 / len(bits)) - 1e-12).all()


@given(BITS.filter(lambda bits: bits.any()))
def test_proportional_without_a_floor_lets_equal_links_finish_together(bits):
    shares = allocate({"kind": "proportional", "floor": 0}, [demand_of(bits)], links_of(len(bits)))
    busy = bits > 0
    assert (shares[:, ~busy] == 0).all()
    times = bits[busy] / shares[:, busy]
    assert times == pytest.approx(np.full_like(times, times[0, 0]))


def test_several_layers_are_shared_by_what_they_send_together():
    demands = [demand_of([3e6, 0]), demand_of([0, 1e6])]
    shares = allocate({"kind": "proportional", "floor": 0}, demands, links_of(2))
    assert shares == pytest.approx(np.array([[0.75, 0.25], [0.75, 0.25]]))


@pytest.mark.parametrize("settings", [{"kind": "proportional"}, {"kind": "minmax"}, {"kind": "uniform"}])
def test_without_any_load_all_are_alike(settings):
    assert allocate(settings, [demand_of(np.zeros(4))], links_of(4)) == pytest.approx(np.full((2, 4), 0.25))


@pytest.mark.parametrize("kind", ["uniform", "proportional", "minmax"])
def test_what_a_scenario_keeps_to_itself_is_not_shared_out(kind):
    links = links_of(4, share=0.2)
    for demands in (
        [demand_of([1e6, 2e6, 0, 1e5])],
        [demand_of([1e6, 2e6, 0, 1e5]), demand_of([0, 0, 1e6, 0])],
    ):
        assert allocate({"kind": kind}, demands, links).sum(axis=1) == pytest.approx(0.8)
        assert allocate({"kind": kind}, demands, links, np.array([0.5, 0.3])).sum(axis=1) == pytest.approx(
            [0.5, 0.3]
        )


def test_a_change_of_less_than_one_percent_is_none():
    before = np.array([0.5, 0.25, 0.25])
    assert not changed(before, before * [1.009, 0.995, 1.0])
    assert changed(before, np.array([0.5, 0.2475, 0.2526]))
    assert changed(np.array([0.0, 1.0]), np.array([0.01, 0.99]))


@pytest.mark.parametrize(
    ("settings", "period", "rounds"),
    [
        ({"kind": "scenario"}, None, 1),
        ({"kind": "uniform"}, None, 1),
        ({"kind": "proportional"}, "layer", 1),
        ({"kind": "proportional", "per": "token"}, "token", 1),
        ({"kind": "minmax"}, "layer", 3),
        ({"kind": "minmax", "rounds": 5, "directions": "separate", "floor": 0.0}, "layer", 5),
        ({"kind": "minmax", "per": "trial"}, "trial", 1),
    ],
)
def test_how_often_an_allocation_is_made(settings, period, rounds):
    assert check_bandwidth(settings) == []
    assert (period_of(settings), rounds_of(settings)) == (period, rounds)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, "kind: expected one of minmax, proportional, scenario, uniform, got None"),
        ({"kind": ["uniform"]}, "kind: expected one of"),
        ({"kind": "uniform", "per": "layer"}, "per: unknown setting of the kind uniform"),
        ({"kind": "proportional", "per": "day"}, "per: expected one of layer, token, trial, got 'day'"),
        ({"kind": "proportional", "per": ["day"]}, "per: expected one of layer, token, trial"),
        ({"kind": "proportional", "floor": 1}, "floor: expected a share of the band"),
        ({"kind": "proportional", "floor": True}, "floor: expected a share of the band"),
        ({"kind": "proportional", "floor": float("nan")}, "floor: expected a share of the band"),
        ({"kind": "proportional", "floors": 0}, "floors: unknown setting of the kind proportional"),
        ({"kind": "proportional", "rounds": 2}, "rounds: unknown setting of the kind proportional"),
        ({"kind": "minmax", "directions": "both"}, "directions: expected one of same, separate, got 'both'"),
        ({"kind": "minmax", "rounds": 0}, "rounds: expected a whole number from 1 to 100, got 0"),
        ({"kind": "minmax", "rounds": 2.0}, "rounds: expected a whole number"),
        ({"kind": "minmax", "rounds": 2, "per": "token"}, "rounds: only an allocation per layer"),
        ({"kind": "minmax", "gain_ms": 1, "per": "token"}, "gain_ms: only an allocation per layer"),
        ({"kind": "minmax", "gain_ms": -1}, "gain_ms: expected milliseconds, at least 0, got -1"),
    ],
)
def test_wrong_settings_are_said(settings, line):
    (problem,) = check_bandwidth(settings)
    assert problem.startswith(line)


def test_a_check_of_settings_needs_no_numpy():
    code = (
        "import sys, payloads.wdmoe.allocation.bandwidth as b; b.check_bandwidth({'kind': 'minmax', 'floor': 0.1}); "
        "assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)


class TestAllocator:
    links = links_of(3)

    def allocator(self, **settings):
        return Allocator(settings, self.links.shares)

    @pytest.mark.parametrize("kind", ["scenario", "uniform"])
    def test_what_follows_no_load_is_made_at_the_start_or_never(self, kind):
        skewed = self.links.with_shares(np.array([[0.5, 0.3, 0.2]] * 2))
        allocator = Allocator({"kind": kind}, skewed.shares)
        given_ = allocator.begin(skewed)
        assert (given_ is None) == (kind == "scenario")
        assert kind == "scenario" or given_ == pytest.approx(np.full((2, 3), 1 / 3))
        assert allocator.before_token("a", 0, skewed) is None
        assert allocator.layer(0, 0, demand_of([1e6, 0, 0]), skewed) is None
        assert allocator.before_token("b", 0, skewed) is None

    @pytest.mark.parametrize("kind", ["proportional", "minmax"])
    def test_per_layer_each_layer_gets_its_own(self, kind):
        allocator = self.allocator(kind=kind)
        assert allocator.begin(self.links) is None
        shares = allocator.layer(0, 0, demand_of([1e6, 2e6, 0]), self.links)
        assert shares[0, 1] > shares[0, 0] > shares[0, 2]
        # In force already: nothing to be told.
        assert allocator.layer(1, 0, demand_of([1e6, 2e6, 0]), self.links.with_shares(shares)) is None
        assert allocator.before_token("a", 1, self.links) is None

    def test_per_token_the_step_before_decides_and_a_layer_decided_twice_counts_once(self):
        allocator = self.allocator(kind="proportional", per="token", floor=0.0)
        assert allocator.before_token("a", 0, self.links) is None
        assert allocator.layer(0, 0, demand_of([9e6, 9e6, 9e6]), self.links) is None
        assert allocator.layer(0, 0, demand_of([1e6, 0, 0]), self.links) is None
        assert allocator.layer(1, 0, demand_of([0, 3e6, 0]), self.links) is None
        shares = allocator.before_token("a", 1, self.links)
        assert shares == pytest.approx(np.array([[0.25, 0.75, 0.0]] * 2))
        assert allocator.before_token("a", 2, self.links) is None  # nothing was sent since

    @pytest.mark.parametrize("kind", ["proportional", "minmax"])
    def test_per_trial_the_first_request_decides_once(self, kind):
        allocator = self.allocator(kind=kind, per="trial")
        for step in (0, 1):
            assert allocator.before_token("warm-up", step, self.links) is None
            for layer in (0, 1):
                allocator.layer(layer, step, demand_of([1e6, 3e6, 0]), self.links)
        shares = allocator.before_token("a", 0, self.links)
        assert shares[0, 1] > shares[0, 0] > shares[0, 2]
        allocator.layer(0, 0, demand_of([0, 0, 1e6]), self.links)
        assert allocator.before_token("b", 0, self.links) is None

    def test_the_band_stays_whole_however_often_it_is_shared(self):
        allocator = Allocator({"kind": "minmax"}, self.links.shares)
        links = self.links
        for bits in ([1e6, 0, 0], [0, 1e3, 5e7], [4e6, 5e6, 6e6]):
            links = links.with_shares(allocator.layer(0, 0, demand_of(bits), links))
            assert links.shares.sum(axis=1) == pytest.approx(1)
