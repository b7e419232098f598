"""A trial on the virtual clock, against arithmetic done by hand."""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import active_children
from typing import Any

import numpy as np
import pytest

from payloads.linkd.channel import linear_channel
from payloads.linkd.model import Framing
from payloads.wdmoe.buckets import Buckets
from payloads.wdmoe.latency import DeviceSpeed, LatencyModel, message_bytes
from payloads.wdmoe.routing import Selection, loads_of
from testbed.simulate import pool
from testbed.simulate.engine import simulate_trial
from testbed.simulate.processes import process_pool
from testbed.simulate.routing import Drawn, draw_routing
from testbed.simulate.run import simulate_trials
from testbed.simulate.world import Ask, PolicySettings, TrialPlan, World

UNIFORM = {"kind": "uniform"}


def test_a_trial_takes_what_the_papers_model_says(make_world, make_trace, two_devices) -> None:
    """Every token goes to both devices; b has half of a's downlink and a quarter of its uplink."""
    trace = make_trace([[(0, 1), (1, 0), (0, 1)]], prompt=2)
    links = linear_channel({"a": (1.0, 1.0), "b": (0.5, 0.25)})
    record = simulate_trial(world := make_world(two_devices, trace, links), world.trials[0])
    # prompt: 128 bits each way. a: 128 + 464 + 128 us; b: 256 + 464 + 512 us. Then one token, half of that.
    assert record.dispatches[0].values["done_s"] == pytest.approx([720e-6, 1232e-6])
    assert record.dispatches[0].values["compute_ms"] == pytest.approx([0.464, 0.464])
    assert [token.duration_ms for token in record.tokens] == pytest.approx([1.232, 0.616])
    assert record.requests[0].first_s == pytest.approx(1232e-6)
    assert record.end_s == pytest.approx(1848e-6)
    assert record.dispatches[1].values["predicted_ms"] == pytest.approx([0.360, 0.616])


def test_round_trips_and_the_base_station_count_once_each(make_world, make_trace, two_devices) -> None:
    trace = make_trace([[(0, 1), (0, 1)]] * 3, prompt=1)
    model = replace(
        two_devices,
        speeds=(DeviceSpeed(1e6, None, 2.0, 0.5), DeviceSpeed(1e6, None, 4.0, 0.5)),
        terms=frozenset({"round-trip", "base-station"}),
        bs_layer_ms=0.1,
        bs_row_ms=0.01,
        bs_step_ms=1.0,
    )
    delays = {"s": np.array([0.0, 3.0])}
    record = simulate_trial(world := make_world(model, trace, delays_ms=delays), world.trials[0])
    # Each layer waits for b: 64 us down, 4 ms and twice 3 ms of delay, 0.5 ms for its pair, 232 us, 64 us up.
    layer_ms = 0.064 + 4 + 6 + 0.5 + 0.232 + 0.064
    assert record.tokens[0].bs_ms == pytest.approx(1 + 3 * 0.11)
    assert record.tokens[0].duration_ms == pytest.approx(1 + 3 * (0.11 + layer_ms))
    first = record.dispatches[0].values
    assert first["compute_ms"] == pytest.approx([0.232, 0.232])
    # Half of what is neither bits nor computation lies before the computation.
    assert first["received_s"][1] - first["sent_s"][1] == pytest.approx((0.064 + 5.25) / 1e3)


def test_devices_are_sent_to_in_turn(make_world, make_trace, two_devices) -> None:
    trace = make_trace([[(0, 1)]], prompt=1)
    model = replace(two_devices, terms=frozenset({"base-station"}), bs_dispatch_ms=0.2)
    links = linear_channel({"a": (0.5, 1.0), "b": (1.0, 1.0)})
    record = simulate_trial(world := make_world(model, trace, links), world.trials[0])
    # a takes longer, 128 + 232 + 64 us, and its turn comes last.
    assert record.dispatches[0].values["sent_s"] == pytest.approx([0.0002, 0.0])
    assert record.end_s == pytest.approx((200 + 128 + 232 + 64) / 1e6)
    assert record.tokens[0].bs_ms == 0


def test_a_message_meets_the_channel_as_it_changes(make_world, make_trace, two_devices, two_blocks) -> None:
    """20 rows are 1280 bits: 1000 of them pass in the first millisecond, the rest at a tenth of the rate."""
    trace = make_trace([[(0, 1)] * 20], prompt=20)
    record = simulate_trial(world := make_world(two_devices, trace, two_blocks), world.trials[0])
    values = record.dispatches[0].values
    received_ms = 1 + 2.8
    replied_ms = received_ms + 20 * 0.232
    assert values["received_s"] == pytest.approx([received_ms / 1e3] * 2)
    assert values["done_s"] == pytest.approx([(replied_ms + 12.8) / 1e3] * 2)
    # The policy expected the links to stay as they were when it decided.
    assert values["predicted_ms"] == pytest.approx([1.28 + 20 * 0.232 + 1.28] * 2)


