"""The papers' policies and the plain baselines."""

from __future__ import annotations

import numpy as np
import pytest

from payloads.wdmoe.gating import mass_of, selector_of
from payloads.wdmoe.routing import loads_of
from payloads.wdmoe.selectors.wlr import cosines

from .conftest import latency_s, routing_of, view_of


def test_top_k_keeps_the_largest(view):
    keep = selector_of({"kind": "top_k", "k": 1}).select(view).keep
    assert keep[:, 0].all()
    assert not keep[:, 1:].any()


def test_wlr_drops_the_least_expert_where_weights_and_latencies_point_apart(view):
    low = selector_of({"kind": "wlr", "theta_start": 0.7, "theta_max": 0.7}).select(view)
    mass = mass_of(view.routing)
    alike = cosines(mass, view.costs.pair_s[view.device_of[view.routing.index]])
    assert (low.keep.all(axis=1) == (alike > 0.7)).all()
    assert low.keep[:, 0].all()
    high = selector_of({"kind": "wlr", "theta_start": 0.7, "theta_max": 0.7, "direction": "high"}).select(
        view
    )
    assert (high.keep.all(axis=1) == (alike < 1.0)).all()


def test_wlr_raises_theta_until_the_ratio_has_gained(view):
    def ratio(settings):
        chosen = selector_of({"kind": "wlr", **settings}).select(view)
        return (mass_of(view.routing) * chosen.keep).sum() / latency_s(view, chosen), (~chosen.keep).sum()

    nothing, _ = ratio({"theta_start": 0.0, "theta_max": 0.0})
    gained, dropped = ratio({"gain": 0.01})
    assert gained > 1.005 * nothing
    more, still_more = ratio({"gain": 0.05})
    assert more >= gained
    assert still_more >= dropped


def test_bottleneck_spares_the_device_that_was_measured_slow():
    selector = selector_of({"kind": "bottleneck", "threshold": 0.4})
    view = view_of(5, 300)
    before = selector.select(view)
    loads = loads_of(before, view.device_of, 4)
    devices = view.device_of[view.routing.index]
    by_model = set(np.unique(devices[~before.keep]))
    assert len(by_model) == 1  # the latency model's bottleneck, as long as nothing was measured
    for slow in range(4):
        seconds = np.full(4, 0.001)
        seconds[slow] = 10.0
        for _ in range(30):  # what was measured before fades
            selector.observe(0, 1, loads, seconds)
        keep = selector.select(view).keep
        assert set(np.unique(devices[~keep])) == {slow}
        assert (mass_of(view.routing)[~keep] <= 0.4).all()
        # A layer that nobody measured still goes by the model.
        unmeasured = selector.select(view._replace(layer=1)).keep
        assert (unmeasured == before.keep).all()


def test_bottleneck_does_not_take_an_unused_device_for_a_measured_one():
    selector, view = selector_of({"kind": "bottleneck"}), view_of(5, 300)
    loads = loads_of(selector.select(view), view.device_of, 4)
    selector.observe(
        0, 1, loads._replace(pairs=loads.pairs * np.array([1, 0, 1, 1])), np.array([1.0, np.nan, 1.0, 1.0])
    )
    selector.observe(0, 2, loads, np.array([1e-3, 50.0, 1e-3, 1e-3]))
    for _ in range(30):
        selector.observe(0, 2, loads, np.array([1e-3, np.nan, 1e-3, 1e-3]))
    keep = selector.select(view).keep
    assert set(np.unique(view.device_of[view.routing.index][~keep])) == {1}


def test_similar_moves_to_faster_devices_only_and_within_the_tolerance(view):
    chosen = selector_of({"kind": "similar", "tolerance": 0.4, "skip": 0.0}).select(view)
    moved = chosen.index != view.routing.index
    assert moved.any()
    pair_s = view.costs.pair_s[view.device_of]
    assert (pair_s[chosen.index[moved]] < pair_s[view.routing.index[moved]]).all()
    rows = moved.nonzero()[0]
    scores = view.routing.scores
    assert (scores[rows, chosen.index[moved]] >= 0.6 * scores[rows, view.routing.index[moved]] - 1e-6).all()
    assert chosen.keep.all()


def test_similar_goes_by_a_matrix_where_there_is_one():
    view = view_of(4, 1, experts=4, devices=4)
    pair_s = view.costs.pair_s
    slow, fast = int(pair_s.argmax()), int(pair_s.argmin())
    others = [e for e in range(4) if e not in (slow, fast)]
    scores = np.zeros((1, 4))
    scores[0, [slow, others[0], others[1], fast]] = 0.6, 0.35, 0.04, 0.01
    view = view._replace(routing=routing_of(scores, 2))
    similarity = np.eye(4)
    settings = {"kind": "similar", "skip": 0.0, "tolerance": 0.1}
    assert (
        selector_of({**settings, "similarity": similarity.tolist()}).select(view).index == view.routing.index
    ).all()
    similarity[slow, fast] = 0.95
    for matrix in (similarity.tolist(), [similarity.tolist()]):
        assert selector_of({**settings, "similarity": matrix}).select(view).index[0, 0] == fast


def test_greedy_weighs_score_against_latency(view):
    plain = selector_of({"kind": "greedy", "balance": 0}).select(view)
    assert (plain.index == view.routing.index).all()
    keen = selector_of({"kind": "greedy", "balance": 50}).select(view)
    token_s = (view.costs.fixed_s + view.costs.pair_s)[view.device_of]
    assert token_s[keen.index].max() == pytest.approx(np.sort(token_s)[1])
    one = selector_of({"kind": "greedy", "k": 1}).select(view)
    assert (one.keep.sum(axis=1) == 1).all()
    value = view.routing.scores / token_s
    assert (one.index[one.keep] == value.argmax(axis=1)).all()
