"""Trials and quality passes: their records, and what happens when something goes wrong."""

from __future__ import annotations

import gc
import itertools
import json
import time
import weakref
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from payloads.board.pace import Pace
from payloads.station.control import AbandonedError
from payloads.station.devices import DevicesError
from payloads.station.specs import SpecError
from payloads.wdmoe.bs.at_work import Undertaking
from payloads.wdmoe.bs.recording import RequestFailedError
from payloads.wdmoe.bs.spec import read_spec
from payloads.wdmoe.bs.station import StationError
from payloads.wdmoe.pace import ExpertShape
from payloads.wire.client import DeviceError, DeviceLostError, DeviceRefusedError
from payloads.wire.frames import HEADER_BYTES, PING_BYTES

COLUMNS = {
    "requests": "trial request warmup prompt_tokens output_tokens t_start_s queued_ms ttft_ms e2el_ms finish text",
    "tokens": "trial request position iteration token t_s duration_ms bs_ms bound_ms nll wanted lost rerouted",
    "dispatches": "trial request step iteration batch layer device tokens assignments dropped bytes_out bytes_back "
    "t_send_s t_first_s t_done_s t_received_s t_started_s t_computed_s t_replied_s compute_ms predicted_ms",
    "selection": "trial stage layer device pairs dropped moved_in mass dropped_mass",
    "routing": "trial stage layer expert pairs",
    "clocks": "t_s device offset_s rtt_ms",
    "quality": "policy scenario text window tokens nll_sum kl_sum agree mass_kept",
    "events": "t_s trial request step layer device event detail",
    "choices": "policy scenario set item choices answer chosen nll_answer nll_chosen",
}


def nothing(*_):
    """Neither progress nor check."""


def records(folder):
    return {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in COLUMNS
    }


@pytest.fixture
def lab(make_lab):
    return make_lab()


@pytest.fixture
def station(lab):
    return lab.station()


def test_a_trial_leaves_complete_records(lab, station):
    path = lab.write_spec()
    spec = read_spec(path)
    steps = []
    result = station.trial(spec, "t001", lambda *step: steps.append(step), nothing)
    assert steps[0] == (0, 3, "prompt warmup-0-p1")
    assert steps[-1] == (3, 3, "records")
    tables = records(path.parent / "t001")
    for name, columns in COLUMNS.items():
        for row in tables[name]:
            assert list(row) == columns.split()
    assert {name: len(rows) for name, rows in tables.items()} == result["rows"]
    requests = {row["request"]: row for row in tables["requests"]}
    assert [(r["request"], r["warmup"]) for r in tables["requests"]] == [
        ("warmup-0-p1", True),
        ("p1", False),
        ("p2", False),
    ]
    assert requests["p1"]["text"] == requests["warmup-0-p1"]["text"]
    for name, request in requests.items():
        tokens = [row for row in tables["tokens"] if row["request"] == name]
        assert [row["position"] for row in tokens] == list(range(request["output_tokens"]))
        assert tokens[0]["duration_ms"] == request["ttft_ms"]
        assert sum(row["duration_ms"] for row in tokens) == pytest.approx(request["e2el_ms"])
        assert all(0 < row["bs_ms"] < row["duration_ms"] and row["nll"] > 0 for row in tokens)
        for step in range(request["output_tokens"]):
            expected = request["prompt_tokens"] if step == 0 else 1
            for layer in range(3):
                rows = [
                    row
                    for row in tables["dispatches"]
                    if (row["request"], row["step"], row["layer"]) == (name, step, layer)
                ]
                assert len({row["device"] for row in rows}) == len(rows) > 0
                assert sum(row["assignments"] for row in rows) == expected * 2
                assert all(0 < row["tokens"] <= min(expected, row["assignments"]) for row in rows)
                assert all(row["dropped"] == 0 for row in rows)
                assert all(row["predicted_ms"] > 0 for row in rows)
    assert set(requests) == {row["request"] for row in tables["dispatches"]}
    assert result["t_start_s"] <= tables["requests"][0]["t_start_s"]
    assert tables["tokens"][-1]["t_s"] <= result["t_end_s"]


