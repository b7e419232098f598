"""What `testbed emulate` says where it cannot do what was asked: no lab is brought up here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from testbed.cli.emulate import app
from testbed.emulation import preflight
from testbed.errors import TestbedError

INVENTORY = Path(__file__).parents[2] / "inventory" / "emulated.yaml"


@pytest.fixture
def refused(monkeypatch, tmp_path):
    """Return what a verb is refused with, in a lab that is not up."""
    monkeypatch.setattr(preflight, "require_root", lambda verb: None)
    monkeypatch.setattr(os, "execvp", lambda *line: pytest.fail("it went to a host"))
    inventory = tmp_path / "lab.yaml"
    inventory.write_text(INVENTORY.read_text().replace("lab: quickstart", f"lab: nowhere-{os.getpid()}"))

    def run(*words: str) -> TestbedError:
        error = CliRunner().invoke(app, [*words, "-i", str(inventory)]).exception
        assert isinstance(error, TestbedError)
        return error

    return run


def test_a_shell_in_a_lab_that_is_down_says_what_to_do(refused):
    error = refused("shell", "orin-nano")
    assert f"nowhere-{os.getpid()} is not up" in str(error)
    assert "testbed emulate up" in error.hint


def test_a_load_script_that_is_not_there_is_told_its_form(refused, tmp_path):
    missing = tmp_path / "load.json"
    error = refused("load", "orin-nano", "--script", str(missing))
    assert str(error) == f"{missing}: cannot be read: No such file or directory"
    assert "[[2, 0.5], [1, 1.0]]" in error.hint
    missing.write_text("[1]")
    assert "step 1: expected [seconds, load], got 1" in str(
        refused("load", "orin-nano", "--script", str(missing))
    )
