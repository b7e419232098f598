import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer import Typer
from typer.testing import CliRunner, Result

from testbed.cli import provision
from testbed.config.inventory import Host, Inventory
from testbed.errors import HostKeyError
from testbed.hosts.fleet import Fleet
from testbed.provision.apply import apply_plans, survey_fleet
from testbed.provision.changes import Desired
from testbed.provision.code import PayloadCode

OpenFleet = Callable[[Inventory], Fleet]


@pytest.fixture(autouse=True)
def modules_that_are_quick_to_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("testbed.hosts.facts.required_modules", lambda host: ("json",))
    monkeypatch.setattr("testbed.provision.check.required_modules", lambda host: ("json",))


@pytest.fixture
def run(tmp_path: Path, lab: Inventory) -> Callable[..., Result]:
    """Run `testbed provision` on the lab."""
    hosts = {
        name: {"role": host.role, "address": host.address, "python": host.python.model_dump(mode="json")}
        for name, host in lab.hosts.items()
    }
    (tmp_path / "lab.yaml").write_text(yaml.safe_dump({"lab": "test", "hosts": hosts}))
    app = Typer()
    app.command()(provision.provision)
    return lambda *words: CliRunner().invoke(app, ["--inventory", str(tmp_path / "lab.yaml"), *words])


@pytest.fixture
def no_jtop_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("changes", "check"):
        monkeypatch.setattr(f"testbed.provision.{module}.desired_state", lambda host: Desired())


def test_the_first_run_makes_a_host_ready_and_the_second_changes_nothing(
    lab: Inventory, code: PayloadCode, open_fleet: OpenFleet, local: Any
) -> None:
    fleet, hosts = open_fleet(lab), [lab.base_station]
    plans = survey_fleet(fleet, hosts, code)
    planned = [step.line() for step in plans[0].steps]
    (result,) = apply_plans(fleet, plans, code)
    assert (result.ok, result.changed) == (True, True)
    assert local["bs"].changing_steps() == planned
    home = local["bs"].home / ".testbed"
    assert (home / "current" / "payloads" / "wire" / "frames.py").read_bytes() == b"SIZE = 3\n"
    assert home.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in (home / "code").iterdir()) == [code.digest]

    (again,) = apply_plans(fleet, survey_fleet(fleet, hosts, code), code)
    assert (again.ok, again.changed, again.plan.changes) == (True, False, ())
    assert local["bs"].changing_steps() == []


def test_what_was_damaged_is_put_right(
    lab: Inventory, code: PayloadCode, open_fleet: OpenFleet, local: Any
) -> None:
    fleet, hosts = open_fleet(lab), [lab.base_station]
    apply_plans(fleet, survey_fleet(fleet, hosts, code), code)
    home = local["bs"].home / ".testbed"
    frames = home / "current" / "payloads" / "wire" / "frames.py"
    frames.write_text("SIZE = 4\n")
    (home / "runs").rmdir()
    plans = survey_fleet(fleet, hosts, code)
    assert [change.item for change in plans[0].changes] == ["folders", "code"]
    (result,) = apply_plans(fleet, plans, code)
    assert result.ok
    assert frames.read_bytes() == b"SIZE = 3\n"


def test_a_managed_environment_is_made_once(
    lab: Inventory, code: PayloadCode, open_fleet: OpenFleet, local: Any
) -> None:
    python = {"interpreter": sys.executable, "system_packages": True}
    hosts = {"bs": {"role": "base_station", "address": "10.0.0.1", "python": python}}
    hosts["dev"] = {"role": "device", "address": "10.0.0.2"}
    lab = Inventory.model_validate({"lab": "test", "hosts": hosts})
    fleet = open_fleet(lab)
    (result,) = apply_plans(fleet, survey_fleet(fleet, [lab.base_station], code), code)
    assert result.ok, result.error
    assert result.after is not None
    assert result.after.facts is not None
    assert result.after.facts.environment.recipe is not None
    assert (local["bs"].home / ".testbed" / "venv" / "bin" / "python").exists()
    (plan,) = survey_fleet(fleet, [lab.base_station], code)
    assert plan.changes == ()


