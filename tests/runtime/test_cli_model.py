"""`testbed shard` and `testbed place`."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from testbed.cli import model, place
from testbed.errors import InputError


@pytest.fixture
def app():
    one = typer.Typer()
    one.command("shard")(model.shard)
    one.command("place")(place.place)
    return one


def test_shard_and_place(app, checkpoints, tmp_path):
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["shard", str(checkpoints["published"]), "--out", str(out), "--json"])
    facts = json.loads(done.stdout)
    assert facts["experts"] == 24
    assert facts["parameters"] == facts["base_parameters"] + 24 * facts["expert_parameters"]
    done = CliRunner().invoke(app, ["shard", str(checkpoints["published"]), "--out", str(out)])
    assert "published: 24 experts of 11,520 parameters" in done.stdout
    assert "0 objects written" in done.stdout
    devices = ["--device", "a=1:3", "--device", "b=1:1"]
    done = CliRunner().invoke(app, ["place", str(out / "manifest.json"), *devices])
    assert done.stdout.splitlines()[0] == "layer 0: a: 0-5; b: 6-7"
    done = CliRunner().invoke(app, ["place", str(out / "manifest.json"), *devices, "--json"])
    assert json.loads(done.stdout)["placement"]["2"]["7"] == ["b"]
    explain = ["place", str(out / "manifest.json"), *devices, "--explain"]
    done = CliRunner().invoke(app, explain)
    assert "room for 1,000.0 MB" not in done.stdout  # what was given on the command line needs no reason
    assert "A token waits" in done.stdout
    assert "most often for" in done.stdout
    found = json.loads(CliRunner().invoke(app, [*explain, "--copies", "2", "--json"]).stdout)["explained"]
    assert [one["experts"] for one in found["devices"]] == [24, 24]
    assert sum(one["load"] for one in found["devices"]) == pytest.approx(1)


def test_experts_of_8_bits_are_foreseen_as_faster(app, checkpoints, tmp_path):
    found = []
    for held in ([], ["--experts", "int8"]):
        out = tmp_path / f"out{len(held)}"
        CliRunner().invoke(app, ["shard", str(checkpoints["published"]), "--out", str(out), *held])
        explain = [
            "place",
            str(out / "manifest.json"),
            "--device",
            "a=1:3",
            "--dtype",
            "float32",
            "--explain",
        ]
        found.append(json.loads(CliRunner().invoke(app, [*explain, "--json"]).stdout)["explained"])
    assert 3 < found[0]["devices"][0]["held_bytes"] / found[1]["devices"][0]["held_bytes"] < 4
    assert 2 < found[0]["layer_ms"] / found[1]["layer_ms"] < 4


def test_options_that_would_mean_nothing_are_refused(app, shards, tmp_path):
    manifest, device = str(shards["published"] / "manifest.json"), ["--device", "a=1:1"]
    for arguments, message in (
        ([str(tmp_path / "none.yaml"), "--copies", "2"], "--copies: only with a manifest.json"),
        ([str(tmp_path / "none.yaml"), *device, "--dtype", "float16"], "--device, --dtype: only with"),
        ([manifest, *device, "--limit", "a"], "--limit goes with a campaign"),
        ([manifest, *device, *device], "a: there is more than one device of this name"),
        ([manifest], "there is no device"),
    ):
        error = CliRunner().invoke(app, ["place", *arguments]).exception
        assert isinstance(error, InputError)
        assert message in str(error)


def test_mistakes_are_input_errors(app, tmp_path):
    for arguments in (
        ["shard", str(tmp_path / "none"), "--out", str(tmp_path)],
        ["place", str(tmp_path / "none.json"), "--device", "a=1:1"],
        ["place", str(tmp_path / "none.json"), "--device", "a"],
        ["place", str(tmp_path / "none.yaml"), "--device", "a=1:1"],
    ):
        assert isinstance(CliRunner().invoke(app, arguments).exception, InputError)