def test_stamps_of_both_ends_are_in_order_on_one_clock(lab, station):
    path = lab.write_spec()
    station.trial(read_spec(path), "t001", nothing, nothing)
    tables = records(path.parent / "t001")
    slack = max(row["rtt_ms"] for row in tables["clocks"]) / 1e3
    order = [
        "t_send_s",
        "t_received_s",
        "t_started_s",
        "t_computed_s",
        "t_replied_s",
        "t_first_s",
        "t_done_s",
    ]
    for row in tables["dispatches"]:
        stamps = [row[name] for name in order]
        for earlier, later in itertools.pairwise(stamps):
            assert earlier <= later + slack
        assert row["t_send_s"] < row["t_first_s"] <= row["t_done_s"]
        assert row["compute_ms"] == pytest.approx((row["t_computed_s"] - row["t_started_s"]) * 1e3, abs=1e-2)
    # Both ends share this machine's clock: the offsets are nothing but the anchor of unix time.
    offsets = [row["offset_s"] for row in tables["clocks"]]
    assert len(offsets) == 2 * 3
    assert all(abs(offset - station.clock.unix_s(0)) <= slack for offset in offsets)


def test_bytes_are_those_of_whole_frames(lab, station):
    path = lab.write_spec(warmup_prompts=0)
    before = dict.fromkeys(lab.workers, 0)
    result = station.trial(read_spec(path), "t001", nothing, nothing)
    rows = records(path.parent / "t001")["dispatches"]
    for row in rows:
        assert row["bytes_out"] >= HEADER_BYTES + 20 + row["tokens"] * 48 * 4 + 2 * row["assignments"] + 4
        assert row["bytes_back"] == HEADER_BYTES + 52 + row["assignments"] * 48 * 4
    for channel, (out, back) in station._devices.traffic().items():
        mine = [row for row in rows if row["device"] == channel.name]
        control = result["control_bytes"][channel.name]
        assert before[channel.name] + control["out"] + sum(row["bytes_out"] for row in mine) == out
        assert control["back"] + sum(row["bytes_back"] for row in mine) == back
    # Each asks what a device holds, and a clock as often as it takes; only the first shakes hands.
    again = station.trial(read_spec(path), "t002", nothing, nothing)
    for trial, handshake_bytes in ((result, 42 + 32), (again, 0)):
        for control in trial["control_bytes"].values():
            pings, rest = divmod(control["out"] - handshake_bytes - HEADER_BYTES, PING_BYTES)
            assert rest == 0
            assert pings >= 2 * 12


def test_with_top_1_half_of_the_work_is_dropped(lab, station):
    path = lab.write_spec()
    station.trial(read_spec(path), "t002", nothing, nothing)
    tables = records(path.parent / "t002")
    requests = {row["request"]: row for row in tables["requests"]}
    for name, request in requests.items():
        rows = [row for row in tables["dispatches"] if row["request"] == name]
        assert sum(row["assignments"] for row in rows) == 3 * (
            request["prompt_tokens"] + request["output_tokens"] - 1
        )
    assert any(row["dropped"] for row in tables["dispatches"])
    # What was left out stands in the selection, by device, for the requests that count.
    tokens = {
        "prompt": sum(row["prompt_tokens"] for row in requests.values() if not row["warmup"]),
        "decode": sum(row["output_tokens"] - 1 for row in requests.values() if not row["warmup"]),
    }
    for stage, layer in itertools.product(tokens, range(3)):
        rows = [row for row in tables["selection"] if (row["stage"], row["layer"]) == (stage, layer)]
        assert [row["device"] for row in rows] == ["big", "middle", "small"]
        assert sum(row["pairs"] for row in rows) == sum(row["dropped"] for row in rows) == tokens[stage]
        assert sum(row["mass"] + row["dropped_mass"] for row in rows) == pytest.approx(tokens[stage])
        assert sum(row["mass"] for row in rows) > sum(row["dropped_mass"] for row in rows)
        assert not any(row["moved_in"] for row in rows)


def test_a_quality_pass_measures_what_the_model_says(lab, station, checkpoints):
    path = lab.write_spec()
    result = station.quality(read_spec(path), "top-1", None, nothing, nothing)
    tables = records(path.parent / "quality-top-1")
    assert [(row["policy"], row["text"], row["window"], row["tokens"]) for row in tables["quality"]] == [
        ("top-1", "one", number, 31) for number in range(3)
    ]
    tokens = station._tokenizer((path.parent / "text.txt").read_text())["input_ids"]
    ids = torch.tensor([tokens[:32]])
    expected = AutoModelForCausalLM.from_pretrained(
        checkpoints["published"], dtype=torch.float32, num_experts_per_tok=1
    )
    with torch.inference_mode():
        loss = expected(input_ids=ids, labels=ids).loss
    assert tables["quality"][0]["nll_sum"] == pytest.approx(float(loss) * 31, rel=1e-5)
    assert all(0.5 < row["mass_kept"] < 1 and row["kl_sum"] > 0 for row in tables["quality"])
    assert {row["trial"] for row in tables["dispatches"]} == {"quality-top-1"}
    assert {row["request"] for row in tables["dispatches"]} == {"one-0", "one-1", "one-2"}
    assert sum(row["assignments"] for row in tables["dispatches"]) == 3 * 3 * 32
    assert result["rows"]["quality"] == 3


