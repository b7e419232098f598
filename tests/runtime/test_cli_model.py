"""`testbed shard` and `testbed place`."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from testbed.cli import model
from testbed.errors import InputError


@pytest.fixture
def app():
    one = typer.Typer()
    one.command("shard")(model.shard)
    one.command("place")(model.place)
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
    assert done.stdout.splitlines()[0] == "layer 0: a: 0, 1, 2, 3, 4, 5; b: 6, 7"
    done = CliRunner().invoke(app, ["place", str(out / "manifest.json"), *devices, "--json"])
    assert json.loads(done.stdout)["placement"]["2"]["7"] == ["b"]


def test_mistakes_are_input_errors(app, tmp_path):
    for arguments in (
        ["shard", str(tmp_path / "none"), "--out", str(tmp_path)],
        ["place", str(tmp_path / "none.json"), "--device", "a=1:1"],
        ["place", str(tmp_path / "none.json"), "--device", "a"],
    ):
        assert isinstance(CliRunner().invoke(app, arguments).exception, InputError)
