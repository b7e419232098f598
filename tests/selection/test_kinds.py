"""What holds for every kind of expert selection."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payloads.wdmoe.gating import SELECTOR_KINDS, check_selection, finish, mass_of, selector_of
from payloads.wdmoe.routing import Routing

from .conftest import latency_s, routing_of, view_of, views

EACH = [
    {"kind": "top_k", "k": 1},
    {"kind": "top_k", "k": 3},
    {"kind": "wlr"},
    {"kind": "wlr", "direction": "high", "theta_start": 0.0},
    {"kind": "bottleneck"},
    {"kind": "bottleneck", "threshold": 1.0},
    {"kind": "similar", "tolerance": 0.9, "skip": 1.0},
    {"kind": "greedy", "k": 1},
    {"kind": "greedy", "balance": 4},
    {"kind": "budget", "tau": 0.9},
    {"kind": "budget", "tau": 0.0, "scope": "block"},
    {"kind": "budget", "tau": 0.5, "replace": True},
    {"kind": "budget", "tau": 0.7, "scope": "block", "replace": True, "renormalise": "none"},
]
NOTHING_ALLOWED = [
    {"kind": "top_k", "k": 8},
    {"kind": "wlr", "theta_start": 0.0, "theta_max": 0.0},
    {"kind": "bottleneck", "threshold": 0.0},
    {"kind": "similar", "tolerance": 0.0, "skip": 0.0},
    {"kind": "greedy", "balance": 0},
    {"kind": "budget", "tau": 1.0},
    {"kind": "budget", "tau": 1.0, "scope": "block", "replace": True},
]


def _name(settings):
    return " ".join(str(value) for value in settings.values())


def test_every_kind_is_tried_and_says_where_it_comes_from():
    for tried in (EACH, NOTHING_ALLOWED):
        assert {chosen["kind"] for chosen in tried} == set(SELECTOR_KINDS)
        assert all(check_selection(chosen) == [] for chosen in tried)
    assert all(kind.source for kind in SELECTOR_KINDS.values())


@pytest.mark.parametrize("chosen", EACH, ids=_name)
@given(view=views())
@settings(max_examples=40, deadline=None)
def test_each_token_keeps_an_expert_and_the_weights_are_sound(chosen, view):
    routing = view.routing
    index, keep, weights = selector_of(chosen).select(view)
    assert index.shape == keep.shape == weights.shape == routing.index.shape
    assert keep.any(axis=1).all()
    assert (weights[~keep] == 0).all()
    assert (weights >= 0).all()
    assert weights.dtype == routing.weights.dtype
    for row, mask in zip(index, keep, strict=True):
        assert len(set(row[mask])) == mask.sum()  # nobody is asked twice
    whole = keep.all(axis=1) & (index == routing.index).all(axis=1)
    assert (weights[whole] == routing.weights[whole]).all()
    if chosen.get("renormalise") == "none":
        untouched = keep & (index == routing.index)
        assert (weights[untouched] == routing.weights[untouched]).all()
    elif chosen["kind"] != "budget":
        np.testing.assert_allclose(weights.sum(axis=1), routing.weights.sum(axis=1), rtol=1e-4)


@pytest.mark.parametrize("chosen", EACH, ids=_name)
@given(view=views(), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_the_numbers_of_the_devices_do_not_matter(chosen, view, seed):
    from payloads.wdmoe.latency import LatencyModel

    devices = len(view.costs.fixed_s)
    order = np.random.default_rng(seed).permutation(devices)
    model = view.costs._model
    names = [model.devices[d] for d in order]
    costs = model.limited(names)
    assert isinstance(costs, LatencyModel)
    mbit = [8 * 1024 * 2 / 1e6 / row_s for row_s in (view.costs.down_s, view.costs.up_s)]
    place = np.argsort(order)
    there = view._replace(device_of=place[view.device_of], costs=costs.costs(mbit[0][order], mbit[1][order]))
    here = view._replace(costs=model.costs(*mbit))
    first, second = selector_of(chosen).select(here), selector_of(chosen).select(there)
    assert latency_s(here, first) == pytest.approx(latency_s(there, second), rel=1e-6)
    mass = mass_of(view.routing)
    assert (mass * first.keep).sum() == pytest.approx((mass * second.keep).sum(), abs=1e-4)


@pytest.mark.parametrize("chosen", NOTHING_ALLOWED, ids=_name)
@given(view=views())
@settings(max_examples=20, deadline=None)
def test_where_nothing_may_be_lost_the_router_decides(chosen, view):
    index, keep, weights = selector_of(chosen).select(view)
    assert keep.all()
    before, after = (np.take_along_axis(view.routing.scores, i, axis=1) for i in (view.routing.index, index))
    assert (before == after).all()  # another expert with the very same score is no loss
    assert (weights == view.routing.weights).all()


@pytest.mark.parametrize("chosen", EACH, ids=_name)
def test_a_layer_is_left_as_it_was_and_no_other_layer_is_remembered(chosen):
    selector, other = selector_of(chosen), selector_of(chosen)
    for seed in range(20):
        here, there = view_of(seed, 1, layer=1), view_of(seed + 50, 1, layer=2)
        before = [array.copy() for array in here.routing]
        selector.select(there)
        one, two = selector.select(here), other.select(here)
        assert all((a == b).all() for a, b in zip(one, two, strict=True))
        assert all((a == b).all() for a, b in zip(before, here.routing, strict=True))


def test_kinds_that_do_not_look_at_links_are_named():
    slow, fast = view_of(1, 50), view_of(1, 50)._replace(costs=view_of(99, 50).costs)
    for chosen in EACH:
        same = (selector_of(chosen).select(slow).keep == selector_of(chosen).select(fast).keep).all()
        assert same or SELECTOR_KINDS[chosen["kind"]].follows_links


@pytest.mark.parametrize(
    ("given_settings", "problem"),
    [
        ({}, f"kind: expected one of {', '.join(sorted(SELECTOR_KINDS))}, got None"),
        ({"kind": "top_k"}, "k: expected a whole number of at least 1, got None"),
        ({"kind": "top_k", "k": 0}, "k: expected a whole number of at least 1, got 0"),
        ({"kind": "top_k", "k": True}, "k: expected a whole number of at least 1, got True"),
        ({"kind": "top_k", "k": 1, "K": 1}, "K: unknown setting of the kind top_k"),
        ({"kind": "top_k", "k": 1, "renormalise": True},
         "renormalise: expected sum, none, or a number from 0 to 1, got True"),
        ({"kind": "budget"}, "tau: expected a share from 0 to 1, got None"),
        ({"kind": "budget", "tau": 1.5}, "tau: expected a share from 0 to 1, got 1.5"),
        ({"kind": "budget", "tau": float("nan")}, "tau: expected a share from 0 to 1, got nan"),
        ({"kind": "budget", "tau": 1, "scope": "ever"}, "scope: expected one of block, running, got 'ever'"),
        ({"kind": "budget", "tau": 1, "layer_cost": [1, 0]},
         "layer_cost: expected a list of numbers above 0, got [1, 0]"),
        ({"kind": "similar", "similarity": [[1, 0]]},
         "similarity: expected a square matrix of numbers from -1 to 1, or one for each layer, got [[1, 0]]"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(given_settings, problem):
    assert check_selection(given_settings) == [problem]


def test_good_settings_are_taken():
    for good in (
        {"kind": "similar", "similarity": [[1, 0.5], [0.5, 1]]},
        {"kind": "similar", "similarity": [[[1, 0.5], [0.5, 1]], [[1, 0], [0, 1]]]},
        {"kind": "budget", "tau": 0.9, "layer_cost": [1, 2.5], "renormalise": 0.5, "cap": None},
    ):
        assert check_selection(good) == []


def test_checking_a_policy_needs_neither_torch_nor_numpy():
    code = (
        "import sys; from payloads.wdmoe.gating import check_selection\n"
        "assert not check_selection({'kind': 'budget', 'tau': 0.9})\n"
        "assert not {'torch', 'numpy', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_finish_keeps_the_last_expert_and_the_bits_of_others():
    routing = routing_of([[0.3, 0.7], [0.1, 0.9]], 2)
    _, keep, weights = finish(routing, np.array([[False, False], [True, True]]), {})
    assert keep.tolist() == [[True, False], [True, True]]
    assert weights[0].tolist() == [pytest.approx(1.0), 0.0]
    assert (weights[1] == routing.weights[1]).all()


@pytest.mark.parametrize(("how", "weight"), [("sum", 1.0), ("none", 0.64), (0.5, 0.8)])
def test_finish_renormalises(how, weight):
    routing = routing_of([[0.64, 0.36]], 2)
    kept = finish(routing, np.array([[True, False]]), {"renormalise": how}).weights
    assert kept[0].tolist() == pytest.approx([weight, 0.0])


def test_a_replaced_expert_gets_the_weight_that_the_router_would_have_given_it():
    scores = np.array([[0.5, 0.3, 0.2]])
    index, keep = np.array([[0, 2]]), np.ones((1, 2), bool)
    chosen = finish(routing_of(scores, 2), keep, {}, index)
    assert chosen.weights[0].tolist() == pytest.approx([5 / 7, 2 / 7], abs=1e-6)
    # Scores as weights, as models have that do not normalise: the new one's score is its weight.
    routing = Routing(np.array([[0, 1]]), np.array([[0.5, 0.3]]), scores)
    plain = finish(routing, keep, {"renormalise": "none"}, index)
    assert plain.weights[0].tolist() == pytest.approx([0.5, 0.2])
    # A model that weighs all alike goes on doing so.
    alike = finish(Routing(np.array([[0, 1]]), np.ones((1, 2)), scores), keep, {}, index)
    assert alike.weights[0].tolist() == [1.0, 1.0]
