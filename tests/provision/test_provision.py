import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer import Typer
from typer.testing import CliRunner, Result

from testbed.cli import provision
from testbed.config.inventory import Host, Inventory
from testbed.errors import HostKeyError, InputError
from testbed.hosts.facts import Facts
from testbed.hosts.fleet import Fleet
from testbed.provision.apply import apply_plans
from testbed.provision.aspect import Change, Finding, Site
from testbed.provision.code import PayloadCode
from testbed.provision.survey import survey_fleet
from tests.provision.conftest import Mark

OpenFleet = Callable[[Inventory], Fleet]


@pytest.fixture(autouse=True)
def few_aspects(only: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("testbed.hosts.facts.asked.required_modules", lambda host: ("json",))


@pytest.fixture
def run(tmp_path: Path, lab: Inventory, quick_facts: None) -> Callable[..., Result]:
    """Run `testbed provision` on the lab."""
    hosts = {
        name: {"role": host.role, "address": host.address, "python": host.python.model_dump(mode="json")}
        for name, host in lab.hosts.items()
    }
    described = {"lab": "test", "network": {"shaping": lab.network.shaping}, "hosts": hosts}
    (tmp_path / "lab.yaml").write_text(yaml.safe_dump(described))
    app = Typer()
    app.command()(provision.provision)
    file = str(tmp_path / "lab.yaml")
    return lambda *words, **options: CliRunner().invoke(app, ["--inventory", file, *words], **options)


def test_the_first_run_makes_a_host_ready_and_the_second_changes_nothing(
    lab: Inventory, code: PayloadCode, open_fleet: OpenFleet, local: Any
) -> None:
    fleet, hosts = open_fleet(lab), [lab.base_station]
    plans = survey_fleet(fleet, hosts, Site(code))
    planned = [step.line() for step in plans[0].steps]
    (result,) = apply_plans(fleet, plans, Site(code))
    assert (result.ok, result.changed) == (True, True)
    assert local["bs"].changing_steps() == planned
    home = local["bs"].home / ".testbed"
    assert (home / "current" / "payloads" / "wire" / "frames.py").read_bytes() == b"SIZE = 3\n"
    assert home.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in (home / "code").iterdir()) == [code.digest]

    (again,) = apply_plans(fleet, survey_fleet(fleet, hosts, Site(code)), Site(code))
    assert (again.ok, again.changed, again.plan.changes) == (True, False, ())
    assert local["bs"].changing_steps() == []


@pytest.mark.usefixtures("quick_facts")
def test_what_was_damaged_is_put_right(
    lab: Inventory, code: PayloadCode, open_fleet: OpenFleet, local: Any
) -> None:
    fleet, hosts = open_fleet(lab), [lab.base_station]
    apply_plans(fleet, survey_fleet(fleet, hosts, Site(code)), Site(code))
    home = local["bs"].home / ".testbed"
    frames = home / "current" / "payloads" / "wire" / "frames.py"
    frames.write_text("SIZE = 4\n")
    (home / "runs").rmdir()
    plans = survey_fleet(fleet, hosts, Site(code))
    assert [change.item for change in plans[0].changes] == ["folders", "code"]
    (result,) = apply_plans(fleet, plans, Site(code))
    assert result.ok
    assert frames.read_bytes() == b"SIZE = 3\n"


@pytest.mark.usefixtures("quick_facts")
def test_a_step_that_fails_stops_its_host_only(
    lab: Inventory, code: PayloadCode, open_fleet: OpenFleet, local: Any
) -> None:
    fleet = open_fleet(lab)
    plans = survey_fleet(fleet, list(lab.hosts.values()), Site(code))
    blocked = local["bs"].home / ".testbed"
    blocked.write_text("in the way")
    results = apply_plans(fleet, plans, Site(code))
    assert [result.ok for result in results] == [False, True]
    assert "mkdir" in str(results[0].error)
    assert not results[0].changed