def test_a_channel_starts_again_at_its_end(make_world, make_trace, two_devices, two_blocks) -> None:
    """Four bits short of the second start, so that the last four pass at the full rate again."""
    short = replace(two_blocks, duration_s=0.0038)
    trace = make_trace([[(0, 1)] * 20], prompt=20)
    record = simulate_trial(world := make_world(two_devices, trace, short), world.trials[0])
    values = record.dispatches[0].values
    # Received at 3.8 ms; answered at 8.44 ms, 0.84 ms into the third round: 160 bits, 280 in its second block
    # and then the next round, 840 bits at the full rate.
    assert values["received_s"] == pytest.approx([0.0038] * 2)
    assert values["done_s"] == pytest.approx([(3 * 3.8 + 0.84) / 1e3] * 2)


def test_framing_counts_whole_frames(make_world, make_trace, two_devices) -> None:
    trace = make_trace([[(0, 1)] * 300], prompt=300)
    model = replace(two_devices, terms=frozenset({"framing"}), first_frame=True)
    record = simulate_trial(world := make_world(model, trace), world.trials[0])
    values = record.dispatches[0].values
    framing = Framing()
    out, back = (framing.wire_bytes(int(values[name][0])) * 8 for name in ("bytes_out", "bytes_back"))
    assert values["done_s"][0] == pytest.approx((out + 300 * 232 + back) / 1e6)


def test_a_bucket_that_a_message_emptied_holds_the_next_one_back(make_world, make_trace, two_devices) -> None:
    """The engine's links remember what those of payloads.wdmoe.buckets remember."""
    trace = make_trace([[(0, 1), (1, 0)] * 150 + [(0, 1)] * 5] * 3, prompt=300)
    model = replace(two_devices, terms=frozenset({"framing", "round-trip"}), first_frame=False)
    rates = np.array([[4.0, 0.7], [2.0, 0.3]])
    links = linear_channel({"a": (4.0, 2.0), "b": (0.7, 0.3)})
    record = simulate_trial(world := make_world(model, trace, links), world.trials[0])
    buckets = Buckets(model)
    for block in record.dispatches:
        routing = trace.routing(block.layer, block.step)
        selection = Selection(routing.index, np.ones(routing.index.shape, bool), routing.weights)
        loads = loads_of(selection, world.device_of[block.layer], 2)
        sent_s = block.values["sent_s"]
        expected = buckets.dispatch_s(loads, *rates, sent_s[0])
        assert block.values["done_s"] - sent_s == pytest.approx(expected)
        assert block.values["predicted_ms"] == pytest.approx(1e3 * expected)
        assert block.values["bytes_out"] == pytest.approx(message_bytes(loads, model.row_bytes)[0])


def test_top_k_with_all_that_the_router_chose_drops_nothing(make_world, two_devices) -> None:
    trace = draw_routing(Drawn(), layers=3, experts=4, experts_per_token=2, lengths={"q": (9, 4)}, seed=1)[
        "q"
    ]
    record = simulate_trial(world := make_world(two_devices, trace), world.trials[0])
    assert sum(block.values["dropped"].sum() for block in record.dispatches) == 0
    assert sum(row["dropped"] for row in record.selection) == 0
    assert sum(row["pairs"] for row in record.selection) == 3 * (9 + 3) * 2
    assert sum(row["mass"] for row in record.selection) == pytest.approx(3 * (9 + 3))


def test_top_1_drops_the_second_choice_and_says_so(make_world, make_trace, two_devices) -> None:
    trace = make_trace([[(0, 1), (0, 1), (1, 0)]], prompt=3)
    world = make_world(two_devices, trace, selection={"kind": "top_k", "k": 1})
    record = simulate_trial(world, world.trials[0])
    assert [(row["pairs"], row["dropped"]) for row in record.selection] == [(2, 1), (1, 2)]
    assert record.dispatches[0].values["dropped"].tolist() == [1, 2]


def test_warmups_take_their_time_and_are_no_part_of_the_selection(
    make_world, make_trace, two_devices
) -> None:
    trace = make_trace([[(0, 1)]], prompt=1)
    trial = TrialPlan("t000", 0, "p", "s", 0, (Ask("warmup-0-q", True, "q"), Ask("q", False, "q")))
    record = simulate_trial(world := make_world(two_devices, trace), trial)
    assert sum(row["pairs"] for row in record.selection) == 2
    assert record.requests[1].start_s == pytest.approx(record.requests[0].last_s)
    assert len(world.trials) == 1


