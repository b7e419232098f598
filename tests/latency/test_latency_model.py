"""The latency model: sizes to the byte, times by hand, terms that can be left out, and files that say what is wrong."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.board.pace import Pace
from payloads.linkd.model import DEFAULT_SLACK_US, Framing, expected_ms
from payloads.wdmoe.buckets import Buckets
from payloads.wdmoe.latency import (
    TERMS,
    DeviceSpeed,
    LatencyError,
    LatencyModel,
    check_terms,
    message_bytes,
)
from payloads.wdmoe.pace import ExpertShape
from payloads.wdmoe.routing import Loads, Selection, loads_of
from payloads.wire.connection import record_bytes
from payloads.wire.frames import pack_dispatch, pack_lists, pack_result, unpack_dispatch

SHAPE = ExpertShape(96, 160, 2)
EXPERTS = 6


@st.composite
def selections(draw, most_tokens=12):
    """Return a selection, the devices of its experts and how many devices there are."""
    devices = draw(st.integers(1, 4))
    tokens, chosen = draw(st.integers(1, most_tokens)), draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    index = np.stack([generator.permutation(EXPERTS)[:chosen] for _ in range(tokens)])
    keep = generator.random((tokens, chosen)) < 0.7
    keep[:, 0] = True
    selection = Selection(index, keep, np.ones(keep.shape))
    return selection, generator.integers(0, devices, EXPERTS), devices


@st.composite
def models(draw, devices, first_frame=None):
    speeds = tuple(
        DeviceSpeed(
            draw(st.floats(1e8, 1e12)),
            draw(st.none() | st.floats(1e7, 1e11)),
            draw(st.none() | st.floats(0.2, 20)),
            draw(st.floats(0, 0.1)),
        )
        for _ in range(devices)
    )
    names = tuple(f"device-{number}" for number in range(devices))
    first = draw(st.booleans()) if first_frame is None else first_frame
    terms = frozenset(draw(st.sets(st.sampled_from(TERMS))))
    model = LatencyModel(names, SHAPE, speeds, terms, 0.3, 0.01, 1.5, 1500, first, 0.1, 0.2)
    return model.with_tls(draw(st.booleans()))


RATES = st.floats(0.1, 200)


def packed(selection, device_of, device):
    """Return the real frames' sizes for one device, out and back; 0 where it is sent nothing."""
    pairs = sorted(
        (int(expert), token)
        for token, (experts, kept) in enumerate(zip(selection.index, selection.keep, strict=True))
        for expert, keep in zip(experts, kept, strict=True)
        if keep and device_of[expert] == device
    )
    if not pairs:
        return 0, 0
    experts = sorted({expert for expert, _ in pairs})
    counts = [sum(other == expert for other, _ in pairs) for expert in experts]
    tokens = sorted({token for _, token in pairs})
    lists = pack_lists(experts, counts, [tokens.index(token) for _, token in pairs])
    head = pack_dispatch(3, "bfloat16", 7, len(tokens), SHAPE.hidden, len(experts), len(pairs), 1)
    row_bytes = SHAPE.hidden * SHAPE.element_bytes
    frame = head + bytes(len(tokens) * row_bytes) + lists
    answer = pack_result(unpack_dispatch(memoryview(frame[12:])), 1, 2, 3, 4, False, 1)
    return len(frame), len(answer) + len(pairs) * row_bytes


@given(selections())
def test_messages_have_the_size_of_the_real_frames_to_the_byte(drawn):
    selection, device_of, devices = drawn
    loads, row_bytes = loads_of(selection, device_of, devices), SHAPE.hidden * SHAPE.element_bytes
    frames = [packed(selection, device_of, device) for device in range(devices)]
    out, back = message_bytes(loads, row_bytes)
    assert [(int(o), int(b)) for o, b in zip(out, back, strict=True)] == frames
    out, back = message_bytes(loads, row_bytes, tls=True)
    assert [(int(o), int(b)) for o, b in zip(out, back, strict=True)] == [
        (record_bytes(o), record_bytes(b)) for o, b in frames
    ]