def test_a_lost_worker_fails_the_trial_clearly_and_the_next_trial_connects_again(lab, station, monkeypatch):
    path = lab.write_spec()
    spec = read_spec(path)

    def stop_in_the_middle(done, of, what):
        if done == 1:
            lab.workers["middle"].stop()

    with pytest.raises(DeviceLostError, match=r"^device middle lost: connection closed during layer \d$"):
        station.trial(spec, "t001", stop_in_the_middle, nothing)
    assert [entry.name for entry in path.parent.glob("t001*")] == ["t001.failed"]
    failed = (path.parent / "t001.failed" / "events.jsonl").read_text()
    events = [json.loads(line) for line in failed.splitlines()]
    assert [(event["event"], event["device"]) for event in events] == [
        ("lost", "middle"),
        ("failed", "middle"),
    ]
    monkeypatch.setattr("payloads.station.devices.RESTART_S", 0.0)
    with pytest.raises(DeviceLostError, match=r"device middle lost: cannot connect to 127\.0\.0\.1:\d+"):
        station.trial(spec, "t001", nothing, nothing)
    lab.restart("middle")
    assert station.trial(spec, "t001", nothing, nothing)["rows"]["requests"] == 3
    assert not (path.parent / "t001.failed").exists()
    # A worker that was restarted between trials is not noticed by the user.
    lab.restart("big")
    assert station.trial(spec, "t001", nothing, nothing)["rows"]["requests"] == 3


def test_an_abandoned_trial_leaves_nothing_and_the_next_one_runs(lab, station):
    path = lab.write_spec()
    calls = []

    def leave():
        calls.append(1)
        if len(calls) == 4:
            raise AbandonedError("gone")

    with pytest.raises(AbandonedError):
        station.trial(read_spec(path), "t001", nothing, leave)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["spec.json", "text.txt"]
    station.trial(read_spec(path), "t001", nothing, nothing)


def test_a_worker_without_the_key_or_the_experts_is_refused(lab, station):
    placement = json.loads((lab.home / "placement.json").read_text())
    placement["1"]["0"] = ["small"]
    (lab.home / "placement.json").write_text(json.dumps(placement))
    lab.write_devices()
    with pytest.raises(DeviceError, match="device small does not hold layer 1 expert 0"):
        station.ping()
    placement["1"]["0"] = ["elsewhere"]
    (lab.home / "placement.json").write_text(json.dumps(placement))
    lab.write_devices()
    with pytest.raises(DevicesError, match="unknown device: elsewhere"):
        station.ping()
    del placement["1"]["0"]
    (lab.home / "placement.json").write_text(json.dumps(placement))
    lab.write_devices()
    with pytest.raises(DevicesError, match="the placement of layer 1 expert 0 is missing"):
        station.ping()
    (lab.home / "devices.json").unlink()
    with pytest.raises(DevicesError, match="cannot read"):
        station.ping()


def test_a_dispatch_for_an_expert_that_is_not_there_is_an_error_and_not_the_end(lab, station):
    station.ping()
    station._dispatcher.device_of[0] = station._dispatcher.devices.index("small")
    with pytest.raises(DeviceRefusedError, match="device small: does not hold layer 0 expert"):
        station.model(input_ids=torch.tensor([[1, 2, 3]]))
    station.ping()
    assert station.model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 320)


def test_a_paced_worker_takes_the_boards_time(make_lab):
    shape = ExpertShape(48, 80, 4)
    # 2 ms for the weights of one expert.
    lab = make_lab(pace=Pace(1e15, shape.parameters * 4 / 0.002))
    path = lab.write_spec(warmup_prompts=0, max_new_tokens=3)
    station = lab.station()
    result = station.trial(read_spec(path), "t001", nothing, nothing)
    for row in records(path.parent / "t001")["dispatches"]:
        experts = 1 if row["assignments"] == row["tokens"] == 1 else None
        least = 2.0 if experts else 2.0 * max(1, row["assignments"] / row["tokens"])
        assert row["compute_ms"] >= least - 1e-3
    assert set(result["paced_late"]) == set(lab.workers)