def test_a_step_that_fails_stops_its_host_only(
    lab: Inventory, code: PayloadCode, open_fleet: OpenFleet, local: Any, no_jtop_wanted: None
) -> None:
    fleet = open_fleet(lab)
    plans = survey_fleet(fleet, list(lab.hosts.values()), code)
    blocked = local["bs"].home / ".testbed"
    blocked.write_text("in the way")
    results = apply_plans(fleet, plans, code)
    assert [result.ok for result in results] == [False, True]
    assert "mkdir" in str(results[0].error)
    assert not results[0].changed


def test_the_command_tells_what_changes_and_then_that_nothing_does(
    run: Callable[..., Result], local: Any, no_jtop_wanted: None
) -> None:
    dry = run("--dry-run")
    assert dry.exit_code == 0
    assert "dry run: 4 changes on 2 hosts would be made; nothing was changed" in dry.stdout
    assert local["bs"].changing_steps() == []
    planned = re.findall(r"^    (bs: .*)$", dry.stdout, re.MULTILINE)
    first = run()
    assert first.exit_code == 0, first.stderr
    assert "changed: bs, dev" in first.stdout
    assert local["bs"].changing_steps() == planned
    assert re.search(r"^  code: none -> [0-9a-f]{16}$", first.stdout, re.MULTILINE)
    second = run()
    assert second.exit_code == 0
    assert second.stdout.count("nothing to change") == 2
    assert second.stdout.endswith("changed: nothing\n")
    assert second.stderr == ""


def test_a_failing_host_is_named_and_the_others_are_done(run: Callable[..., Result], local: Any) -> None:
    # This machine is no Jetson: the device has no jtop, and that only a person can change.
    result = run()
    assert result.exit_code == 1
    assert "changed: bs\nfailed: dev\n" in result.stdout
    assert (
        "failure: dev: jtop (jetson-stats) is not installed\n  hint: on the host: sudo pip3" in result.stderr
    )
    assert local["dev"].changing_steps() == []


def test_only_the_named_hosts_are_touched(run: Callable[..., Result], local: Any) -> None:
    assert run("--limit", "bs").exit_code == 0
    assert list(local) == ["bs"]


def test_json_holds_facts_changes_and_outcome(run: Callable[..., Result], local: Any) -> None:
    result = run("--json")
    bs, dev = json.loads(result.stdout)
    assert (bs["host"], bs["ok"], bs["changed"]) == ("bs", True, True)
    assert [change["item"] for change in bs["changes"]] == ["folders", "code"]
    assert bs["facts"]["python"]
    assert (dev["ok"], dev["changed"], dev["findings"][0]["level"]) == (False, False, "failure")


def test_a_dry_run_assumes_what_a_dead_host_cannot_say(
    run: Callable[..., Result], local: Any, lab: Inventory, open_fleet: OpenFleet
) -> None:
    for name in lab.hosts:
        open_fleet(lab).transport(name)
        local[name].down = True
    result = run("--dry-run")
    assert result.exit_code == 0
    assert result.stdout.count("so all its facts are assumed") == 2
    for line in result.stdout.splitlines():
        if re.match(r"\w+: (?!dry)", line) and "dry run" not in line:
            assert all(part.endswith("(assumed)") for part in line.partition(": ")[2].split(", "))
    assert "folders: missing (assumed) -> ~/.testbed" in result.stdout
    real = run()
    assert real.exit_code == 1
    assert "failed: bs, dev" in real.stdout
    assert "failure: bs: no answer" in real.stderr


def test_a_host_whose_key_changed_is_refused(
    run: Callable[..., Result], local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(host: Host, transport: object) -> None:
        raise HostKeyError(host.name, "the host's key has changed", hint="look twice")

    monkeypatch.setattr("testbed.provision.apply.gather_facts", refuse)
    for words in ((), ("--dry-run",)):
        result = run(*words)
        assert result.exit_code == 3
        assert "failure: bs: the host's key has changed\n  hint: look twice" in result.stderr


@pytest.mark.parametrize("verb", ["inventory", "provision", "trust"])
def test_verbs_are_quick_to_import(verb: str) -> None:
    program = f"import sys, testbed.cli.{verb}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "transformers", "pandas", "fabric", "pydantic"} & set(loaded)
