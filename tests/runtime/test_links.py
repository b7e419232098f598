"""The base station's hand on the links, against a real link daemon that keeps rates for sockets (no root)."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest

from payloads.linkd.model import Framing
from payloads.station.specs import SpecError
from payloads.wdmoe.bs.links import LinkControl, LinkControlError
from payloads.wdmoe.bs.spec import read_spec
from payloads.wdmoe.latency import DeviceSpeed, LatencyModel, message_bytes
from payloads.wdmoe.pace import ExpertShape
from testbed.campaigns.spec import run_spec
from testbed.config.campaign import load_campaign

DEVICES = ("big", "middle", "small")
MBIT = 400.0
FRAMING = Framing()


def nothing(*_):
    """Neither progress nor check."""


@pytest.fixture
def lab(make_lab):
    return make_lab()


def allocations(linkd):
    """Return when and why shares were put in force, with the rates of the devices that followed."""
    history = linkd.ask("history")
    assert history["devices"] == list(DEVICES)
    return [change for change in history["changes"] if change[1] == "allocate"]


def test_each_layer_gets_its_bandwidth_before_it_leaves(lab, linkd):
    linkd.set(MBIT)
    station = lab.station(links=linkd.socket)
    _, _, plain = lab.run(station)
    assert allocations(linkd) == []
    result, dispatches, texts = lab.run(station, {"kind": "proportional", "per": "layer", "floor": 0.01})
    assert texts == plain  # the links decide when, never what
    changes = allocations(linkd)
    assert changes[-1][2] == "end of t001"
    assert changes[-1][3] == changes[-1][4] == [MBIT] * 3
    assert result["bandwidth"]["kind"] == "proportional"
    assert result["bandwidth"]["allocations"] == len(changes)
    assert result["bandwidth"]["ms"] > 0
    # The prompt of a request loads the devices unevenly: its rates follow the frames of just that layer.
    steps = {}
    for row in dispatches:
        steps.setdefault((row["request"], row["step"], row["layer"]), []).append(row)
    checked = 0
    for (_, step, layer), rows in steps.items():
        begun_s = min(row["t_send_s"] for row in rows)
        before = [change for change in changes if change[0] <= begun_s]
        if not before or before[-1][2] != f"layer {layer} step {step}":
            continue  # the shares were right already
        out = {row["device"]: FRAMING.wire_bytes(row["bytes_out"]) for row in rows}
        back = {row["device"]: FRAMING.wire_bytes(row["bytes_back"]) for row in rows}
        for loads, rates in ((out, before[-1][3]), (back, before[-1][4])):
            for device, mbit in zip(DEVICES, rates, strict=True):
                share = 0.01 + 0.97 * loads.get(device, 0) / sum(loads.values())
                assert mbit == pytest.approx(3 * MBIT * share)
        checked += 1
    assert checked > 10


def test_what_is_predicted_is_known_to_the_byte(lab, linkd):
    """The model's messages are those that the records count later."""
    linkd.set(MBIT)
    station = lab.station(links=linkd.socket)
    path = lab.write_spec(warmup_prompts=0)
    decisions = []

    def remember(done, of, what):
        decisions.extend(station._dispatcher.decided or [])

    station.trial(read_spec(path), "t001", remember, nothing)
    rows = {}
    for line in (path.parent / "t001" / "dispatches.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["request"] == "p1":
            rows.setdefault((row["layer"], row["step"]), {})[row["device"]] = row
    seen = {(one.layer, one.step): one for one in decisions[: len(rows)]}
    assert seen.keys() == rows.keys()
    for key, one in seen.items():
        sizes = message_bytes(one.decision.loads, 48 * 4)
        told = {name: pair for name, *pair in zip(DEVICES, *(part.tolist() for part in sizes), strict=True)}
        for name in DEVICES:
            row = rows[key].get(name, {"bytes_out": 0, "bytes_back": 0})
            assert told[name] == [row["bytes_out"], row["bytes_back"]]


def test_per_token_follows_the_step_before(lab, linkd):
    linkd.set(MBIT)
    _, dispatches, _ = lab.run(
        lab.station(links=linkd.socket), {"kind": "proportional", "per": "token", "floor": 0}
    )
    changes = allocations(linkd)
    whys = [change[2] for change in changes]
    assert len(set(whys)) == len(whys)
    assert whys[0] == "step 1 of warmup-0-p1"
    loads = [
        sum(
            FRAMING.wire_bytes(r["bytes_out"])
            for r in dispatches
            if r["request"] == "warmup-0-p1" and r["device"] == name and not r["step"]
        )
        for name in DEVICES
    ]
    assert changes[0][3] == pytest.approx([3 * MBIT * load / sum(loads) for load in loads])


def test_per_trial_is_made_once_from_the_first_request(lab, linkd):
    linkd.set(MBIT)
    result, dispatches, _ = lab.run(
        lab.station(links=linkd.socket), {"kind": "proportional", "per": "trial", "floor": 0}
    )
    changes = allocations(linkd)
    assert [change[2] for change in changes] == ["before p1", "end of t001"]
    assert result["bandwidth"]["allocations"] == 2
    loads = [
        sum(
            FRAMING.wire_bytes(r["bytes_back"])
            for r in dispatches
            if r["request"] == "warmup-0-p1" and r["device"] == name
        )
        for name in DEVICES
    ]
    assert changes[0][4] == pytest.approx([3 * MBIT * load / sum(loads) for load in loads])


def test_uniform_is_told_once_and_only_where_it_differs(lab, linkd):
    linkd.set(MBIT)
    station = lab.station(links=linkd.socket)
    lab.run(station, {"kind": "uniform"})
    assert allocations(linkd) == []
    linkd.ask("allocate", shares={"big": 0.6, "middle": 0.1, "small": 0.1})
    lab.run(station, {"kind": "uniform"})
    mine = allocations(linkd)[1:]
    assert [change[2] for change in mine] == ["start of t001", "end of t001"]
    # What the scenario keeps back, 0.2 of the band, is nobody's under the policy too.
    assert mine[0][3] == pytest.approx([0.8 * MBIT] * 3)
    assert mine[1][3] == pytest.approx([1.8 * MBIT, 0.3 * MBIT, 0.3 * MBIT])


def test_quality_passes_leave_the_links_alone(lab, linkd):
    linkd.set(MBIT)
    path = lab.write_spec(bandwidth={"top-2": {"kind": "proportional"}})
    lab.station(links=linkd.socket).quality(read_spec(path), "top-2", None, nothing, nothing)
    assert allocations(linkd) == []


def test_a_trial_that_fails_puts_the_shares_back(lab, linkd):
    linkd.set(MBIT)
    station = lab.station(links=linkd.socket)
    path = lab.write_spec(bandwidth={"top-2": {"kind": "proportional"}})

    def stop_in_the_middle(done, of, what):
        if done == 1:
            raise KeyError("out")

    with pytest.raises(KeyError, match="out"):
        station.trial(read_spec(path), "t001", stop_in_the_middle, nothing)
    assert allocations(linkd)[-1][2] == "end of t001"
    assert [link["shares"] for link in linkd.ask("show")["links"]] == [
        {"downlink": pytest.approx(1 / 3), "uplink": pytest.approx(1 / 3)}
    ] * 3
    assert station._dispatcher.control is None


def test_what_cannot_be_allocated_fails_the_trial_with_one_line(lab, linkd, tmp_path):
    allocated = {"kind": "proportional"}
    with pytest.raises(LinkControlError, match="this base station was started without --links"):
        lab.run(lab.station(), allocated)
    station = lab.station(links=linkd.socket)
    with pytest.raises(LinkControlError, match="linkd shapes no link to big"):
        lab.run(station, allocated)
    linkd.set(MBIT, uplink_mbit=None)
    with pytest.raises(LinkControlError, match="does not shape the uplink of big; shape both directions"):
        lab.run(station, allocated)
    linkd.set(MBIT)
    path = lab.write_spec(bandwidth={"top-2": allocated})

    def stop_linkd(done, of, what):
        if done == 1:
            linkd.stop()

    with pytest.raises(LinkControlError, match="the links can no longer be followed: linkd went away"):
        station.trial(read_spec(path), "t001", stop_linkd, nothing)
    assert not (path.parent / "t001").exists()
    with pytest.raises(LinkControlError, match=r"the links cannot be followed: linkd at .*linkd\.sock: "):
        lab.run(station, allocated)
    # A policy without a wish needs the daemon too where one shapes: what is predicted follows from its rates.
    with pytest.raises(LinkControlError, match="the links cannot be followed"):
        lab.run(station)
    assert lab.run(lab.station())[0]["bandwidth"] is None


def test_a_serving_that_the_links_end_leaves_its_records(lab, linkd):
    linkd.set(MBIT)
    station, path = lab.station(links=linkd.socket), lab.write_spec()
    spec = read_spec(path)
    sink = SimpleNamespace(**dict.fromkeys(("begun", "prompt", "token", "end"), nothing))

    class Door:
        def open(self, intake, *_limits):
            self.intake = intake
            intake.submit(None, station._ask(spec.prompts[0], spec), sink)

        def close(self):
            """Nobody comes through it."""

    door = Door()

    def over():
        if door.intake.running == 0 and door.intake.taken == 1:
            linkd.stop()
            door.intake.submit(None, station._ask(spec.prompts[1], spec), sink)
        return False

    with pytest.raises(LinkControlError, match="the links can no longer be followed: linkd went away"):
        station.serve(spec, "top-2", "serve-001", 1, door, over, nothing)
    folder = path.parent / "serve-001.failed"
    rows = {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("requests", "tokens", "dispatches", "clocks")
    }
    assert [row["finish"] for row in rows["requests"]] == ["length", "failed"]
    assert len(rows["tokens"]) >= rows["requests"][0]["output_tokens"]
    assert rows["dispatches"]
    assert len(rows["clocks"]) == 2 * len(DEVICES)
    assert not (path.parent / "serve-001").exists()


@pytest.mark.parametrize("pacing", [False, True])
def test_a_serving_hears_of_its_links_while_nobody_asks(lab, linkd, pacing):
    """The daemon drops who does not listen, and a serving ends with that."""
    linkd.set(MBIT)
    station, deadline = lab.station(links=linkd.socket, pacing=pacing), time.monotonic() + 20
    heard = []

    def over():
        rate = station._dispatcher.feed.rates["big"][0]
        if not heard:
            linkd.ask("rerate", rates={"big": {"downlink_mbit": 80.0}})
        heard.append(rate)
        return rate == 80.0 or time.monotonic() > deadline

    door = SimpleNamespace(open=nothing, close=nothing)
    station.serve(read_spec(lab.write_spec()), "top-2", "serve-001", 1, door, over, nothing)
    assert (heard[0], heard[-1]) == (MBIT, 80.0)


def test_wrong_settings_in_a_specification_are_said(lab):
    station = lab.station()
    with pytest.raises(SpecError, match="policy top-2: bandwidth: per: expected one of"):
        lab.run(station, {"kind": "proportional", "per": "hour"})


def test_a_trial_without_control_calls_nothing_between_layers(lab, monkeypatch):
    """A policy that leaves the links alone costs nothing: no allocation object exists while it runs."""
    made = []
    monkeypatch.setattr(LinkControl, "__init__", lambda *_, **__: made.append(1))
    result, _, _ = lab.run(lab.station(), {"kind": "scenario"})
    assert made == []
    assert result["bandwidth"] is None


def test_a_campaign_tells_the_base_station_what_its_policies_do_with_the_band(tmp_path):
    """From the campaign file to the specification that the base station reads."""
    (tmp_path / "lab.yaml").write_text("lab: one\n")
    (tmp_path / "prompts.jsonl").write_text('{"id": "p1", "text": "so it was"}\n')
    (tmp_path / "run.yaml").write_text(
        "campaign: first\ninventory: lab.yaml\nmodel: tiny-mixtral\nprompts: {file: prompts.jsonl}\n"
        "policies:\n"
        "  - {name: plain, selection: {kind: top_k, k: 2}}\n"
        "  - {name: shared, selection: {kind: top_k, k: 2}, bandwidth: {kind: proportional, per: token}}\n"
        "scenarios:\n  - name: even\n    links:\n      default: {downlink_mbit: 8, uplink_mbit: 8}\n"
    )
    latency = LatencyModel(("big",), ExpertShape(48, 80, 4), (DeviceSpeed(1e9, None, None),))
    told = run_spec(load_campaign(tmp_path / "run.yaml"), "run-1", "~/run", [], latency, [])
    (tmp_path / "spec.json").write_text(json.dumps(told))
    spec = read_spec(tmp_path / "spec.json")
    assert spec.bandwidth_of("plain") == {"kind": "scenario"}
    assert spec.bandwidth_of("shared") == {"kind": "proportional", "per": "token"}
    assert spec.policy("shared") == {"kind": "top_k", "k": 2}
    assert spec.latency == latency
