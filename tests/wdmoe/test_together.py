"""Selection and bandwidth chosen together: what each of them alone does is never better, and the bound is one."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payloads.linkd.channel import Rule
from payloads.station.link_state import LinkState, VirtualLinks
from payloads.wdmoe.bounds import bounds_of
from payloads.wdmoe.buckets import Buckets
from payloads.wdmoe.decision import decider_of
from payloads.wdmoe.latency import DeviceSpeed, LatencyModel
from payloads.wdmoe.pace import ExpertShape
from payloads.wdmoe.routing import Routing, Selection, loads_of
from payloads.wdmoe.tally import weigh

EXPERTS = 8


class World:
    """Devices, links and the router's choice for one layer; all follows from the seed."""

    def __init__(self, seed, tokens, kind, *, devices=4, chosen=2, limits=(0.01, 10_000.0), buckets=False):
        random = np.random.default_rng(seed)
        self.tokens, self.devices, self.chosen = tokens, devices, chosen
        speeds = tuple(
            DeviceSpeed(1e12 * (1 + number % 3), 1e11, float(random.uniform(0, 1)), 0.001 * number)
            for number in range(devices)
        )
        names = tuple(f"d{number}" for number in range(devices))
        self.model = LatencyModel(names, ExpertShape(256, 512, 2), speeds, first_frame=not buckets)
        scores = random.dirichlet(np.full(EXPERTS, 0.5), tokens)
        index = np.argsort(-scores, axis=1)[:, :chosen]
        weights = np.take_along_axis(scores, index, axis=1)
        self.mass = weights / weights.sum(axis=1, keepdims=True)
        self.routing = Routing(index, self.mass, scores)
        self.device_of = random.integers(0, devices, (1, EXPERTS))
        table = {"thresholds_db": (-5, 5, 15), "efficiencies": (0.3, 1.2, 4.0)} if kind == "table" else {}
        rule = Rule(kind, bandwidth_mhz=20.0, min_mbit=limits[0], max_mbit=limits[1], **table)
        states = 10 ** random.uniform(0.7, 2.7, (2, devices))
        self.links = LinkState(rule, states, np.full((2, devices), 1 / devices))

    def decider(self, selection, bandwidth):
        return decider_of(selection, bandwidth, self.model, self.device_of, self.links)

    def seconds(self, decider, made):
        """What the layer takes at the shares that are in force."""
        links = self.links if made.shares is None else self.links.with_shares(made.shares)
        return float(decider.costs(links).dispatch_s(made.loads).max())

    def every_selection(self, tau):
        """What any selection that drops pairs and keeps that share of the mass asks of the devices."""
        rows = [row for row in itertools.product((True, False), repeat=self.chosen) if any(row)]
        for picked in itertools.product(rows, repeat=self.tokens):
            keep = np.array(picked)
            if (self.mass * keep).sum() >= tau * self.tokens - 1e-9:
                sent = Selection(self.routing.index, keep, self.routing.weights)
                yield loads_of(sent, self.device_of[0], self.devices)


KINDS = st.sampled_from(["linear", "shannon"])
SEEDS = st.integers(0, 10**6)
TAUS = st.sampled_from([0.5, 0.7, 0.9, 0.97, 1.0])
BANDWIDTHS = st.sampled_from(
    [
        {"kind": "minmax", "floor": 0.1},
        {"kind": "minmax", "directions": "separate"},
        {"kind": "minmax", "floor": 0.0},
    ]
)


def budget(tau, **more):
    return {"kind": "budget", "tau": tau, "scope": "block", **more}