def test_the_command_tells_what_changes_and_then_that_nothing_does(
    run: Callable[..., Result], local: Any
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


class Broken(Mark):
    """An aspect that no device can be used for."""

    def findings(self, host: Host, facts: Facts, changes: Sequence[Change]) -> Iterator[Finding]:
        if host.is_device:
            yield Finding(host.name, "failure", self.item, "the fan is missing", "buy a fan")


def test_a_failing_host_is_named_and_the_others_are_done(
    run: Callable[..., Result], local: Any, only: Callable[..., None]
) -> None:
    only(Broken("."))
    result = run()
    assert result.exit_code == 1
    assert "changed: bs\nfailed: dev\n" in result.stdout
    assert result.stderr == "failure: dev: the fan is missing\n  hint: buy a fan\n"
    assert local["dev"].changing_steps() == []


def test_what_a_step_could_not_do_is_said_in_words(
    run: Callable[..., Result], local: Any, lab: Inventory, open_fleet: OpenFleet
) -> None:
    open_fleet(lab).transport("bs")
    (local["bs"].home / ".testbed").write_text("in the way")
    result = run("--limit", "bs")
    assert result.exit_code == 1
    assert "  nothing of this was done\n" in result.stdout
    assert re.match(
        r"failure: bs: could not note what there was: folders: mkdir: .* File exists\n", result.stderr
    )


def test_provision_and_undo_by_the_command(run: Callable[..., Result], local: Any) -> None:
    assert run().exit_code == 0
    dry = run("--undo", "--dry-run")
    assert "bs: code, folders, record\n    bs: if [ -d" in dry.stdout
    assert "dry run: 6 changes on 2 hosts would be undone; nothing was changed" in dry.stdout
    assert list(local["bs"].home.iterdir()) != []
    result = run("--undo", "--json")
    assert [(one["host"], one["ok"], len(one["undone"])) for one in json.loads(result.stdout)] == [
        ("bs", True, 3),
        ("dev", True, 3),
    ]
    assert [list(host.home.iterdir()) for host in local.values()] == [[], []]
    again = run("--undo")
    assert again.exit_code == 0
    lines = again.stdout.splitlines()  # each host's when it is done
    assert sorted(lines[:2]) == ["bs: nothing to undo", "dev: nothing to undo"]
    assert lines[2:] == ["undone: nothing"]


def test_what_was_undone_of_a_host_that_failed_is_said(run: Callable[..., Result], local: Any) -> None:
    assert run().exit_code == 0
    local["bs"].left_to_do = 1
    cut = run("--undo")
    assert cut.exit_code == 1
    assert "bs: code; not undone: folders, record\n" in cut.stdout
    assert cut.stdout.endswith("undone: dev\nundone in part: bs\nfailed: bs\n")


def test_a_password_is_read_from_a_pipe_and_goes_to_the_fleet_only(
    run: Callable[..., Result], local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    once = Fleet.__init__

    def init(self: Fleet, *args: Any, **options: Any) -> None:
        given.append(options["become"])
        once(self, *args, **options)

    monkeypatch.setattr(Fleet, "__init__", init)
    result = run("--ask-become-password", "--dry-run", input="open sesame\n")
    assert given[0].line() == b"open sesame\n"
    assert "sesame" not in result.stdout + result.stderr + repr(given)
    assert isinstance(run("-K", input="").exception, InputError)


def test_only_the_named_hosts_are_touched(run: Callable[..., Result], local: Any) -> None:
    assert run("--limit", "bs").exit_code == 0
    assert list(local) == ["bs"]


def test_json_holds_facts_changes_and_outcome(
    run: Callable[..., Result], local: Any, only: Callable[..., None]
) -> None:
    only(Broken("."))
    result = run("--json")
    bs, dev = json.loads(result.stdout)
    assert (bs["host"], bs["ok"], bs["changed"]) == ("bs", True, True)
    assert [change["item"] for change in bs["changes"]] == ["folders", "code"]
    assert bs["facts"]["kernel"]
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
    assert "failure: 2 hosts (bs, dev): no answer" in real.stderr


def test_a_host_whose_key_changed_is_refused(
    run: Callable[..., Result], local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(host: Host, transport: object, **options: object) -> None:
        raise HostKeyError(host.name, "the host's key has changed", hint="look twice")

    monkeypatch.setattr("testbed.provision.survey.gather_facts", refuse)
    for words in ((), ("--dry-run",)):
        result = run(*words)
        assert result.exit_code == 3
        assert "failure: 2 hosts (bs, dev): the host's key has changed\n  hint: look twice" in result.stderr


@pytest.mark.parametrize("verb", ["inventory", "provision", "trust"])
def test_verbs_are_quick_to_import(verb: str) -> None:
    program = f"import sys, testbed.cli.{verb}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "transformers", "pandas", "paramiko", "pydantic"} & set(loaded)
