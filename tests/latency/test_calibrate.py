"""Calibration: a run with known truth gives it back within its intervals; what a run cannot tell is not made up."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from payloads.wdmoe.latency import DeviceSpeed, LatencyModel
from payloads.wdmoe.pace import ExpertShape
from testbed.cli.main import app
from testbed.config.campaign import load_campaign
from testbed.config.inventory import load_inventory
from testbed.errors import InputError
from testbed.records import load_run
from testbed.simulate.assumed import assumed_of_run, latency_model, load_calibration
from testbed.simulate.calibrate import calibrate
from testbed.simulate.observed import observe

ASSUMED = {"ops_per_s": 5e9, "bytes_per_s": 5e8}
TRUTH = LatencyModel(
    ("fast", "middle", "slow"),
    ExpertShape(64, 128, 2),
    (
        DeviceSpeed(8e9, 4e8, 0.30, 0.004),
        DeviceSpeed(3e9, 2e8, 0.80, 0.010),
        DeviceSpeed(1e9, 9e7, 0.55, 0.020),
    ),
    bs_layer_ms=0.9,
    bs_row_ms=0.02,
    bs_step_ms=1.4,
    bs_dispatch_ms=0.15,
    bs_allocate_ms=0.6,
    first_frame=False,
)


def calibrated(folder):
    run = load_run(folder)
    observed = observe(run)
    return calibrate(observed, assumed_of_run(run.manifest, observed.row_bytes))


def truth_of(number, truth=TRUTH):
    if number.where == "base station":
        return getattr(truth, number.name)
    return getattr(truth.speeds[truth.devices.index(number.where)], number.name)


def number_of(found, name):
    return next(number for number in found.numbers if number.name == name)


def some_layers(trial, layer, step):
    """Share the band anew in half of the trials, and there as a policy does: not where it would stay as it was."""
    return trial % 4 > 1 and (layer + step) % 3 > 0


@pytest.fixture
def made(make_run):
    """Return the folder of a run made with these settings."""

    def make(name="made-0001", truth=TRUTH, **settings):
        return make_run(name, truth, assumed=ASSUMED, **settings)

    return make


@pytest.mark.parametrize("activations", [None, "int8", "float32"])
@pytest.mark.parametrize("security", ["plain", "tls"])
def test_the_sizes_of_a_dispatch_are_read_whatever_crosses_the_links(made, activations, security):
    """Experts and pairs follow from the bytes, with rows of any width and in records of TLS or not."""
    plain = observe(load_run(made("plain-0001", trials=1)))
    truth = TRUTH.with_activations(activations).with_tls(security == "tls")
    campaign = "model: tiny\ndtype: bfloat16\n"
    folder = made(truth=truth, trials=1, manifest={"security": security, "campaign": campaign})
    observed = observe(load_run(folder))
    columns = ["trial", "request", "step", "layer", "device", "tokens", "pairs", "experts"]
    assert observed.dispatches[columns].equals(plain.dispatches[columns])
    assert observed.row_bytes == TRUTH.row_bytes


@pytest.mark.parametrize(
    ("seed", "truth"),
    [
        (2, TRUTH),
        (3, TRUTH),
        (2, replace(TRUTH, first_frame=True)),
        (3, replace(TRUTH, speeds=tuple(DeviceSpeed(2e9, 3e8 / n, 0.2 * n, 0.0) for n in (1, 1.2, 1.5)))),
    ],
    ids=["buckets", "buckets-again", "lines", "other-speeds"],
)
def test_the_truth_comes_back_within_its_intervals(made, truth, seed):
    found = calibrated(made(truth=truth, seed=seed, shares=some_layers))
    assert found.model.first_frame == truth.first_frame
    assert found.model.devices == truth.devices
    known = found.numbers
    assert [f"{number.where} {number.name}: {number.note}" for number in known if number.note] == []
    held = [
        number.estimate.low - 1e-9 <= truth_of(number, truth) <= number.estimate.high + 1e-9
        for number in known
    ]
    near = [
        number.value
        == pytest.approx(truth_of(number, truth), rel=0.05, abs=0.004 if "_ms" in number.name else 0)
        for number in known
    ]
    assert all(near), [number for number, right in zip(known, near, strict=True) if not right]
    # An interval of 95 % may miss, and does not miss far or often.
    assert sum(held) >= 0.85 * len(held), [n for n, right in zip(known, held, strict=True) if not right]


def test_sharing_the_band_for_a_token_step_leaks_into_no_other_number(made):
    folder = made(shares=some_layers, shares_step=lambda trial: trial % 4 < 2)
    observed = observe(load_run(folder))
    counts = observed.tokens.set_index(["trial", "request", "step"])["allocations"]
    assert (counts["t001"] == 1).all()
    assert {step: counts["t003", "prompt-15", step] for step in (0, 1, 2)} == {0: 2, 1: 3, 2: 3}
    asked = observed.dispatches.groupby(["trial", "request", "step", "layer"])["allocated"].agg(
        ["min", "max"]
    )
    assert (asked["min"] == asked["max"]).all()
    assert asked["max"].sum() == counts.sum() - counts[["t001", "t002", "t005", "t006"]].sum()
    found = calibrated(folder)
    for name in ("bs_allocate_ms", "bs_layer_ms", "bs_step_ms"):
        assert number_of(found, name).value == pytest.approx(getattr(TRUTH, name), rel=0.05)


@pytest.mark.parametrize("always", [False, True])
def test_sharing_the_band_always_or_never_does_not_tell_what_it_takes(made, always):
    found = calibrated(made(shares=lambda trial, layer, step: always))
    allocating = number_of(found, "bs_allocate_ms")
    assert (allocating.estimate, allocating.value) == (None, 0)
    assert "shared anew" in allocating.note
    # Then it is part of what each layer takes.
    each_ms = TRUTH.bs_layer_ms + always * TRUTH.bs_allocate_ms
    assert number_of(found, "bs_layer_ms").value == pytest.approx(each_ms, rel=0.05)
    assert number_of(found, "bs_step_ms").value == pytest.approx(TRUTH.bs_step_ms, rel=0.05)


def test_the_fit_explains_what_it_was_fitted_to(made):
    fitted = calibrated(made(shares=some_layers))
    assert [residual.what for residual in fitted.residuals] == [
        *TRUTH.devices, "first token", "later tokens", "trial means"
    ]  # fmt: skip
    for residual in fitted.residuals:
        assert residual.median < 0.03
        if residual.assumed is not None:
            assert residual.assumed > 3 * residual.median


def test_what_no_dispatch_shows_keeps_its_assumed_value(made):
    few = calibrated(made("few-0001", prompts=(2, 3)))
    ops = {number.where: number for number in few.numbers if number.name == "ops_per_s"}
    for name in TRUTH.devices:
        assert ops[name].estimate is None
        assert "operations bind in" in ops[name].note
        # Kept, or raised to what the device was seen to reach: never a number that contradicts the run.
        speed = few.model.speeds[TRUTH.devices.index(name)]
        assert speed.ops_per_s >= ASSUMED["ops_per_s"]
    one = calibrated(made("one-0001", one=True))
    further = number_of(one, "bs_dispatch_ms")
    assert further.estimate is None
    assert further.value == 0


def test_a_device_that_was_never_used_keeps_everything(made):
    folder = made()
    part = folder / "tables" / "dispatches"
    import pandas as pd

    for path in part.iterdir():
        frame = pd.read_parquet(path)
        frame[frame["device"] != "slow"].to_parquet(path)
    found = calibrated(folder)
    slow = [number for number in found.numbers if number.where == "slow"]
    assert all(number.estimate is None and number.note for number in slow)
    assert found.model.speeds[2] == DeviceSpeed(ASSUMED["ops_per_s"], ASSUMED["bytes_per_s"], None, 0.0)


def test_one_trial_gives_numbers_without_intervals(made):
    found = calibrated(made("made-0001", trials=1))
    assert all(number.as_json()["low"] is None for number in found.numbers)
    assert found.model.speeds[0].fixed_ms == pytest.approx(0.3, rel=0.05)


def test_dispatches_with_a_change_on_the_way_are_left_out_and_counted(made):
    found = calibrated(made("made-0001", trials=4, blocks=True))
    assert any("during which a link's rate changed" in note for note in found.notes)
    assert found.model.speeds[1].fixed_ms == pytest.approx(0.8, rel=0.05)


def test_without_shaping_the_network_is_in_the_fixed_time_and_said(made):
    found = calibrated(made("made-0001", trials=4, shaped=False))
    assert any("no link was shaped" in note for note in found.notes)
    assert found.model.speeds[0].fixed_ms == pytest.approx(0.3, rel=0.05)


def test_the_same_run_gives_the_same_numbers(made):
    folder = made("made-0001", trials=3)
    assert calibrated(folder).as_json() == calibrated(folder).as_json()


def test_a_run_that_measured_nothing_is_refused(made):
    simulated = made("sim-0001", trials=1, manifest={"simulated": True})
    with pytest.raises(InputError, match="was simulated"):
        calibrated(simulated)
    empty = made("empty-0001", trials=0)
    with pytest.raises(InputError, match="nothing to calibrate with"):
        calibrated(empty)


def test_the_command_writes_a_file_that_a_campaign_can_name(made, tmp_path):
    made(trials=3)
    arguments = ["calibrate", "made-0001", "--results", str(tmp_path / "results")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    for shown in ("95 % interval", "slow", "bs_dispatch_ms", "bs_allocate_ms", "later tokens"):
        assert shown in done.output
    file = tmp_path / "results" / "made-0001" / "calibration.json"
    assert str(file) in done.output
    done = CliRunner().invoke(app, [*arguments, "--json", "--out", str(tmp_path / "deep" / "c.json")])
    answer = json.loads(done.output)
    assert answer["file"] == str(tmp_path / "deep" / "c.json")
    assert load_calibration(tmp_path / "deep" / "c.json") == load_calibration(file)
    assert all(set(number) >= {"where", "name", "value", "low", "high", "n"} for number in answer["numbers"])


def test_a_campaign_takes_its_calibration_terms_and_lab(tmp_path, monkeypatch):
    campaign = load_campaign(_campaign())
    lab = load_inventory(campaign.inventory)
    assumed = latency_model(campaign, lab)
    assert assumed.devices == tuple(device.name for device in lab.devices)
    assert assumed.speeds[0] == DeviceSpeed(
        lab.devices[0].pace.ops_per_s, lab.devices[0].pace.bytes_per_s, None
    )
    assert (assumed.shape.hidden, assumed.shape.element_bytes) == (192, 2)
    file = tmp_path / "calibration.json"
    other = replace(
        assumed, devices=assumed.devices[::-1], speeds=tuple(s._replace(fixed_ms=1.5) for s in assumed.speeds)
    )
    file.write_text(json.dumps({"model": other.as_json()}))
    named = campaign.model_copy(
        update={"latency": campaign.latency.model_copy(update={"calibration": file, "terms": ("memory",)})}
    )
    chosen = latency_model(named, lab)
    assert chosen.devices == assumed.devices
    assert chosen.speeds[0] == other.speeds[-1]
    assert chosen.terms == {"memory"}
    file.write_text(json.dumps({"model": other.limited(other.devices[:2]).as_json()}))
    with pytest.raises(InputError, match="has no device"):
        latency_model(named, lab)


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "not JSON"), ("{}", "`model`"), ('{"model": {}}', "is missing"), (None, "cannot be read")],
)
def test_a_file_that_is_no_calibration_is_refused_in_one_line(tmp_path, text, said):
    path = tmp_path / "calibration.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError) as error:
        load_calibration(path)
    assert said in error.value.message
    assert "\n" not in error.value.message


def _campaign():
    from pathlib import Path

    return Path(__file__).parents[2] / "campaigns" / "quickstart.yaml"
