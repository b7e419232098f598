"""`testbed simulate`, from the files to the report: no hosts, and where it is not asked for, no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from testbed.campaigns.shape import wanted_of_campaign
from testbed.campaigns.trials import trials_of
from testbed.cli.main import app
from testbed.config.campaign import load_campaign
from testbed.errors import InputError
from testbed.records import load_run, write_manifest
from testbed.simulate.compare import compare, differences
from testbed.simulate.prepare import prepare
from testbed.simulate.run import simulate_trials
from testbed.simulate.session import target

INVENTORY = """
lab: three
hosts:
  bs: {role: base_station, address: 10.0.0.1, python: {manage: false}}
  left: {role: device, address: 10.0.0.2, board: jetson-orin-nano-8gb, python: {manage: false}}
  right: {role: device, address: 10.0.0.3, board: jetson-orin-nx-16gb, python: {manage: false}}
  idle: {role: device, address: 10.0.0.4, board: jetson-orin-nx-16gb, python: {manage: false}}
"""
CONFIG = {
    "model_type": "mixtral",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 100,
}
CAMPAIGN = """
campaign: twin
inventory: three.yaml
model: shape
seed: 5
repeats: 2
placement:
  0: &row {0: left, 1: left, 2: right, 3: right}
  1: *row
  2: *row
prompts: {file: prompts.jsonl, max_new_tokens: 4}
policies:
  - {name: all, selection: {kind: top_k, k: 2}}
  - {name: half, selection: {kind: top_k, k: 1}, bandwidth: {kind: uniform}}
scenarios:
  - name: fading
    channel: {model: shannon, bandwidth_mhz: 1, coherence_ms: 5, duration_s: 2, devices: {default: {snr_db: 9}}}
  - name: even
    links: {default: {downlink_mbit: 8, uplink_mbit: 8, delay_ms: 2}}
"""


@pytest.fixture
def campaign(tmp_path: Path) -> Path:
    (tmp_path / "shape").mkdir()
    (tmp_path / "shape" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "three.yaml").write_text(INVENTORY)
    prompts = [{"id": "p1", "text": "so it was"}, {"id": "p2", "text": "and so it will be again"}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    path = tmp_path / "twin.yaml"
    path.write_text(CAMPAIGN)
    return path


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the report out, which takes seconds."""
    monkeypatch.setattr("testbed.report.write_report", lambda _run, path: path, raising=False)


@pytest.fixture
def call(campaign: Path) -> Callable[..., Any]:
    def invoke(*more: str, exits: int = 0) -> Any:
        given = [
            "simulate",
            str(campaign),
            "--results",
            str(campaign.parent / "results"),
            "--jobs",
            "1",
            *more,
        ]
        answer = CliRunner().invoke(app, given)
        if exits == 0:
            assert answer.exception is None, answer.exception
        elif isinstance(answer.exception, InputError):
            return answer.exception.message
        assert answer.exit_code == exits
        return json.loads(answer.stdout) if "--json" in more else answer.stdout

    return invoke


def quiet(_text: str) -> None:
    """Say nothing."""


def test_a_campaign_becomes_a_run_of_the_same_trials_and_tables(call, campaign: Path) -> None:
    said = call("--json")
    run = load_run(Path(said["folder"]))
    assert run.manifest["simulated"] is True
    assert run.manifest["state"] == "completed"
    assert Path(said["report"]).stat().st_size > 10_000
    wanted = [(t.name, t.policy, t.scenario, t.repeat) for t in trials_of(load_campaign(campaign))]
    columns = ["trial", "policy", "scenario", "repeat"]
    assert [tuple(row) for row in run.trials[columns].itertuples(index=False)] == wanted
    assert (run.trials["state"] == "completed").all()
    tokens, dispatches = run.tokens, run.dispatches.rename(columns={"step": "position"})
    assert (tokens.groupby("trial")["iteration"].diff().dropna() == 1).all()
    token = ["trial", "request", "position"]
    both = dispatches.merge(tokens[[*token, "iteration"]], on=token, suffixes=("", "_of_token"))
    assert len(both) == len(dispatches)
    assert (both["iteration"] == both["iteration_of_token"]).all()
    # A warm-up and two prompts, four tokens each, three layers, and both devices or one of them.
    assert len(run.requests) == 8 * 3
    assert len(run.tokens) == 8 * 3 * 4
    assert len(run.selection) == 8 * 2 * 3 * 2
    whole = run.dispatches[run.dispatches["trial"].isin(run.trials[run.trials["policy"] == "all"]["trial"])]
    assert whole["dropped"].sum() == 0
    assert (run.dispatches["t_done_s"] > run.dispatches["t_send_s"]).all()
    # 4 bytes a token: 9 bytes are 3 tokens. A device without an expert takes no part.
    assert set(run.requests["prompt_tokens"]) == {3, 6}
    assert set(run.dispatches["device"]) == {"left", "right"}