def test_an_allocation_changes_what_the_links_carry(make_world, make_trace, two_devices) -> None:
    trace = make_trace([[(0, 1)]], prompt=1)
    uneven = replace(
        linear_channel({"a": (1.0, 1.0), "b": (1.0, 1.0)}),
        shares_downlink=(0.8, 0.2),
        shares_uplink=(0.8, 0.2),
    )
    left = make_world(two_devices, trace, uneven)
    shared = make_world(two_devices, trace, uneven, bandwidth=UNIFORM)
    # 64 bits each way at 0.4 Mbit/s, and at 1 Mbit/s once the band is shared equally.
    assert simulate_trial(left, left.trials[0]).end_s == pytest.approx((160 + 232 + 160) / 1e6)
    assert simulate_trial(shared, shared.trials[0]).end_s == pytest.approx((64 + 232 + 64) / 1e6)


@pytest.mark.parametrize(
    ("per", "whys", "counts"),
    [
        ("layer", [f"layer {layer} step {step}" for step in (1, 2) for layer in (1, 2)], (0, 2, 2)),
        ("token", ["step 2 of q"], (0, 0, 1)),
    ],
)
def test_each_allocation_takes_the_base_station_time_once(
    make_world, make_trace, two_devices, per, whys, counts
) -> None:
    """In the middle one of three layers the later tokens need one device only: the shares change there and back."""
    trace = make_trace([[(0, 1)] * 4, [(0, 1), (0, 1), (0, 0), (1, 1)], [(0, 1)] * 4], prompt=2)
    model = replace(two_devices, terms=frozenset({"base-station"}), bs_step_ms=1.0, bs_allocate_ms=0.5)
    bandwidth = {"kind": "proportional", "per": per}
    record = simulate_trial(world := make_world(model, trace, bandwidth=bandwidth), world.trials[0])
    free = make_world(replace(model, bs_allocate_ms=0.0), trace, bandwidth=bandwidth)
    before = simulate_trial(free, free.trials[0])
    assert [change.why for change in record.changes] == whys
    assert [token.bs_ms for token in record.tokens] == pytest.approx([1 + 0.5 * count for count in counts])
    more_ms = [a.duration_ms - b.duration_ms for a, b in zip(record.tokens, before.tokens, strict=True)]
    assert more_ms == pytest.approx([0.5 * count for count in counts])
    # Shares come into force when that time has passed, and nothing is sent before.
    first, ends = record.changes[0].at_s, [block.values["done_s"].max() for block in record.dispatches]
    begun_s = max([0.0, *(end for end in ends if end <= first)])
    assert first - begun_s == pytest.approx(0.5e-3)
    sent = [block.values["sent_s"].min() for block in record.dispatches]
    assert not any(begun_s < sent_s < first for sent_s in sent)


def test_what_a_trial_begins_with_is_shared_before_it(make_world, make_trace, two_devices) -> None:
    trace = make_trace([[(0, 1)]], prompt=1)
    model = replace(two_devices, terms=frozenset({"base-station"}), bs_allocate_ms=0.5)
    uneven = replace(linear_channel({"a": (1.0, 1.0), "b": (1.0, 1.0)}), shares_downlink=(0.8, 0.2))
    record = simulate_trial(world := make_world(model, trace, uneven, bandwidth=UNIFORM), world.trials[0])
    assert [change.at_s for change in record.changes] == [0.0]
    assert record.tokens[0].bs_ms == 0
    assert record.end_s == pytest.approx((64 + 232 + 64) / 1e6)


def test_links_that_nobody_shapes_take_no_time_for_bits(make_world, make_trace, two_devices) -> None:
    trace = make_trace([[(0, 1)]], prompt=1)
    world = make_world(two_devices, trace, links={("s", 0): None}, bandwidth=UNIFORM)
    assert simulate_trial(world, world.trials[0]).end_s == pytest.approx(232e-6)


def _faded(make_world, model: LatencyModel, two_blocks: Any, trials: int) -> World:
    lengths = {"q": (7, 5)}
    trace = draw_routing(Drawn(), layers=4, experts=2, experts_per_token=2, lengths=lengths, seed=3)["q"]
    return make_world(model, trace, two_blocks, bandwidth={"kind": "proportional"}, trials=trials)


def test_the_same_world_gives_the_same_tables_on_any_number_of_processes(
    make_world, two_devices, two_blocks, monkeypatch
) -> None:
    world = _faded(make_world, two_devices, two_blocks, trials=3)
    once = simulate_trials(world)
    monkeypatch.setattr(pool, "_WORTH_LAYERS", 0)
    again = simulate_trials(world, jobs=2)
    tables = {"trials", "requests", "tokens", "dispatches", "selection", "routing", "links"}
    assert tables == once.keys() == again.keys()
    for name, frame in once.items():
        assert frame.equals(again[name]), name