@given(selections(), st.data())
def test_a_dispatch_takes_round_trip_links_and_paced_computation(drawn, data):
    selection, device_of, devices = drawn
    model = data.draw(models(devices, first_frame=True)).with_terms(TERMS)
    rates = [(data.draw(RATES), data.draw(RATES)) for _ in range(devices)]
    delay_ms = data.draw(st.floats(0, 50))
    loads = loads_of(selection, device_of, devices)
    costs = model.costs([down for down, _ in rates], [up for _, up in rates], delay_ms)
    sizes = message_bytes(loads, SHAPE.hidden * SHAPE.element_bytes, model.tls)
    for device, (speed, (down, up), seconds) in enumerate(
        zip(model.speeds, rates, costs.dispatch_s(loads), strict=True)
    ):
        counts = [int(n) for n, home in zip(loads.counts, device_of, strict=True) if home == device and n]
        if not counts:
            assert seconds == 0
            continue
        links_ms = sum(
            expected_ms(int(size[device]), rate, first_frame=True)
            for size, rate in zip(sizes, (down, up), strict=True)
        )
        software_ms = (speed.fixed_ms or 0) + speed.pair_ms * sum(counts) + 2 * delay_ms
        paced_s = SHAPE.seconds(Pace(speed.ops_per_s, speed.bytes_per_s), counts)
        assert seconds == pytest.approx(paced_s + (links_ms + software_ms) / 1e3)
    assert costs.layer_s(loads) == max(costs.dispatch_s(loads))


@given(st.integers(1, 3000), RATES, RATES, st.floats(1e8, 1e12))
def test_without_terms_it_is_the_papers_model(tokens, down, up, ops_per_s):
    """q tokens on device k take q t_k, with t_k = L_comm / R_down + L_comm / R_up + L_comp / C_k."""
    model = LatencyModel(("a",), SHAPE, (DeviceSpeed(ops_per_s, 1e6, 5.0, 1.0),), frozenset())
    bits = 8 * SHAPE.hidden * SHAPE.element_bytes
    each_s = bits / (down * 1e6) + bits / (up * 1e6) + SHAPE.operations(1) / ops_per_s
    loads = single(tokens)
    costs = model.costs([down], [up], 100.0)
    assert costs.dispatch_s(loads)[0] == pytest.approx(tokens * each_s)
    assert costs.pair_s[0] == pytest.approx(each_s)
    assert costs.fixed_s[0] == 0
    assert model.station_s(tokens, 4) == model.sending_s(loads) == 0


def single(tokens):
    """Return the loads of tokens that all want the one expert of the one device."""
    index = np.zeros((tokens, 1), dtype=int)
    return loads_of(Selection(index, index == 0, np.ones(index.shape)), np.array([0]), 1)


@given(selections(), st.data())
def test_each_term_costs_time_and_none_gives_any(drawn, data):
    selection, device_of, devices = drawn
    model = data.draw(models(devices, first_frame=True))
    rates = [data.draw(RATES) for _ in range(devices)]
    loads = loads_of(selection, device_of, devices)
    here = model.costs(rates, rates).dispatch_s(loads)
    for term in TERMS:
        more = model.with_terms(model.terms | {term}).costs(rates, rates).dispatch_s(loads)
        assert (more >= here * (1 - 1e-12)).all()


@given(selections(), st.data())
def test_a_token_bucket_saves_the_first_frame_and_its_slack_both_ways(drawn, data):
    selection, device_of, devices = drawn
    model = data.draw(models(devices, first_frame=True)).with_terms(TERMS).with_fixed_ms(
        {f"device-{number}": 1.0 for number in range(devices)}
    )  # fmt: skip
    rate = data.draw(st.floats(0.1, 20))
    loads = loads_of(selection, device_of, devices)
    held = model.costs(rate, rate).dispatch_s(loads)
    passed = model.with_first_frame(False).costs(rate, rate).dispatch_s(loads)
    for size_out, size_back, slow, quick in zip(
        *message_bytes(loads, SHAPE.hidden * SHAPE.element_bytes, model.tls), held, passed, strict=True
    ):
        saved_ms = 0.0
        for size in (int(size_out), int(size_back)):
            saved_ms += expected_ms(size, rate, first_frame=True) - expected_ms(size, rate)
            saved_ms += DEFAULT_SLACK_US / 1e3 * (Framing().frames(size) > 1)
        assert slow - quick == pytest.approx(saved_ms / 1e3, abs=1e-12)


@given(selections(), st.data())
def test_demand_and_rates_give_the_dispatch(drawn, data):
    selection, device_of, devices = drawn
    model = data.draw(models(devices))
    down = np.array([data.draw(RATES) for _ in range(devices)])
    up = np.array([data.draw(RATES) for _ in range(devices)])
    loads = loads_of(selection, device_of, devices)
    demand = model.demand(loads)
    seconds = demand.fixed_s + demand.downlink_bits / (down * 1e6) + demand.uplink_bits / (up * 1e6)
    assert seconds == pytest.approx(model.costs(down, up).dispatch_s(loads))
    assert (demand.loaded == (loads.pairs > 0)).all()
    assert (seconds[~demand.loaded] == 0).all()


