"""A broadcast over an emulated lab: what two devices decode is what is played here with the same noise."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from testbed import load_run
from testbed.campaigns.journal import read_journal
from testbed.campaigns.trials import Trial
from testbed.config.workloads import load_any_campaign
from testbed.links.traffic import unexplained_bytes
from testbed.semcast.models import models_of
from testbed.semcast.pairs import sets_of
from testbed.semcast.play import play_trial, stage_of
from tests.semcast.campaign_files import write_campaign

pytestmark = pytest.mark.emulated

ROOT = Path(__file__).resolve().parents[2]
LAB = f"broadcast-{os.getpid()}"


def call(*arguments):
    done = subprocess.run(
        [sys.executable, "-c", "from testbed.cli.main import run; run()", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, f"testbed {arguments}: {done.stderr}"
    return done


@pytest.fixture(scope="module")
def inventory(tmp_path_factory):
    """Two boards of the quickstart's lab, under another name and with other addresses, brought up."""
    lab = yaml.safe_load((ROOT / "inventory" / "emulated.yaml").read_text())
    lab["hosts"] = {name: lab["hosts"][name] for name in ("bs", "orin-nx", "orin-nano")}
    text = yaml.safe_dump(lab, sort_keys=False).replace("quickstart", LAB).replace("10.83.", "10.89.")
    path = tmp_path_factory.mktemp("lab") / "lab.yaml"
    path.write_text(text)
    call("emulate", "up", "-i", path)
    yield path
    call("emulate", "down", "-i", path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, inventory):
    """A finished run of a broadcast, its campaign, and the dry run that was made just before it."""
    folder = tmp_path_factory.mktemp("campaign")
    file = write_campaign(
        folder,
        inventory=str(inventory),
        users=["orin-nx", "orin-nano"],
        repeats=1,
        shares=[0.35],
        verify={"message_bytes": [32768], "repeats": 3},
    )
    results = folder / "results"
    planned = json.loads(call("run", file, "--results", results, "--dry-run", "--json").stdout)
    done = json.loads(call("run", file, "--results", results, "--json").stdout)
    return planned, load_run(done["folder"]), load_any_campaign(file)


def test_the_dry_run_lists_what_the_run_journals(finished):
    planned, run, _ = finished
    entries = read_journal(run.path / "journal.jsonl")
    begun = {entry.number: entry.line for entry in entries if entry.state == "begin"}
    assert [begun[n] for n in sorted(begun)] == [s for phase in planned["phases"] for s in phase["steps"]]
    assert run.manifest["state"] == "completed"
    assert run.manifest["workload"] == "broadcast"


def test_the_devices_decode_what_is_played_here_with_the_same_noise(finished):
    _, run, campaign = finished
    stage = stage_of(campaign, run.name, sets_of(campaign.images, 2), models_of(campaign))
    assert len(run.completed) == 6
    for trial in run.completed.itertuples():
        again = play_trial(stage, trial_of(trial))
        kept = run.images[run.images["trial"] == trial.trial].sort_values(["frame", "user"])
        assert kept["digest"].tolist() == [row["digest"] for row in again.images]
        on_air = [row["measured_snr_db"] for row in again.images if not row["on_paper"]]
        assert kept["measured_snr_db"].dropna().tolist() == pytest.approx(on_air)
    assert run.images["digest"].nunique() > 24


def trial_of(row):
    return Trial(row.trial, row.policy, row.scenario, row.repeat)


def test_what_was_on_air_is_timed_and_counted(finished):
    run = finished[1]
    frames = run.frames[run.frames["t_send_s"].notna()]
    assert len(frames) == 4 * 4
    assert (frames["copies"] == 2).all()
    assert (frames["t_done_s"] > frames["t_send_s"]).all()
    heard = run.images[~run.images["on_paper"]]
    assert set(heard["device"]) == {"orin-nx", "orin-nano"}
    assert (heard["decode_ms"] > 0).all()
    assert (heard["air_ms"] > -run.clocks["rtt_ms"].max()).all()  # stamps of two clocks
    for row in run.traffic.to_dict("records"):
        assert row["dispatch_bytes"] > 0
        assert -20 <= unexplained_bytes(row) <= 0.02 * row["frame_bytes"] + 100, row


def test_power_and_pictures_are_there(finished):
    run = finished[1]
    energy = run.energy()
    assert set(energy["device"]) == {"orin-nx", "orin-nano"}
    assert (energy["images"] == 4).all()
    assert len(list((run.path / "pictures").glob("t*.png"))) == 6 * 2 * 2
    assert not list((run.path / "fetched").rglob("pixels.bin"))
