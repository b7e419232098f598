"""A policy's decision for a layer: the same for the base station, quality passes and the simulator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payloads.linkd.channel import Rule
from payloads.station.link_state import LinkState
from payloads.wdmoe.decision import decider_of
from payloads.wdmoe.latency import DeviceSpeed, LatencyModel
from payloads.wdmoe.pace import ExpertShape
from payloads.wdmoe.routing import Routing, loads_of
from payloads.wdmoe.tally import Tally, weigh

EXPERTS, CHOSEN = 8, 2


def model_of(devices, first_frame=True):
    speeds = tuple(DeviceSpeed(1e10 * (number + 1), 1e9, 0.5) for number in range(devices))
    names = tuple(f"d{number}" for number in range(devices))
    return LatencyModel(names, ExpertShape(96, 192, 2), speeds, first_frame=first_frame)


def routing_of(generator, tokens):
    scores = generator.dirichlet(np.full(EXPERTS, 0.5), tokens)
    index = np.argsort(-scores, axis=1)[:, :CHOSEN]
    weights = np.take_along_axis(scores, index, axis=1)
    return Routing(index, weights / weights.sum(axis=1, keepdims=True), scores)


def links_of(generator, devices, kind="linear"):
    rule = Rule(kind, bandwidth_mhz=20.0, min_mbit=0.1, max_mbit=1000.0)
    states = 10 ** generator.uniform(0.5, 2.5, (2, devices))
    return LinkState(rule, states, np.full((2, devices), 1 / devices))


@st.composite
def worlds(draw):
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    devices = draw(st.integers(2, 6))
    device_of = generator.integers(0, devices, (3, EXPERTS))
    kind = draw(st.sampled_from(["linear", "shannon"]))
    links = links_of(generator, devices, kind)
    return generator, devices, device_of, links, draw(st.sampled_from([1, 1, 5, 40]))


def decide(world, selection, bandwidth=None, routing=None, links=None):
    generator, devices, device_of, shown, tokens = world
    links = shown if links is None else links
    decider = decider_of(selection, bandwidth or {"kind": "scenario"}, model_of(devices), device_of, links)
    routing = routing_of(generator, tokens) if routing is None else routing
    return decider, routing, decider.decide(1, 4, routing, links)


@given(worlds())
def test_all_that_the_router_asks_for_goes_out_untouched(world):
    _, routing, made = decide(world, {"kind": "top_k", "k": CHOSEN})
    assert made.shares is None
    assert made.selection.index is routing.index
    assert made.selection.weights is routing.weights  # to the bit
    assert made.selection.keep.all()
    loads = loads_of(made.selection, world[2][1], world[1])
    assert all((a == b).all() for a, b in zip(made.loads, loads, strict=True))
    assert ((made.predicted_s > 0) == (loads.pairs > 0)).all()


@given(worlds(), st.floats(0.5, 1.0))
@settings(max_examples=50)
def test_both_together_are_no_slower_than_either_alone(world, tau):
    generator, _, _, links, tokens = world
    routing = routing_of(generator, tokens)
    plain, budget = {"kind": "top_k", "k": CHOSEN}, {"kind": "budget", "tau": tau, "scope": "block"}
    minmax = {"kind": "minmax", "directions": "separate"}

    def layer_s(selection, bandwidth):
        decider, _, made = decide(world, selection, bandwidth, routing)
        in_force = links if made.shares is None else links.with_shares(made.shares)
        assert made.predicted_s == pytest.approx(decider.costs(in_force).dispatch_s(made.loads))
        kept = weigh(routing, made.selection, world[2][1], world[1])
        assert kept.mass.sum() >= tau * tokens - 1e-9 or selection is plain
        return made.predicted_s.max()

    neither, alone = layer_s(plain, None), layer_s(plain, minmax)
    chosen, joint = layer_s(budget, None), layer_s(budget, minmax)
    # Shares that would change by less than 1 % stay as they are.
    assert alone <= neither * (1 + 1e-9)
    assert chosen <= neither * (1 + 1e-9)
    assert joint <= min(chosen, neither) * (1 + 1e-9)
    assert joint <= alone * 1.02


SELECTIONS = st.sampled_from([{"kind": "top_k", "k": CHOSEN}, {"kind": "budget", "tau": 0.8}])


@given(worlds(), st.floats(0.01, 50), SELECTIONS)
def test_the_band_is_shared_anew_only_where_that_gains_what_it_must(world, gain_ms, selection):
    routing, links = routing_of(world[0], world[4]), world[3]
    always, _, free = decide(world, selection, {"kind": "minmax"}, routing)
    _, _, without = decide(world, selection, None, routing)
    _, _, made = decide(world, selection, {"kind": "minmax", "gain_ms": gain_ms}, routing)
    gained_s = without.predicted_s.max() - free.predicted_s.max()
    if free.shares is not None and gained_s > 1e-3 * gain_ms:
        assert (made.shares == free.shares).all()
        assert (made.selection.keep == free.selection.keep).all()
        return
    assert made.shares is None
    in_force_s = always.costs(links).dispatch_s(made.loads)
    assert made.predicted_s == pytest.approx(in_force_s)
    if free.shares is not None:
        assert (made.selection.keep == without.selection.keep).all()  # chosen for the shares that stay
        assert in_force_s.max() <= free.predicted_s.max() + 1e-3 * gain_ms


@given(worlds())
@settings(max_examples=30)
def test_shares_are_within_the_band_of_the_scenario(world):
    _, _, made = decide(world, {"kind": "budget", "tau": 0.8}, {"kind": "minmax"})
    if made.shares is not None:
        assert (made.shares > 0).all()
        assert (made.shares.sum(axis=1) <= 1 + 1e-9).all()


def test_links_that_nobody_shapes_leave_compute_and_round_trips():
    generator = np.random.default_rng(1)
    device_of = generator.integers(0, 3, (3, EXPERTS))
    decider = decider_of({"kind": "budget", "tau": 0.7}, {"kind": "minmax"}, model_of(3), device_of, None)
    assert decider.before_token("p1", 1, None) is None
    made = decider.decide(0, 1, routing_of(generator, 1), None)
    assert made.shares is None
    assert np.isfinite(made.predicted_s).all()
    assert made.predicted_s[made.loads.pairs > 0].min() >= 0.5e-3


def test_a_delay_counts_twice_and_is_no_reason_to_choose_otherwise_on_all_links():
    generator = np.random.default_rng(2)
    device_of = generator.integers(0, 3, (3, EXPERTS))
    links, routing = links_of(generator, 3), routing_of(generator, 4)
    top = {"kind": "top_k", "k": CHOSEN}
    plain, late = (
        decider_of(top, {"kind": "scenario"}, model_of(3), device_of, links, delay_ms=delay_ms)
        for delay_ms in (0.0, np.array([3.0, 0.0, 0.0]))
    )
    more = late.decide(0, 1, routing, links).predicted_s - plain.decide(0, 1, routing, links).predicted_s
    assert more == pytest.approx([6e-3, 0.0, 0.0])


def test_a_decision_does_not_count_on_a_full_bucket():
    """The first frame is free for a lone message; the layers follow each other faster than it is earned again."""
    generator = np.random.default_rng(3)
    device_of = generator.integers(0, 3, (3, EXPERTS))
    links, routing = links_of(generator, 3), routing_of(generator, 1)
    made = [
        decider_of(
            {"kind": "top_k", "k": 2}, {"kind": "minmax"}, model_of(3, first_frame), device_of, links
        ).decide(0, 1, routing, links)
        for first_frame in (True, False)
    ]
    assert made[0].shares is not None
    assert made[0].shares == pytest.approx(made[1].shares)


@given(worlds())
@settings(max_examples=30)
def test_a_tally_loses_nothing(world):
    generator, devices, device_of, links, tokens = world
    tally = Tally([f"d{number}" for number in range(devices)])
    wanted = dict.fromkeys(range(devices), 0)
    decider = decider_of(
        {"kind": "budget", "tau": 0.6, "replace": True},
        {"kind": "scenario"},
        model_of(devices),
        device_of,
        links,
    )
    for step in range(3):
        routing = routing_of(generator, tokens)
        made = decider.decide(1, step, routing, links)
        tally.add(1, step, routing, made.selection, device_of[1])
        for expert in routing.index.reshape(-1).tolist():
            wanted[int(device_of[1][expert])] += 1
    rows = tally.rows()
    assert [(row["stage"], row["device"]) for row in rows] == [
        (stage, f"d{number}") for stage in ("prompt", "decode") for number in range(devices)
    ]
    for number in range(devices):
        mine = [row for row in rows if row["device"] == f"d{number}"]
        assert sum(row["pairs"] - row["moved_in"] + row["dropped"] for row in mine) == wanted[number]
    # What was moved lost mass only where the new expert is liked less.
    assert sum(row["mass"] for row in rows) >= 0.6 * 3 * tokens - 1e-9
    assert sum(row["mass"] + row["dropped_mass"] for row in rows) >= 3 * tokens - 1e-6
