"""The least attention waiting latency of one layer: no other allocation beats it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payloads.linkd.channel import Rule
from payloads.station.link_state import LinkState
from payloads.station.rates import rates_mbit
from payloads.wdmoe.allocation import minmax as module
from payloads.wdmoe.allocation import minmax_prices as prices
from payloads.wdmoe.allocation.bandwidth import kept_share
from payloads.wdmoe.allocation.minmax import minmax, minmax_batch
from payloads.wdmoe.latency import Demand
from tests.wdmoe.allocation import (
    CAPPED,
    TIGHT,
    WIDE,
    demand_of,
    latency_s,
    links_of,
    problems,
    random_shares,
    rule_of,
    slsqp,
    street_of,
)

DIRECTIONS = ["same", "separate"]
SOME = settings(max_examples=50)
ALL = {"kinds": ("linear", "shannon", "table"), "limits": (WIDE, TIGHT)}


@SOME
@given(problems(**ALL), st.sampled_from(DIRECTIONS))
def test_shares_are_shares(problem, directions):
    (demand,), links, floor = problem
    devices = len(demand.loaded)
    shares = minmax(demand, links, (0.8, 0.5), directions, floor)
    assert shares.shape == (2, devices)
    assert (shares >= kept_share(floor, devices) * np.array([[0.8], [0.5]]) * (1 - 1e-9)).all()
    assert (shares.sum(axis=1) <= np.array([0.8, 0.5]) * (1 + 1e-9)).all()
    if links.rule.kind != "table":
        assert shares.sum(axis=1) == pytest.approx([0.8, 0.5], rel=1e-9)
    if directions == "same":
        assert shares[0] / 0.8 == pytest.approx(shares[1] / 0.5)


@SOME
@given(problems(**ALL), st.integers(0, 2**32 - 1))
def test_nothing_drawn_at_random_is_better(problem, seed):
    (demand,), links, floor = problem
    generator = np.random.default_rng(seed)
    best_s = latency_s(demand, links, minmax(demand, links, floor=floor))
    for _ in range(30):
        other = random_shares(generator, len(demand.loaded), floor, "same")
        assert latency_s(demand, links, other) >= best_s * (1 - 1e-9)


@SOME
@given(problems(limits=(WIDE, CAPPED)), st.integers(0, 2**32 - 1))
def test_nothing_near_it_is_better_with_separate_bands(problem, seed):
    (demand,), links, floor = problem
    generator = np.random.default_rng(seed)
    best = minmax(demand, links, directions="separate", floor=floor)
    best_s = latency_s(demand, links, best)
    for size in (1.0, 0.1, 0.01, 1e-3):
        other = random_shares(generator, len(demand.loaded), floor, "separate")
        assert latency_s(demand, links, best + size * (other - best)) >= best_s * (1 - 1e-8)


@SOME
@given(problems(kinds=("linear", "shannon")))
def test_who_has_more_than_the_floor_finishes_last_with_all_others(problem):
    (demand,), links, floor = problem
    shares = minmax(demand, links, floor=floor)
    rates = links.with_shares(shares).rates_mbit() * 1e6
    times = demand.fixed_s + demand.downlink_bits / rates[0] + demand.uplink_bits / rates[1]
    waited = demand.loaded & (shares[0] > kept_share(floor, len(times)) * (1 + 1e-6))
    assert times[waited] == pytest.approx(np.full(waited.sum(), times[demand.loaded].max()), rel=1e-8)


@SOME
@given(problems(**ALL))
def test_bands_of_their_own_are_never_worse_than_one_share(problem):
    (demand,), links, floor = problem
    same = latency_s(demand, links, minmax(demand, links, floor=floor))
    separate = latency_s(demand, links, minmax(demand, links, directions="separate", floor=floor))
    assert separate <= same * (1 + 1e-8)


def in_arrays_s(demand, links, directions, floor):
    """Return the latency that the solver for many problems at once comes to."""
    bits = np.array([demand.downlink_bits, demand.uplink_bits])
    shares = minmax_batch(
        demand.fixed_s, bits, demand.loaded, links.rule, links.states, directions=directions, floor=floor
    )
    return latency_s(demand, links, shares)


@SOME
@given(problems(kinds=("linear", "shannon", "table"), limits=(WIDE, CAPPED, TIGHT)))
def test_floats_and_arrays_come_to_the_same(problem):
    (demand,), links, floor = problem
    few = latency_s(demand, links, minmax(demand, links, floor=floor))
    assert few == pytest.approx(in_arrays_s(demand, links, "same", floor), rel=1e-8)


@SOME
@given(problems(limits=(WIDE, CAPPED)))
def test_floats_are_no_worse_than_arrays_with_separate_bands(problem):
    (demand,), links, floor = problem
    few = latency_s(demand, links, minmax(demand, links, directions="separate", floor=floor))
    assert few <= in_arrays_s(demand, links, "separate", floor) * (1 + 1e-8)
    if links.rule.max_mbit > 1000:
        assert few == pytest.approx(in_arrays_s(demand, links, "separate", floor), rel=1e-7)


@SOME
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.sampled_from([0.0, 0.01, 0.1]))
def test_a_street_is_solved_as_well_in_floats(seed, devices, floor):
    generator = np.random.default_rng(seed)
    links, demand = street_of(generator, devices), demand_of(generator, devices)
    best_s = latency_s(demand, links, minmax(demand, links, floor=floor))
    assert best_s == pytest.approx(in_arrays_s(demand, links, "same", floor), rel=1e-8)
    apart_s = latency_s(demand, links, minmax(demand, links, directions="separate", floor=floor))
    assert apart_s <= best_s * (1 + 1e-8)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.01]))
def test_no_shares_of_both_bands_are_better_for_two_devices_at_their_highest_rates(seed, floor):
    generator = np.random.default_rng(seed)
    rule = rule_of("linear", CAPPED)
    links, demand = links_of(generator, 2, rule), demand_of(generator, 2, idle=0.0)
    best_s = latency_s(demand, links, minmax(demand, links, directions="separate", floor=floor))
    one, two = np.meshgrid(np.linspace(floor, 1 - floor, 301), np.linspace(floor, 1 - floor, 301))
    shares = np.stack([np.stack([one, 1 - one], axis=-1), np.stack([two, 1 - two], axis=-1)])
    rates = rates_mbit(rule, links.states[:, None, None], shares) * 1e6
    times = demand.fixed_s + demand.downlink_bits / rates[0] + demand.uplink_bits / rates[1]
    assert best_s <= float(times.max(axis=-1).min()) * (1 + 1e-9)


@SOME
@given(problems(**ALL), st.sampled_from(DIRECTIONS), st.randoms(use_true_random=False))
def test_devices_may_be_numbered_otherwise(problem, directions, random):
    (demand,), links, floor = problem
    order = list(range(len(demand.loaded)))
    random.shuffle(order)
    other = Demand(*(each[order] for each in demand))
    there = links.with_states(links.states[:, order])
    assert latency_s(other, there, minmax(other, there, directions=directions, floor=floor)) == pytest.approx(
        latency_s(demand, links, minmax(demand, links, directions=directions, floor=floor)), rel=1e-7
    )


@pytest.mark.parametrize(
    ("kind", "directions"),
    [
        ("linear", "same"),
        ("shannon", "same"),
        ("table", "same"),
        ("linear", "separate"),
        ("shannon", "separate"),
    ],
)
def test_a_batch_is_its_problems_one_by_one(kind, directions):
    generator = np.random.default_rng(1)
    rule = rule_of(kind)
    demands = [[demand_of(generator, 6) for _ in range(3)] for _ in range(2)]
    links = links_of(generator, 6, rule)
    bits = np.array([[[d.downlink_bits, d.uplink_bits] for d in row] for row in demands])
    fixed_s = np.array([[d.fixed_s for d in row] for row in demands])
    loaded = np.array([[d.loaded for d in row] for row in demands])
    shares = minmax_batch(fixed_s, bits, loaded, rule, links.states, directions=directions)
    assert shares.shape == (2, 3, 2, 6)
    for row, each in enumerate(demands):
        for column, demand in enumerate(each):
            alone = latency_s(demand, links, minmax(demand, links, directions=directions))
            assert latency_s(demand, links, shares[row, column]) == pytest.approx(alone, rel=1e-7)


@settings(max_examples=40)
@given(problems(most=5), st.sampled_from(DIRECTIONS))
def test_a_general_solver_finds_nothing_better(problem, directions):
    (demand,), links, floor = problem
    best_s = latency_s(demand, links, minmax(demand, links, directions=directions, floor=floor))
    found_s = latency_s(demand, links, slsqp([demand], links, floor, directions))
    assert best_s <= found_s * (1 + 1e-8)


@SOME
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.sampled_from([0.0, 0.01, 0.1]))
def test_sets_of_shares_at_their_ends_are_those_that_halving_finds(seed, devices, floor):
    generator = np.random.default_rng(seed)
    floor = kept_share(floor, devices)
    fixed = generator.uniform(0, 0.01, devices).tolist()
    works = 10 ** generator.uniform(-4, -1, (2, devices)) * (generator.random((2, devices)) < 0.9)
    works[0, 0] = 0.01
    # A direction takes no less than at some share that it may well be given.
    least = works * generator.choice([0, 1, 4], (2, devices)) * generator.uniform(0.5, 1.5, (2, devices))
    if floor:
        least = np.minimum(least, 0.99 * works / floor)
    pair, fewest = tuple(works.tolist()), tuple(least.tolist())
    lows, budgets = ([floor] * devices, [floor] * devices), (1.0, 1.0)
    ends = tuple([prices.FREE if work else prices.LOW for work in row] for row in pair)
    time_s, shares = prices.linear_bands(fixed, pair, fewest, budgets, lows, ends)
    wall_s = float((np.array(fixed) + least.sum(axis=0)).max())
    assert time_s == pytest.approx(prices._by_halves(fixed, pair, fewest, budgets, lows, wall_s)[0], rel=1e-9)
    assert (np.array(shares).sum(axis=1) <= 1 + 1e-9).all()


@settings(max_examples=40)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from(["linear", "shannon", "table"]), st.sampled_from([WIDE, TIGHT])
)
def test_one_share_is_exact_against_all_shares_of_two_devices(seed, kind, limits):
    generator = np.random.default_rng(seed)
    links = links_of(generator, 2, rule_of(kind, limits))
    demand = demand_of(generator, 2, idle=0.0)
    best_s = latency_s(demand, links, minmax(demand, links, floor=0.0))
    first = np.linspace(0.0, 1.0, 4001)
    shares = np.stack([first, 1 - first], axis=-1)[:, None]
    rates = rates_mbit(links.rule, links.states, shares) * 1e6
    times = demand.fixed_s + demand.downlink_bits / rates[:, 0] + demand.uplink_bits / rates[:, 1]
    grid = float(times.max(axis=1).min())
    assert best_s <= grid * (1 + 1e-9)


def test_a_dead_link_gets_no_band_that_others_could_use():
    links = LinkState(Rule("linear", min_mbit=1.0), np.array([[0.0, 40.0, 40.0]] * 2), np.full((2, 3), 1 / 3))
    bits = np.full(3, 1e4)
    demand = Demand(np.zeros(3), bits, bits, np.ones(3, bool))
    for directions in DIRECTIONS:
        shares = minmax(demand, links, directions=directions, floor=0.01)
        # It takes 20 ms at the lowest rate whatever it gets: the others need not be given more than suffices for that.
        assert latency_s(demand, links, shares) == pytest.approx(0.02)
        assert (shares >= 0.01 * (1 - 1e-9)).all()


def test_devices_that_are_asked_nothing_keep_the_floor():
    generator = np.random.default_rng(0)
    links = links_of(generator, 4, rule_of("shannon"))
    bits = np.array([1e6, 0.0, 1e5, 0.0])
    demand = Demand(np.zeros(4), bits, bits, bits > 0)
    assert minmax(demand, links, floor=0.02)[:, [1, 3]] == pytest.approx(0.02)


def test_a_direction_without_bits_is_nobodys_bottleneck():
    links = LinkState(rule_of("linear"), np.full((2, 2), 10.0), np.full((2, 2), 0.5))
    demand = Demand(np.zeros(2), np.array([3e6, 0.0]), np.array([0.0, 1e6]), np.ones(2, bool))
    assert latency_s(demand, links, minmax(demand, links, floor=0.0)) == pytest.approx(0.4)
    apart = minmax(demand, links, directions="separate", floor=0.0)
    assert latency_s(demand, links, apart) == pytest.approx(0.3)


@pytest.mark.parametrize("kind", ["linear", "shannon", "table"])
@pytest.mark.parametrize("directions", DIRECTIONS)
def test_a_thousand_devices(kind, directions):
    generator = np.random.default_rng(3)
    links, demand = links_of(generator, 1024, rule_of(kind)), demand_of(generator, 1024)
    shares = minmax(demand, links, directions=directions)
    assert latency_s(demand, links, shares) < 0.7 * latency_s(demand, links, links.shares)
    assert len(demand.loaded) > module.FEW_DEVICES
