import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed.config.inventory import Inventory
from testbed.errors import HostError
from testbed.hosts.facts import Facts, Recorded
from testbed.hosts.fleet import Fleet
from testbed.hosts.steps import Command
from testbed.provision import undo
from testbed.provision.apply import HostResult, provision_fleet
from testbed.provision.aspect import Site
from testbed.provision.code import PayloadCode
from testbed.provision.undo import UndoResult, plan_undo, undo_fleet
from tests.provision.conftest import LocalHost, Mark

OpenFleet = Callable[[Inventory], Fleet]
MARKS = (Mark("first"), Mark("second", needs="first"))


@pytest.fixture(autouse=True)
def few_aspects(only: Callable[..., None], quick_facts: None) -> None:
    only(*MARKS)


class Host:
    """The base station of a lab, provisioned and undone again and again."""

    def __init__(self, lab: Inventory, code: PayloadCode, fleet: Fleet, local: dict[str, LocalHost]) -> None:
        self.fleet, self.hosts, self.site = fleet, [lab.base_station], Site(code)
        fleet.transport("bs")
        self.local = local["bs"]

    def provision(self) -> HostResult:
        (result,) = provision_fleet(self.fleet, self.hosts, self.site)
        return result

    def undo(self, **options: Any) -> UndoResult:
        (result,) = undo_fleet(self.fleet, self.hosts, self.site, **options)
        return result

    def tree(self) -> dict[str, tuple[str, int]]:
        """Return all that there is in the home: content or target, and mode."""
        found = {}
        for path in sorted(self.local.home.rglob("*")):
            mode = stat.S_IMODE(path.lstat().st_mode)
            what = (
                str(path.readlink())
                if path.is_symlink()
                else (path.is_file() and path.read_text()) or "folder"
            )
            found[str(path.relative_to(self.local.home))] = (what, mode)
        return found


@pytest.fixture
def host(lab: Inventory, code: PayloadCode, open_fleet: OpenFleet, local: dict[str, LocalHost]) -> Host:
    return Host(lab, code, open_fleet(lab), local)


def nothing_before(home: Path) -> None:
    """Leave the home empty."""


def used_before(home: Path) -> None:
    """Make a ``~/.testbed`` of before, with other permissions and other code."""
    old = home / ".testbed"
    (old / "code" / ("0" * 16)).mkdir(parents=True)
    (old / "code" / ("0" * 16) / "a.py").write_text("x = 1\n")
    (old / "current").symlink_to("code/" + "0" * 16)
    (old / "runs").mkdir()
    (old / "runs").chmod(0o750)
    (old / "runs" / "one").write_text("records")
    old.chmod(0o711)


@pytest.mark.parametrize("before", [nothing_before, used_before], ids=["fresh", "used"])
def test_a_host_is_given_back_as_it_was(host: Host, before: Callable[[Path], None]) -> None:
    before(host.local.home)
    was = host.tree()
    first = host.provision()
    assert first.ok, first.error
    # The second mark shows itself only when the first is there.
    assert [change.item for change in first.plan.changes] == ["folders", "code", "first", "second"]
    record = host.local.home / ".testbed" / "provision.jsonl"
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    assert all(json.loads(line)["unix"] > 1e9 for line in record.read_text().splitlines() if line)
    assert host.tree() != was

    dry = host.undo(dry_run=True)
    assert dry.plan is not None
    assert [one.item for one in dry.plan.undoings] == ["second", "first", "code", "folders", "record"]
    done = host.undo()
    assert (done.ok, done.changed) == (True, True), done.error
    assert host.tree() == was
    again = host.undo()
    assert (again.ok, again.changed, again.plan and again.plan.undoings) == (True, False, ())
    assert host.tree() == was


def test_what_was_never_changed_has_nothing_to_undo(host: Host) -> None:
    result = host.undo()
    assert (result.ok, result.changed) == (True, False)
    assert host.tree() == {}


# Each of the four changes has a note and a step; that of the code has three. Cut off are a note without its step (the
# first, that of the code beside older code, the last), and the code in the middle, with and without older code.
@pytest.mark.parametrize(
    ("before", "cut"),
    [*((nothing_before, cut) for cut in (1, 4, 9)), *((used_before, cut) for cut in (3, 5))],
)
def test_it_is_undone_wherever_it_was_cut_off(host: Host, before: Callable[[Path], None], cut: int) -> None:
    before(host.local.home)
    was = host.tree()
    host.local.left_to_do = cut
    broken = host.provision()
    assert not broken.ok
    host.local.left_to_do, host.local.down = None, False
    assert host.undo().ok
    assert host.tree() == was
    # And one that goes on, instead, ends well, and can be undone.
    host.local.left_to_do = cut
    host.provision()
    host.local.left_to_do, host.local.down = None, False
    assert host.provision().ok
    assert host.undo().ok
    assert host.tree() == was