@given(selections(), st.data())
def test_the_numbering_of_devices_does_not_matter(drawn, data):
    selection, device_of, devices = drawn
    model = data.draw(models(devices))
    rates = np.array([data.draw(RATES) for _ in range(devices)])
    order = np.array(data.draw(st.permutations(range(devices))))
    place = np.argsort(order)
    other = model.limited([model.devices[old] for old in order])
    mine = model.costs(rates, rates).dispatch_s(loads_of(selection, device_of, devices))
    theirs = other.costs(rates[order], rates[order]).dispatch_s(
        loads_of(selection, place[device_of], devices)
    )
    assert theirs == pytest.approx(mine[order])


def test_where_nothing_limits_the_links_only_the_rest_counts():
    speed = DeviceSpeed(1e9, 1e8, 2.0)
    for first_frame in (True, False):
        model = LatencyModel(("a",), SHAPE, (speed,), first_frame=first_frame)
        costs = model.costs([np.inf], [np.inf])
        paced_s = SHAPE.seconds(Pace(1e9, 1e8), [500])
        assert costs.dispatch_s(single(500))[0] == pytest.approx(0.002 + paced_s)
        assert costs.down_s[0] == costs.up_s[0] == 0


def test_a_pair_more_costs_what_pair_s_says_where_messages_have_no_frames():
    model = LatencyModel(
        ("a", "b"), SHAPE, (DeviceSpeed(1e9, 1e8, 2.0, 0.1),) * 2, frozenset({"round-trip", "memory"})
    )
    costs = model.costs([3.0, 3.0], [5.0, 5.0])
    device_of = np.array([0, 0, 1])
    one = loads_of(Selection(np.array([[0, 2]]), np.array([[True, True]]), np.ones((1, 2))), device_of, 2)
    # Another token brings an expert of its own.
    two = loads_of(
        Selection(np.array([[0, 2], [1, 2]]), np.array([[True, True], [True, False]]), np.ones((2, 2))),
        device_of,
        2,
    )
    more = costs.dispatch_s(two) - costs.dispatch_s(one)
    assert more[0] == pytest.approx(costs.pair_s[0])
    assert more[1] == 0
    assert costs.token_s[0] == pytest.approx(SHAPE.operations(1) / 1e9)


def test_the_base_station_counts_rows_layers_and_the_devices_after_the_first():
    model = LatencyModel(("a", "b"), SHAPE, (DeviceSpeed(1e9, None, 1.0),) * 2, bs_layer_ms=2, bs_row_ms=0.5)
    model = LatencyModel.from_json({**model.as_json(), "bs_step_ms": 3.0, "bs_dispatch_ms": 0.25})
    assert model.station_s(1, 4) == pytest.approx(0.003 + 4 * 0.0025)
    assert model.station_s(10, 4) == pytest.approx(0.003 + 4 * 0.007)
    both = loads_of(
        Selection(np.array([[0, 1]]), np.array([[True, True]]), np.ones((1, 2))), np.array([0, 1]), 2
    )
    assert model.sending_s(both) == pytest.approx(0.00025)
    assert model.with_terms({"framing"}).station_s(10, 4) == 0


def test_sharing_the_band_takes_the_base_station_time():
    model = LatencyModel(("a",), SHAPE, (DeviceSpeed(1e9, None, 1.0),), bs_allocate_ms=0.6)
    assert model.allocating_s() == pytest.approx(0.0006)
    assert model.with_terms({"framing"}).allocating_s() == 0
    said = model.as_json()
    assert LatencyModel.from_json(said).bs_allocate_ms == 0.6
    # A file of before has no such number.
    del said["bs_allocate_ms"]
    assert LatencyModel.from_json(said).bs_allocate_ms == 0