def test_a_seed_gives_the_same_tables_again_and_another_one_others(campaign: Path) -> None:
    def tables(text: str) -> dict[str, Any]:
        campaign.write_text(text)
        wanted = target(campaign, campaign.parent)
        return simulate_trials(prepare(wanted.campaign, wanted.inventory, say=quiet).world)

    first, again = tables(CAMPAIGN), tables(CAMPAIGN)
    assert {name: frame.equals(again[name]) for name, frame in first.items()} == dict.fromkeys(again, True)
    other = tables(CAMPAIGN.replace("seed: 5", "seed: 6"))
    assert not other["tokens"]["duration_ms"].equals(first["tokens"]["duration_ms"])


def test_the_links_are_those_that_a_run_has(campaign: Path) -> None:
    """What linkd is given to play in a repeat is what the simulator plays."""
    wanted = target(campaign, campaign.parent)
    world = prepare(wanted.campaign, wanted.inventory, say=quiet).world
    for repeat in range(2):
        fading, even = wanted_of_campaign(wanted.campaign, wanted.inventory, repeat=repeat)
        assert world.links["fading", repeat] == fading.channel
        assert even.channel is None
        fixed = world.links["even", repeat]
        assert fixed is not None
        rates = {link.device: (link.downlink_mbit, link.uplink_mbit) for link in even.plan.links}
        assert fixed.rates(0).keys() == rates.keys()
        for name, pair in fixed.rates(0).items():
            assert pair == pytest.approx(rates[name])
    assert world.links["fading", 0] != world.links["fading", 1]
    assert world.delays_ms["even"].tolist() == [2.0, 2.0]


@pytest.fixture
def trained(campaign: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same campaign with a model that has weights, its shards and routing in a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(campaign.parent / "cache"))
    text = CAMPAIGN.replace("model: shape", "model: tiny-mixtral\ndtype: float32")
    campaign.write_text(text[: text.index("placement:")] + text[text.index("prompts:") :])
    return campaign


@pytest.mark.usefixtures("no_report", "trained")
def test_a_run_is_predicted_trial_by_trial(call, campaign: Path) -> None:
    """A run that was measured, here a simulated one that says it was, on the answers that it had."""
    folder = Path(call("--json")["folder"])
    measured = folder.with_name("twin-0001")
    folder.rename(measured)
    manifest = load_run(measured).manifest
    del manifest["simulated"]
    write_manifest(measured, {**manifest, "run": "twin-0001"})
    said = call("--run", "twin-0001", "--json")["predicts"]
    assert said["run"] == "twin-0001"
    served = {**manifest, "run": "twin-0001", "files": {"serving": ["--policy", "all"]}}
    write_manifest(measured, served)
    assert "twin-0001 was served" in call("--run", "twin-0001", exits=2)
    write_manifest(measured, {**manifest, "run": "twin-0001"})
    assert len(said["trials"]) == 8
    # Reading a given answer in one piece is the same but for rounding, which may turn a near tie.
    assert said["median_error"] == {"ttft": pytest.approx(0, abs=0.01), "itl": pytest.approx(0, abs=0.01)}
    predicting = load_run(campaign.parent / "results" / "sim-twin-0001")
    assert predicting.manifest["predicts"] == "twin-0001"
    assert predicting.manifest["simulation"]["routing"].endswith("on the answers of the run")
    assert predicting.tokens["token"].equals(load_run(measured).tokens["token"])
    lines = compare(predicting, load_run(measured)).as_lines()
    assert len(lines) == 1 + 1 + 8 + 1 + 1
    assert lines[-2].startswith("median error: ttft ")
    assert "`testbed calibrate twin-0001`" in lines[-1]
    # Of a campaign that has changed since, what is compared is not the same, and that is said.
    changed = campaign.read_text().replace("max_new_tokens: 4", "max_new_tokens: 3")
    campaign.write_text(
        changed.replace("{name: half, selection: {kind: top_k, k: 1}", "{name: half, selection: {kind: wlr}")
    )
    notes = call("--run", "twin-0001", "--json")["predicts"]["notes"]
    assert notes[0] == "the campaign is not as in twin-0001: prompts, the policy half differ"


