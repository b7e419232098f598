"""What becomes of a layer's pairs when devices are gone: the policy's settings, weights, and who is asked instead."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payloads.wdmoe.bs import losses
from payloads.wdmoe.bs.asked import Asked, Pairs, loads_of_parcels, pairs_of
from payloads.wdmoe.bs.loss import KINDS, THEN, LossPolicy, check_loss, rescue
from payloads.wdmoe.bs.outcome import OutcomeCount
from payloads.wdmoe.bs.packing import Parcel
from payloads.wdmoe.bs.reach import Gone, Reach
from payloads.wdmoe.gating import finish
from payloads.wdmoe.routing import Routing, loads_of
from payloads.wire.channel import DeviceLostError
from payloads.wire.clock import Offset, OffsetHistory

DEVICES = ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"kind": "hope"}, "kind: expected one of fail, replica, drop, wait, got 'hope'"),
        ({"kind": "drop", "then": "drop"}, "then: only with the kind replica, not with drop"),
        ({"kind": "replica", "then": "replica"}, "then: expected one of fail, drop, wait, got 'replica'"),
        ({"deadline_factor": 1}, "deadline_factor: expected a number above 1, got 1"),
        (
            {"deadline_floor_ms": True},
            "deadline_floor_ms: expected a number of milliseconds above 0, got True",
        ),
        ({"wait_s": float("inf")}, "wait_s: expected a number of seconds above 0, got inf"),
        ({"kind": "drop", "after": 1}, "after: unknown setting"),
        ("drop", "expected settings with a kind, got 'drop'"),
    ],
)
def test_wrong_settings_are_said(given, problem):
    assert check_loss(given) == [problem]


def test_what_is_left_out_has_its_default():
    assert LossPolicy.of({}) == LossPolicy.of(None) == LossPolicy("fail", "fail", 10.0, 20_000.0, 20.0)
    given = {"kind": "replica", "then": "drop", "deadline_factor": 3, "wait_s": None}
    assert check_loss(given) == []
    policy = LossPolicy.of(given)
    assert policy == LossPolicy("replica", "drop", 3.0, 500.0, 20.0)
    assert policy.deadline_s(0.2) == pytest.approx(0.5 + 3 * 0.2)
    assert {kind: LossPolicy(kind, "wait").final(others=True) for kind in KINDS} == {k: k for k in KINDS}
    assert [LossPolicy("replica", then).final(others=False) for then in THEN] == list(THEN)


@st.composite
def layers(draw):
    """A routing of random sizes, and what a policy that drops some pairs makes of it."""
    tokens, experts = draw(st.integers(1, 6)), draw(st.integers(2, 9))
    chosen = draw(st.integers(1, min(4, experts)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    scores = generator.dirichlet(np.ones(experts), tokens).astype(np.float32)
    index = np.argsort(-scores, axis=1, kind="stable")[:, :chosen]
    weights = np.take_along_axis(scores, index, axis=1)
    if draw(st.booleans()):
        weights = weights / weights.sum(axis=1, keepdims=True)
    routing = Routing(index, weights, scores)
    how = draw(st.sampled_from(["sum", "none", 0.5]))
    selection = finish(routing, generator.random(index.shape) < 0.8, {"renormalise": how})
    return generator, routing, selection, how


@given(layers(), st.floats(0, 1))
def test_a_token_keeps_what_can_be_reached_and_gets_the_best_of_it_when_it_would_lose_all(layer, share):
    generator, routing, selection, how = layer
    experts = routing.scores.shape[1]
    reachable = generator.random(experts) >= share
    reachable[generator.integers(experts)] = True
    lost = ~reachable[selection.index]
    left, asked = rescue(routing, selection, lost, reachable, how)
    untouched = ~(lost & selection.keep).any(axis=1)
    assert np.array_equal(left.weights[untouched], selection.weights[untouched])
    assert np.array_equal(left.index[untouched], selection.index[untouched])
    assert np.array_equal(left.keep[untouched], selection.keep[untouched])
    # Everybody gets something, and nothing of what is gone.
    assert left.keep.any(axis=1).all()
    assert reachable[left.index[left.keep]].all()
    assert (left.weights[~left.keep] == 0).all()
    alone = np.flatnonzero(~(selection.keep & ~lost).any(axis=1))
    assert sorted({place // lost.shape[1] for place in asked.tolist()}) == alone.tolist()
    for place in asked.tolist():
        token, choice = divmod(place, lost.shape[1])
        best = max(np.flatnonzero(reachable), key=lambda expert: routing.scores[token, expert])
        assert left.index[token, choice] == best
        assert left.keep[token].sum() == 1
    if how == "sum":
        assert left.weights.sum(axis=1) == pytest.approx(routing.weights.sum(axis=1), rel=1e-4)
    if how == "none":
        kept = left.keep & (left.index == selection.index)
        assert np.array_equal(left.weights[kept], selection.weights[kept])


@given(layers())
def test_nothing_reachable_is_an_error(layer):
    _, routing, selection, how = layer
    nothing = np.zeros(routing.scores.shape[1], dtype=bool)
    with pytest.raises(ValueError, match="no expert of the layer can be reached"):
        rescue(routing, selection, np.ones(selection.keep.shape, dtype=bool), nothing, how)


@st.composite
def racks(draw):
    """A layer on devices that hold experts once or several times, some of them gone."""
    _, routing, selection, how = draw(layers())
    holders = [
        tuple(draw(st.lists(st.sampled_from(DEVICES), min_size=1, max_size=3, unique=True)))
        for _ in range(routing.scores.shape[1])
    ]
    reach = Reach()
    reach.place([holders])
    names = draw(st.lists(st.sampled_from(reach.devices), unique=True))
    gone = {reach.devices.index(name) for name in names}
    return routing, selection, how, holders, reach, gone


def lose(reach, gone):
    reach.gone = {device: Gone(0, DeviceLostError(reach.devices[device], "gone")) for device in gone}


@settings(deadline=None)
@given(racks(), st.sampled_from(KINDS), st.sampled_from(THEN), st.booleans())
def test_whoever_is_asked_is_there_and_holds_it(rack, kind, then, known_before):
    routing, selection, how, holders, reach, gone = rack
    if known_before:
        lose(reach, gone)
    device_of = reach.serving(0, selection.index, lambda: None)
    lose(reach, gone)
    keep = None if selection.keep.all() else selection.keep
    asked = Asked(0, selection.index, keep, device_of, routing, selection.weights)
    pairs = pairs_of(selection.index, np.flatnonzero(selection.keep))
    before = device_of.copy()
    verdict = asked.settle(pairs, reach, LossPolicy(kind, then), how)
    assert np.array_equal(device_of, before)  # it may belong to the placement
    away = {e for e in np.unique(pairs.experts).tolist() if before[e] in gone}
    others = {e for e in away if set(holders[e]) - {reach.devices[d] for d in gone}}
    final = {LossPolicy(kind, then).final(expert in others) for expert in away}
    if verdict.failing is not None:
        assert verdict.failing in gone
        assert "fail" in final or len(gone) == len(reach.devices)
        return
    if verdict.waiting:
        assert "wait" in final
        assert set(verdict.waiting) <= gone
        return
    assert not final & {"fail", "wait"}
    asked_of = asked.device_of[verdict.pairs.experts]
    assert not gone & set(asked_of.tolist())
    for expert, device in zip(verdict.pairs.experts.tolist(), asked_of.tolist(), strict=True):
        assert reach.devices[device] in holders[expert]
    assert (np.diff(verdict.pairs.experts) >= 0).all()
    assert np.array_equal(asked.index.reshape(-1)[verdict.pairs.places], verdict.pairs.experts)
    now = asked.keep if asked.keep is not None else np.ones_like(selection.keep)
    assert sorted(verdict.pairs.places.tolist()) == np.flatnonzero(now).tolist()
    if not away:
        assert not asked.changed
        assert verdict.said == ()
    if asked.lost is None:
        # With another holder for each, nothing of the result changes.
        assert asked.weights is None
        assert np.array_equal(asked.index, selection.index)
    assert {event for _, event, _ in verdict.said} == {
        {"replica": "rerouted", "drop": "dropped"}[one] for one in final
    }


def test_a_device_that_refused_is_not_waited_for():
    reach = Reach()
    reach.place([[("a",), ("b",)]])
    index = np.array([[0, 1]])
    routing = Routing(index, np.array([[0.6, 0.4]]), np.array([[0.6, 0.4]]))
    asked = Asked(0, index, None, reach.serving(0, index, lambda: None), routing, routing.weights)
    asked.refused[0] = DeviceLostError("a", "no memory")
    pairs = Pairs(np.array([0, 1]), np.array([0, 1]))
    assert asked.settle(pairs, reach, LossPolicy("wait"), "sum").failing == 0
    verdict = asked.settle(pairs, reach, LossPolicy("drop"), "sum")
    assert verdict.said == ((0, "dropped", "1 pairs of 1 tokens"),)
    assert verdict.pairs.places.tolist() == [1]
    assert asked.weights is not None
    assert asked.weights.tolist() == [[0, 1]]


def test_events_do_not_pile_up_for_ever(monkeypatch):
    monkeypatch.setattr(losses, "MOST_EVENTS", 2)
    known = losses.Losses(lambda: (None, None))
    known.place([[("a",)]])
    heard = []
    known.heard = lambda device, event: heard.append((device, event))
    index = np.zeros((1, 1), dtype=np.int64)
    asked = Asked(0, index, None, known.reach.serving(0, index, lambda: None))
    for _ in range(3):
        known.refused(asked, 0, DeviceLostError("a", "no memory"))
    assert heard == [("a", "refused")] * 3
    assert len(known.events) == 2


@given(racks())
def test_loads_of_parcels_are_those_of_the_selection(rack):
    _, selection, _, _, reach, _ = rack
    device_of = reach.serving(0, selection.index, lambda: None)
    chosen = selection.keep.shape[1]
    places = np.flatnonzero(selection.keep)
    parcels = []
    for device in range(len(reach.devices)):
        mine = places[device_of[selection.index.reshape(-1)[places]] == device]
        if len(mine):
            parcels.append(Parcel(device, mine, len(np.unique(mine // chosen)), 0, []))
    got = loads_of_parcels(parcels, selection.index, device_of, len(reach.devices))
    for one, other in zip(got, loads_of(selection, device_of, len(reach.devices)), strict=True):
        assert np.array_equal(one, other)


def test_what_tokens_got_is_counted_over_the_layers():
    count = OutcomeCount()
    assert count.outcome() is None
    count.add(2, 3, None)
    count.add(2, 3, np.array([[True, False, True], [True, True, True]]))
    lost = np.array([[True, False, False], [False, False, False]])
    count.add(2, 3, None, lost, np.array([[True, False, False], [False, True, True]]))
    outcome = count.outcome()
    assert outcome is not None
    assert outcome.wanted.tolist() == [8, 9]
    assert outcome.lost.tolist() == [1, 0]
    # What was moved to another device and lost there too is lost.
    assert outcome.rerouted.tolist() == [0, 2]


def test_a_device_that_came_back_may_have_another_clock():
    first, second, end = Offset(0, 100.0, 1), Offset(1000, -50.0, 1), Offset(2000, -60.0, 1)
    history = OffsetHistory((first, second), end)
    assert history.at(500).to_bs_ns(7) == 107
    assert history.at(1500).before == second
    assert history.at(1500).after == end
    assert OffsetHistory((first, second), None).at(1500).after == second
    assert OffsetHistory((first,), end).at(-5).before == first