@given(SEEDS, st.sampled_from([1, 1, 6, 40]), KINDS, TAUS, BANDWIDTHS, st.booleans(), st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_together_is_never_slower_than_one_after_the_other(
    seed, tokens, kind, tau, bandwidth, replaces, chosen
):
    world = World(seed, tokens, kind, chosen=chosen)
    chooses, top = budget(tau, replace=replaces), {"kind": "top_k", "k": chosen}

    def done(selection, shares):
        decider = world.decider(selection, shares)
        return decider, decider.decide(0, 1, world.routing, world.links)

    decider, joint = done(chooses, bandwidth)
    joint_s = world.seconds(decider, joint)
    assert joint.predicted_s.max() == pytest.approx(joint_s)
    alone, alone_made = done(chooses, {"kind": "scenario"})
    # The selection that is made without the band in mind, with the band shared for it afterwards.
    after_s = decider.costs(
        world.links.with_shares(
            decider.allocator.shares_for(decider.model.demand(alone_made.loads), world.links)
        )
    ).layer_s(alone_made.loads)
    shared, shared_made = done(top, bandwidth)
    # Shares that would change by less than 1 % stay as they are.
    assert joint_s <= after_s * 1.011
    assert joint_s <= world.seconds(alone, alone_made) * 1.011
    assert joint_s <= world.seconds(shared, shared_made) * 1.011
    kept = weigh(world.routing, joint.selection, world.device_of[0], world.devices)
    assert kept.mass.sum() >= tau * tokens - 1e-6


@given(SEEDS, st.sampled_from(["linear", "shannon", "table"]), TAUS, BANDWIDTHS, st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_one_token_gets_the_best_there_is(seed, kind, tau, bandwidth, chosen):
    world = World(seed, 1, kind, chosen=chosen)
    decider = world.decider(budget(tau, most=1.0), bandwidth)
    made = decider.decide(0, 1, world.routing, world.links)

    def best_s(loads):
        demand = decider.model.demand(loads)
        shares = decider.allocator.shares_for(demand, world.links)
        return decider.costs(world.links.with_shares(shares)).demand_s(demand).max()

    best = min(best_s(loads) for loads in world.every_selection(tau))
    assert made.predicted_s.max() <= best * 1.011


@given(SEEDS, st.sampled_from([1, 3, 12]), KINDS, TAUS, st.booleans())
@settings(max_examples=30, deadline=None)
def test_other_numbers_for_the_devices_change_nothing(seed, tokens, kind, tau, replaces):
    world = World(seed, tokens, kind)
    order = np.random.default_rng(seed).permutation(world.devices)
    place = np.argsort(order)
    decider = world.decider(budget(tau, replace=replaces), {"kind": "minmax"})
    one = decider.decide(0, 1, world.routing, world.links)
    world.model = world.model.limited(world.model.devices[number] for number in order)
    world.device_of = place[world.device_of]
    world.links = LinkState(world.links.rule, world.links.states[:, order], world.links.shares[:, order])
    other = world.decider(budget(tau, replace=replaces), {"kind": "minmax"}).decide(
        0, 1, world.routing, world.links
    )
    assert other.predicted_s.max() == pytest.approx(one.predicted_s.max(), rel=1e-5)
    assert (other.selection.keep == one.selection.keep).all()
    assert (other.selection.index == one.selection.index).all()


@given(
    SEEDS,
    st.sampled_from([1, 2, 3, 4]),
    st.sampled_from(["linear", "shannon", "table"]),
    TAUS,
    BANDWIDTHS,
    st.sampled_from([(0.01, 10_000.0), (1.0, 20.0)]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_nothing_that_keeps_the_budget_is_below_the_bound(
    seed, tokens, kind, tau, bandwidth, limits, buckets
):
    world = World(seed, tokens, kind, devices=3, limits=limits, buckets=buckets)
    settings_ = budget(tau, most=1.0)
    decider = world.decider(settings_, bandwidth)
    random = np.random.default_rng(seed)
    for per_layer in (True, False):
        if not per_layer:
            decider = world.decider(settings_, {"kind": "scenario"})
        bounds = bounds_of(settings_, decider)
        bounds.add("token", 0, 1, world.routing, world.device_of[0], world.links)
        bound = bounds.waits_s()["token"]
        for loads in world.every_selection(tau):
            tries = [world.links.shares]
            if per_layer:
                demand = decider.model.demand(loads)
                tries = [decider.allocator.shares_for(demand, world.links)]
                low, _ = decider.allocator.limits(world.links)
                for _ in range(4):
                    free = random.dirichlet(np.ones(world.devices))
                    tries.append(low + (1.0 - low.sum(axis=1, keepdims=True)) * free)
            for shares in tries:
                # The first message that the links see: full buckets.
                rates = world.links.with_shares(shares).rates_mbit()
                took = Buckets(world.model).dispatch_s(loads, rates[0], rates[1], 0.0)
                assert took.max() >= bound * (1 - 1e-6)


@pytest.mark.parametrize("kind", ["linear", "shannon"])
@pytest.mark.parametrize("directions", ["same", "separate"])
def test_a_large_block_comes_near_the_bound(kind, directions):
    above = []
    for seed in range(4):
        world = World(seed, 400, kind, devices=8)
        world.device_of = np.arange(EXPERTS)[None]
        settings_ = budget(0.9, most=1.0)
        decider = world.decider(settings_, {"kind": "minmax", "directions": directions})
        made = decider.decide(0, 0, world.routing, world.links)
        bounds = bounds_of(settings_, decider)
        bounds.add("prompt", 0, 0, world.routing, world.device_of[0], world.links)
        above.append(float(made.predicted_s.max()) / bounds.waits_s()["prompt"])
    assert min(above) >= 1 - 1e-9
    assert np.mean(above) <= 1.08


def test_a_stream_of_tokens_is_not_below_its_bound():
    settings_ = {"kind": "budget", "tau": 0.9}
    first = World(0, 1, "shannon")
    decider = first.decider(settings_, {"kind": "minmax"})
    bounds, took = bounds_of(settings_, decider), 0.0
    for step in range(150):
        world = World(step, 1, "shannon")
        links = first.links.with_states(world.links.states)
        made = decider.decide(0, step + 1, world.routing, links)
        took += float(made.predicted_s.max())
        bounds.add(step, 0, step + 1, world.routing, first.device_of[0], links)
    bound = sum(bounds.waits_s().values())
    assert bound * (1 - 1e-9) <= took <= 1.1 * bound


def test_a_link_that_gets_better_under_way_lowers_the_bound():
    from payloads.linkd.channel import linear_channel

    fixed = linear_channel({"a": (8.0, 8.0), "b": (2.0, 2.0)})
    better = replace(
        fixed,
        t_s=(0.0, 1.0, 2.0),
        duration_s=3.0,
        downlink=[fixed.downlink[0], [each * 3 for each in fixed.downlink[0]], fixed.downlink[0]],
        uplink=[fixed.uplink[0]] * 3,
    )
    links = VirtualLinks(better, ["a", "b"])
    now = links.at(0.5).states
    assert (links.best(0.5, 0.9).states == now).all()
    assert (links.best(0.5, 1.5).states[0] == 3 * now[0]).all()
    assert (links.best(2.5, 3.5).states == now).all()
    assert (links.best(2.5, 4.5).states[0] == 3 * now[0]).all()
    assert (links.best(0.5, 9.0).states[0] == 3 * now[0]).all()