def test_routing_is_recorded_once_and_is_the_models_own(trained: Path, monkeypatch) -> None:
    def traces() -> dict[str, Any]:
        wanted = target(trained, trained.parent)
        return dict(prepare(wanted.campaign, wanted.inventory, say=quiet).world.traces)

    recorded = traces()
    for trace in recorded.values():
        assert trace.index.shape == trace.weights.shape == (4, trace.prompt_tokens + 3, 2)
        assert trace.scores.sum(axis=2) == pytest.approx(1, abs=1e-4)
        chosen = np.take_along_axis(trace.scores, trace.index, axis=2)
        assert chosen.min(axis=2) == pytest.approx(np.sort(trace.scores, axis=2)[:, :, -2], abs=1e-5)
        assert (chosen / chosen.sum(axis=2, keepdims=True)) == pytest.approx(trace.weights, abs=1e-4)
    # From here on the model is not needed.
    monkeypatch.setattr("testbed.simulate.recorder._Recorder", None)
    for name, trace in traces().items():
        assert np.array_equal(trace.index, recorded[name].index)


def test_what_differs_between_two_campaigns_is_what_trials_follow_from() -> None:
    assert differences(CAMPAIGN, CAMPAIGN.replace("repeats: 2", "repeats: 9")) == []
    assert differences(CAMPAIGN, CAMPAIGN.replace("name: even", "name: other")) == []
    assert differences(CAMPAIGN, CAMPAIGN.replace("seed: 5", "seed: 6")) == ["seed"]
    assert differences(CAMPAIGN, CAMPAIGN.replace("delay_ms: 2", "delay_ms: 3")) == ["the scenario even"]
    assert differences(CAMPAIGN, CAMPAIGN.replace("seed: 5", "seed: 5\nexperts: int8")) == ["experts"]
    assert differences(CAMPAIGN, "") == ["the campaign file"]


@pytest.mark.usefixtures("no_report")
def test_a_prediction_of_the_run_that_it_was_calibrated_with_says_so(call, campaign: Path) -> None:
    folder = Path(call("--repeats", "1", "--json")["folder"])
    run = load_run(folder)
    file = campaign.parent / "calibration.json"
    model = run.manifest["latency"]
    idle = {**model["devices"][0], "name": "idle"}
    text = json.dumps({"model": {**model, "devices": [*model["devices"], idle]}, "run": "twin-0001"})
    file.write_text(text)
    calibrated = load_run(Path(call("--calibration", str(file), "--json")["folder"]))
    assert calibrated.manifest["simulation"]["calibrated_with"] == "twin-0001"
    measured = replace(run, path=campaign.parent / "twin-0001", manifest={**run.manifest, "run": "twin-0001"})
    assert any("this very run" in note for note in compare(calibrated, measured).notes)
    assert not any("this very run" in note for note in compare(run, measured).notes)


@pytest.mark.usefixtures("no_report")
def test_a_simulation_is_not_resumed_as_a_run(call, campaign: Path) -> None:
    folder = call("--repeats", "1", "--json")["folder"]
    answer = CliRunner().invoke(app, ["run", "--resume", folder])
    assert isinstance(answer.exception, InputError)
    assert "sim-twin-0001 is a simulation" in answer.exception.message
    assert answer.exception.hint.startswith("simulate it again: testbed")


