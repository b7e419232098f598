"""The rack of the example inventory, where no host answers: in a network namespace of its own, without a way out."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare of util-linux"),
]
ROOT = Path(__file__).resolve().parents[2]
RACK = "inventory/lab-rack.example.yaml"


def dry_run(*arguments):
    program = [sys.executable, "-c", "from testbed.cli.main import run; run()", *arguments, "--dry-run"]
    done = subprocess.run(
        ["unshare", "--net", *program], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_plan_of_a_run_is_printed_with_every_fact_marked_as_assumed():
    text = dry_run("run", "campaigns/quickstart.yaml", "-i", RACK)
    facts = text.partition("\nfacts\n")[2].partition("\n\n")[0].splitlines()
    hosts = [line for line in facts if not line.startswith("    ")]
    assert len(hosts) == 6
    for line in hosts:
        name, _, said = line.partition(": ")
        assert all(fact.strip().endswith("(assumed)") for fact in said.split(",")), line
        assert f"    assumed, since {name.strip()}: " in text
    for phase in ("provision", "pull the shards", "trial t020", "restore", "collect"):
        assert f"\n{phase}\n" in text


def test_the_plan_is_there_as_json_too():
    plan = json.loads(dry_run("run", "campaigns/quickstart.yaml", "-i", RACK, "--json"))
    assert all(facts["assumed"] for facts in plan["facts"].values())
    assert [phase["name"] for phase in plan["phases"]][:3] == ["probe", "hold the hosts", "provision"]


def test_provision_shows_what_it_would_change():
    text = dry_run("provision", "-i", RACK)
    assert "nothing was changed" in text
    assert "(assumed)" in text