@pytest.mark.parametrize("cut", [0, 2, 4])
def test_an_undoing_that_was_cut_off_is_finished_by_the_next(host: Host, cut: int) -> None:
    assert host.provision().ok
    host.local.left_to_do = cut
    broken = host.undo()
    assert (broken.ok, broken.changed, broken.undone) == (False, cut > 0, cut)
    assert [one["done"] for one in broken.as_json()["undone"]] == [index < cut for index in range(5)]
    host.local.left_to_do, host.local.down = None, False
    assert host.undo().ok
    assert host.tree() == {}


def test_what_sudo_leaves_behind_goes_too(host: Host, only: Callable[..., None]) -> None:
    class Rooted(Mark):
        def changes(self, *args: Any) -> Any:
            for change in super().changes(*args):
                sudo = Command("bs", 'touch "$HOME/.sudo_as_admin_successful"', "use sudo")
                yield replace(change, steps=(sudo, *change.steps))

    only(Rooted("first"))
    assert host.provision().ok
    assert ".sudo_as_admin_successful" in host.tree()
    assert host.undo().ok
    assert host.tree() == {}
    # Where it was there before, it stays.
    (host.local.home / ".sudo_as_admin_successful").touch()
    was = host.tree()
    assert host.provision().ok
    assert host.undo().ok
    assert host.tree() == was


def test_what_is_left_of_the_folder_goes_with_the_next_undoing(host: Host) -> None:
    assert host.provision().ok
    (host.local.home / ".testbed").rename(host.local.home / ".testbed.undone")
    assert host.undo().ok
    assert host.tree() == {}


def test_a_note_that_was_cut_off_stands_for_nothing(host: Host) -> None:
    host.local.left_to_do = 4
    host.provision()
    host.local.left_to_do, host.local.down = None, False
    record = host.local.home / ".testbed" / "provision.jsonl"
    with record.open("a") as file:
        file.write('\n{"unix": 1, "item": "code", "recor')
    assert host.provision().ok
    assert host.undo().ok
    assert host.tree() == {}


def test_a_second_code_leads_back_to_the_first(host: Host) -> None:
    used_before(host.local.home)
    was = host.tree()
    assert host.provision().ok
    newer = PayloadCode("e" * 16, {"payloads/b.py": b""})
    host.site = Site(PayloadCode(newer.digest, newer.files))
    host.provision()  # its digest is no hash of its content: it is sent, and found damaged
    assert (host.local.home / ".testbed" / "current").readlink() == Path("code") / ("e" * 16)
    assert host.undo().ok
    assert host.tree() == was


def test_an_entry_that_is_not_known_is_left_alone(host: Host) -> None:
    assert host.provision().ok
    record = host.local.home / ".testbed" / "provision.jsonl"
    record.write_text(record.read_text() + '{"unix": 1, "item": "warp", "recorded": {}}\n')
    was = host.tree()
    result = host.undo()
    assert "its record holds warp, which this testbed does not know" in str(result.error)
    assert host.tree() == was


def test_undoing_that_needs_root_says_so_first(host: Host, only: Callable[..., None]) -> None:
    class Rooted(Mark):
        def undo(self, *args: Any) -> Any:
            yield Command("bs", "true", become=True)

    only(Rooted("first"))
    facts = Facts("bs", user="ann", record=(Recorded("first", {"there": False}),))
    with pytest.raises(HostError, match="ann cannot become root") as caught:
        plan_undo(host.hosts[0], facts, host.site)
    assert "--ask-become-password" in caught.value.hint
    plan = plan_undo(host.hosts[0], replace(facts, sudo=True), host.site)
    assert [one.item for one in plan.undoings] == ["first", "record"]


def test_nothing_is_undone_on_a_host_that_another_has(host: Host) -> None:
    assert host.provision().ok
    was = host.tree()
    host.local.refused = {"owner": "ann@laptop", "purpose": "a run"}
    result = host.undo()
    assert "ann@laptop" in str(result.error)
    assert host.tree() == was


def test_what_another_changed_before_the_host_was_ours_is_undone_too(
    host: Host, only: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    only(MARKS[0])
    assert host.provision().ok
    ask, asked = undo.ask_host, []

    def ask_host(*args: Any, **options: Any) -> Facts:
        facts = ask(*args, **options)
        asked.append(facts)
        if len(asked) == 1:  # somebody else has it until a moment after we have asked
            only(*MARKS)
            assert host.provision().ok
        return facts

    monkeypatch.setattr(undo, "ask_host", ask_host)
    done = host.undo()
    assert done.plan is not None
    assert [one.item for one in done.plan.undoings] == ["second", "first", "code", "folders", "record"]