def test_pace_is_the_slower_of_operations_and_memory_for_each_expert():
    shape = ExpertShape(10, 20, 2)
    assert shape.operations(3) == 3 * (6 * 200 + 5 * 20)
    assert shape.traffic_bytes(3) == (600 + 3 * 80) * 2
    assert shape.seconds(Pace(None, None), [1, 2]) == 0
    assert shape.seconds(Pace(1300.0, None), [1, 2]) == pytest.approx(3)
    assert shape.seconds(Pace(None, 1e3), [1]) == pytest.approx(1.36)
    assert shape.seconds(Pace(1300.0, 1e3), [1, 2]) == pytest.approx(1.36 + 2)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"prompts": []}, "there is no prompt"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected a whole number of at least 1, got 0"),
        ({"policies": {"../x": {}}}, "expected a name of letters"),
        ({"trials": [{"trial": "t001"}]}, "policy is missing"),
        ({"quality": {"texts": []}}, "window_tokens is missing"),
        ({"quality": {"texts": [], "way": "aloud"}}, "way: expected one of decode, prompt, got 'aloud'"),
        ({"latency": {}}, "latency: a latency model: devices is missing"),
    ],
)
def test_a_wrong_specification_is_said(lab, changes, problem):
    with pytest.raises(SpecError, match=problem):
        read_spec(lab.write_spec(**changes))


def test_a_trial_that_cannot_run_says_why(lab, station):
    spec = read_spec(lab.write_spec(policies={"top-2": {"kind": "best"}}))
    with pytest.raises(SpecError, match="policy top-2: kind: expected one of"):
        station.trial(spec, "t001", nothing, nothing)
    with pytest.raises(SpecError, match="no policy 'top-1'; it has top-2"):
        station.trial(spec, "t002", nothing, nothing)
    with pytest.raises(SpecError, match="no trial 't009'"):
        station.trial(spec, "t009", nothing, nothing)
    long = read_spec(lab.write_spec(prompts=[{"id": "p", "text": "words " * 600}], warmup_prompts=0))
    with pytest.raises(RequestFailedError, match=r"request p: the prompt has \d+ tokens; expected 1 to 507"):
        station.trial(long, "t001", nothing, nothing)
    short = {
        "window_tokens": 10**6,
        "windows": 1,
        "texts": [{"name": "one", "path": str(long.folder / "text.txt")}],
    }
    with pytest.raises(StationError, match=r"text one: a text of .* is shorter than one window"):
        station.quality(read_spec(lab.write_spec(quality=short)), "top-2", None, nothing, nothing)


def test_the_records_of_a_long_trial_do_not_hold_on_to_its_decisions(lab, station):
    decisions = []

    def remember(done, of, what):
        decisions.extend(weakref.ref(one.decision.loads.counts) for one in station._dispatcher.decided or ())

    station.trial(read_spec(lab.write_spec()), "t001", remember, nothing)
    gc.collect()
    assert decisions
    assert all(decision() is None for decision in decisions)
    assert all(row.predicted_ms() > 0 for row in station._dispatcher.booking.rows)


def test_the_busy_counter_counts_work_and_waiting(tmp_path):
    from payloads.board.busy import BusyCounter, wait_until

    class Watched(BusyCounter):
        def add(self, nanoseconds):
            super().add(nanoseconds)
            seen.append(int.from_bytes(path.read_bytes(), "little"))

    path, seen = tmp_path / "deep" / "busy_ns", []
    busy = Watched(path)
    busy.add(5)
    begun_ns = time.monotonic_ns()
    wait_until(begun_ns + 300_000_000, busy)
    waited_ns = time.monotonic_ns() - begun_ns
    # It grows while the wait lasts, not only at its end.
    assert len(seen) > 2
    assert seen == sorted(seen)
    assert busy.value() - 5 > 100_000_000
    assert busy.value() - 5 <= waited_ns
    # It goes on from where it was.
    assert BusyCounter(path).value() == busy.value() == seen[-1]


@pytest.mark.parametrize("whole", [True, False])
def test_what_failed_first_is_told_though_the_records_cannot_be_kept(tmp_path, whole):
    full = SimpleNamespace(_folder=tmp_path / "t", _gather=None, records=None)  # whatever it does fails
    first = DeviceLostError("left", "lost")
    with pytest.raises(DeviceLostError) as failed, Undertaking.failing(full, whole=whole):
        raise first
    assert failed.value is first
    assert isinstance(first.__cause__, (TypeError, AttributeError))