@given(st.integers(1, 4).flatmap(lambda devices: models(devices)))
def test_a_model_survives_its_json(model):
    import json

    assert LatencyModel.from_json(json.loads(json.dumps(model.as_json()))) == model


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"devices": []}, "at least one"),
        ({"devices": [{"name": "a", "ops_per_s": 0, "bytes_per_s": None, "fixed_ms": 1}]}, "a.ops_per_s: a number"),
        ({"devices": [{"name": "a", "ops_per_s": 1, "bytes_per_s": None, "fixed_ms": -1}]}, "a.fixed_ms"),
        ({"devices": [{"name": "a", "speed": 1}]}, "speed"),
        ({"terms": ["round-trip", "magic"]}, "'magic'"),
        ({"shape": {"hidden": 1}}, "intermediate"),
        ({"mtu": 12}, "mtu"),
        ({"bs_step_ms": float("nan")}, "bs_step_ms"),
        ({"bs_layer_ms": "3"}, "bs_layer_ms"),
        ({"bs_allocate_ms": -1}, "bs_allocate_ms"),
    ],
)  # fmt: skip
def test_a_wrong_model_is_refused_in_one_line(change, said):
    good = LatencyModel(("a",), SHAPE, (DeviceSpeed(1e9, None, 1.0),)).as_json()
    with pytest.raises(LatencyError) as error:
        LatencyModel.from_json({**good, **change})
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    for key in ("devices", "mtu", "first_frame"):
        with pytest.raises(LatencyError, match=f"{key} is missing"):
            LatencyModel.from_json({name: value for name, value in good.items() if name != key})
    with pytest.raises(LatencyError):
        LatencyModel.from_json([])


def test_terms_are_checked_in_words():
    assert check_terms(list(TERMS)) == []
    assert "'memory'" in check_terms("memory")[0]
    assert "'x'" in check_terms(["x"])[0]


def test_a_device_that_a_model_has_not_is_named():
    model = LatencyModel(("a",), SHAPE, (DeviceSpeed(1e9, None, None),))
    with pytest.raises(LatencyError, match="no device 'b'; it has a"):
        model.limited(["a", "b"])
    assert model.with_fixed_ms({"a": 3.0, "z": 4.0}).speeds[0].fixed_ms == 3.0


def test_importing_the_model_imports_no_numpy():
    code = "import sys, payloads.wdmoe.latency; sys.exit('numpy' in sys.modules or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@given(selections(), st.data())
def test_an_idle_link_with_a_full_bucket_is_what_costs_assume(drawn, data):
    selection, device_of, devices = drawn
    model = data.draw(models(devices)).with_fixed_ms({f"device-{number}": 1.0 for number in range(devices)})
    rate = data.draw(st.floats(0.1, 20))
    loads = loads_of(selection, device_of, devices)
    held = Buckets(model).dispatch_s(loads, rate, rate, 0.0)
    idle = model.costs(rate, rate).dispatch_s(loads)
    # The last few bytes of a message may come out of the slack: at most that much is between them.
    assert (held >= idle * (1 - 1e-9)).all() or "round-trip" not in model.terms
    assert held == pytest.approx(idle, abs=2 * DEFAULT_SLACK_US / 1e6 + 1e-9)


@given(st.lists(st.floats(0, 0.003), min_size=30, max_size=60), st.floats(0.2, 4))
def test_no_bucket_lets_more_through_than_its_rate_and_its_size(gaps, rate):
    model = LatencyModel(("a",), SHAPE, (DeviceSpeed(1e12, None, 0.0),), first_frame=False)
    buckets, loads, now_s, bits = Buckets(model), single(2), 0.0, 0.0
    for gap_s in gaps:
        now_s += gap_s
        seconds = float(buckets.dispatch_s(loads, [rate], [1000.0], now_s)[0])
        assert seconds >= model.costs([rate], [1000.0]).dispatch_s(loads)[0] - 1e-9
        now_s += seconds
        bits += float(model.wire_bits(loads)[0][0])
    full = 8 * Framing().frame_bytes + rate * DEFAULT_SLACK_US
    assert bits <= full + rate * 1e6 * now_s + 1e-6


def test_what_is_sent_right_after_a_long_message_waits_for_its_bytes():
    model = LatencyModel(("a", "b"), SHAPE, (DeviceSpeed(1e12, None, 0.0),) * 2, first_frame=False)
    index = np.zeros((1, 1), dtype=int)
    short = loads_of(Selection(index, index == 0, np.ones((1, 1))), np.array([0, 1]), 2)
    long = Loads(*(20 * part if number < 2 else part for number, part in enumerate(short)))
    buckets = Buckets(model)
    alone_s = buckets.dispatch_s(short, 1.0, 1.0, 0.0)[0]
    now_s = 100.0 + buckets.dispatch_s(long, 1.0, 1.0, 100.0)[0]
    after_s = buckets.dispatch_s(short, 1.0, 1.0, now_s)[0]
    assert alone_s < 1e-6
    # The uplink's bucket filled up again meanwhile, nearly.
    out, back = (bits[0] for bits in model.wire_bits(short))
    assert out / 1e6 <= after_s < (out + back) / 1e6
    assert buckets.dispatch_s(short, 1.0, 1.0, now_s + 10)[0] == pytest.approx(alone_s)