@pytest.mark.parametrize("at_once", [True, False], ids=["as it starts", "as it waits"])
def test_ctrl_c_ends_a_process_without_a_word(capfd, at_once: bool) -> None:
    with process_pool(1) as workers:
        first = workers.submit(os.getpid)
        (process,) = active_children()
        if not at_once:
            assert first.result() == process.pid
        os.kill(process.pid, signal.SIGINT)
        with pytest.raises(BrokenProcessPool):
            workers.submit(os.getpid).result()
    assert process.exitcode == -signal.SIGINT
    assert capfd.readouterr().err == ""


def test_trials_follow_each_other(make_world, two_devices, two_blocks) -> None:
    tables = simulate_trials(_faded(make_world, two_devices, two_blocks, trials=3))
    trials = tables["trials"]
    assert trials["t_start_s"].tolist()[1:] == trials["t_end_s"].tolist()[:-1]
    for name, rows in tables["dispatches"].groupby("trial"):
        window = trials[trials["trial"] == name].iloc[0]
        assert window["t_start_s"] <= rows["t_send_s"].min()
        assert rows["t_done_s"].max() == window["t_end_s"]


def _calls(world: World) -> int:
    """Return how many functions a trial calls, built-in ones of NumPy included: a count, and no clock."""
    simulate_trial(world, world.trials[0])  # whatever is done once only
    count = 0

    def see(_frame: Any, event: str, _what: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(see)
    try:
        simulate_trial(world, world.trials[0])
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("selection", [{"kind": "top_k", "k": 2}, {"kind": "top_k", "k": 1}])
def test_the_work_grows_with_the_tokens_and_not_faster(make_world, two_devices, selection) -> None:
    """A longer prompt is longer arrays in the same calls; each token more is the same number of calls more."""

    def calls(prompt: int, new: int) -> int:
        lengths = {"q": (prompt, new)}
        trace = draw_routing(Drawn(), layers=2, experts=2, experts_per_token=2, lengths=lengths, seed=3)["q"]
        return _calls(make_world(two_devices, trace, selection=selection))

    assert calls(1000, 1) == pytest.approx(calls(100, 1), rel=0.05)
    a_few, twice, thrice = calls(100, 10), calls(100, 20), calls(100, 30)
    assert thrice - twice == pytest.approx(twice - a_few, rel=0.01)


def test_a_thousand_devices(make_world, two_devices) -> None:
    names = tuple(f"d{number:04d}" for number in range(1024))
    model = replace(two_devices, devices=names, speeds=(two_devices.speeds[0],) * 1024)
    lengths = {"q": (50, 2)}
    trace = draw_routing(Drawn(), layers=2, experts=1024, experts_per_token=2, lengths=lengths, seed=3)["q"]
    world = make_world(model, trace, bandwidth={"kind": "proportional"})
    world = replace(
        world, policies={"p": PolicySettings({"kind": "top_k", "k": 2}, {"kind": "proportional"})}
    )
    record = simulate_trial(world, world.trials[0])
    assert sum(row["pairs"] for row in record.selection) == 2 * 51 * 2
    assert record.end_s > 0


@pytest.mark.parametrize("scope", ["block", "running"])
def test_a_policy_with_a_budget_has_a_bound_and_others_have_none(make_world, two_devices, scope) -> None:
    lengths = {"q": (40, 30)}
    trace = draw_routing(Drawn(), layers=3, experts=2, experts_per_token=2, lengths=lengths, seed=3)["q"]
    links = linear_channel({"a": (1.0, 1.0), "b": (0.2, 0.2)})
    spent = make_world(two_devices, trace, links, selection={"kind": "budget", "tau": 0.7, "scope": scope})
    whole = make_world(two_devices, trace, links)
    record, other = (simulate_trial(world, world.trials[0]) for world in (spent, whole))
    assert {token.bound_ms for token in other.tokens} == {None}
    bound_ms = [token.bound_ms for token in record.tokens]
    taken_ms = [token.duration_ms for token in record.tokens]
    undropped_ms = [token.duration_ms for token in other.tokens]
    assert 0 < bound_ms[0] <= taken_ms[0] < undropped_ms[0]
    # Of a running budget only the sum is bounded.
    assert sum(bound_ms) <= sum(taken_ms) < sum(undropped_ms)
    if scope == "block":
        assert all(bound <= taken * (1 + 1e-9) for bound, taken in zip(bound_ms, taken_ms, strict=True))