@pytest.mark.usefixtures("no_report")
def test_errors_of_a_prediction_are_relative_to_what_was_measured(call, campaign: Path) -> None:
    folder = Path(call("--repeats", "1", "--json")["folder"])
    run = load_run(folder)
    slower = run.tokens.assign(duration_ms=run.tokens["duration_ms"] * 1.25)
    compared = compare(run, replace(run, tokens=slower))
    assert [row.error("itl") for row in compared.rows] == pytest.approx([-0.2] * 4)
    assert compared.median_error("itl") == pytest.approx(0.2)
    assert compared.median_error("ttft") == pytest.approx(0)


def test_a_dry_run_says_what_would_be_simulated_and_writes_nothing(call, campaign: Path) -> None:
    said = call("--dry-run", "--repeats", "7", "--json")
    assert (said["trials"], said["repeats"]) == (28, 7)
    assert said["routing"].startswith("drawn")
    assert not (campaign.parent / "results").exists()
    text = call("--dry-run")
    assert re.search(r"^policies: +all, half$", text, re.M)
    assert re.search(r"^calibration: +none$", text, re.M)


@pytest.mark.parametrize("file", ["prompts.jsonl", "nope.json"])
def test_what_is_no_calibration_is_refused_before_anything_is_done(call, campaign: Path, file: str) -> None:
    path = campaign.parent / file
    assert call("--calibration", str(path), "--dry-run", exits=2).startswith(f"{path}: ")


@pytest.mark.usefixtures("no_report")
def test_a_simulation_says_how_far_it_is_in_a_pipe_too(campaign: Path) -> None:
    command = ["simulate", str(campaign), "--results", str(campaign.parent), "--jobs", "1", "--json"]
    answer = CliRunner().invoke(app, command)
    assert json.loads(answer.stdout)["trials"] == 8
    assert "8 of 8 trials\n" in answer.stderr


def test_a_batch_of_tokens_is_a_prompt_of_so_many(campaign: Path) -> None:
    wanted = target(campaign, campaign.parent, batch_tokens=500)
    world = prepare(wanted.campaign, wanted.inventory, batch_tokens=wanted.batch_tokens, say=quiet).world
    assert {trace.prompt_tokens for trace in world.traces.values()} == {500}


@pytest.mark.usefixtures("no_report")
def test_no_run_of_a_shape_was_measured(call) -> None:
    assert "shape has no weights" in call("--run", "sim-twin-0001", exits=2)


@pytest.mark.usefixtures("no_report", "trained")
def test_a_simulation_predicts_what_was_measured_only(call) -> None:
    call("--json")
    assert "sim-twin-0001 is simulated itself" in call("--run", "sim-twin-0001", exits=2)


def test_a_model_with_weights_has_prompts_as_long_as_they_are(call, campaign: Path) -> None:
    (campaign.parent / "shape" / "model.safetensors").touch()
    assert "--batch-tokens: shape has weights" in call("--batch-tokens", "5", exits=2)


def test_a_shape_is_not_run(campaign: Path) -> None:
    answer = CliRunner().invoke(app, ["run", str(campaign), "--results", str(campaign.parent / "results")])
    assert isinstance(answer.exception, InputError)
    assert "no weights" in answer.exception.message
    assert "testbed simulate" in answer.exception.hint
    assert not (campaign.parent / "results").exists()


@pytest.mark.usefixtures("no_report")
def test_too_many_dispatches_leave_sums_and_say_so(call, monkeypatch) -> None:
    monkeypatch.setattr("testbed.simulate.prepare.MOST_ROWS", 100)
    run = load_run(Path(call("--repeats", "1", "--json")["folder"]))
    assert run.dispatches.empty
    assert len(run.tokens) == 4 * 3 * 4
    assert len(run.links) == 4 * 2 * 2
    assert [line.partition(":")[0] for line in run.manifest["simulation"]["omitted"]] == [
        "dispatches",
        "links",
    ]
