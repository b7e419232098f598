"""Clock, swap, disk, and the keeper at boot."""

import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from testbed.config.inventory import Host
from testbed.hosts.clock import measure_clock
from testbed.hosts.facts import Facts, Units
from testbed.hosts.facts.board import Board as BoardFacts
from testbed.hosts.facts.system import Access, Disk, Swap, SwapArea, System, TimeService, Unit
from testbed.hosts.fake import Answer, FakeTransport
from testbed.hosts.probes import system as probe
from testbed.hosts.steps import Command, Step
from testbed.provision.aspect import Change
from testbed.provision.aspects.clock import CHRONY_DROP_IN, TIMESYNCD_DROP_IN, Clock
from testbed.provision.aspects.disk import Disk as DiskAspect
from testbed.provision.aspects.keeper import Keeper
from testbed.provision.aspects.memory import MIB, Memory, swap_unit
from tests.provision.stubs import Board

RUNS, OFF = Unit("active", "enabled"), Unit("inactive", "disabled")


def host(**about: Any) -> Host:
    return Host.model_validate({"name": "orin", "role": "device", "address": "x", "user": "ann"} | about)


def facts(
    offset_s: float | None = 0.0, error_s: float = 0.0, *, systemd: bool = True, **system: Any
) -> Facts:
    system = {"access": Access(("ann",))} | system
    times = {"clock_offset_s": offset_s, "clock_error_s": error_s}
    return Facts("orin", user="ann", sudo=True, systemd=systemd, system=System(**system), **times)


def units(**about: Unit) -> TimeService:
    return TimeService(
        units={name.replace("_", "-"): unit for name, unit in about.items()}, synchronised=True
    )


# --- the clock beside ours


class World:
    """A host whose clock is off by a known amount, and a network that is late at random."""

    def __init__(self, offset_s: float, seed: int) -> None:
        self.now, self.offset_s = 1000.0, offset_s
        self.random = random.Random(seed)

    def clock(self) -> float:
        return self.now

    def answer(self, step: Step) -> str:
        self.now += self.random.expovariate(1 / 0.05)
        reading = self.now + self.offset_s
        self.now += self.random.expovariate(1 / 0.05)
        return f"{reading:.9f}\n"


@given(st.floats(-1e4, 1e4), st.integers(0, 99))
def test_a_clock_lies_where_questions_and_answers_say(offset_s: float, seed: int) -> None:
    world = World(offset_s, seed)
    fake = FakeTransport("orin", [("date", world.answer)] * 8)
    measured = measure_clock(host(), fake, good_error_s=0.0, clock=world.clock)
    assert measured is not None
    assert abs(measured[0] - offset_s) <= measured[1] + 1e-6
    assert len(fake.steps) == 8


def test_asking_ends_where_it_is_known_well_enough_and_where_nobody_can_say() -> None:
    world = World(3.0, 1)
    fake = FakeTransport("orin", [("date", world.answer)])
    assert measure_clock(host(), fake, good_error_s=100.0, clock=world.clock) is not None
    fake.finish()
    for answer in (Answer("1700000000.N\n"), Answer(stderr="date: no", exit_status=1)):
        assert measure_clock(host(), FakeTransport("orin", [("date", answer)]), good_error_s=1.0) is None


def test_a_clock_that_is_set_meanwhile_is_known_by_its_last_answer() -> None:
    answers = iter(["1000.0", "2000.0"] + ["2000.0"] * 6)
    fake = FakeTransport("orin", [("date", lambda step: next(answers))] * 8)
    assert measure_clock(host(), fake, good_error_s=-1.0, clock=lambda: 1000.0) == (1000.0, 0.0)


@pytest.mark.parametrize(
    ("offset_s", "error_s", "time", "text", "hint"),
    [
        (
            5.0,
            0.01,
            units(chrony=RUNS),
            "5.0 s ahead of ours (known to 10 ms, at most 50 ms)",
            "chronyc makestep",
        ),
        (-0.3, 0.0, units(systemd_timesyncd=RUNS), "300 ms behind", "systemctl restart systemd-timesyncd"),
        (-0.3, 0.0, units(systemd_timesyncd=OFF), "300 ms behind", "clock: {ntp: true}"),
        (0.06, 0.0, TimeService(), "60 ms ahead", "apt-get install chrony"),
    ],
)
def test_a_clock_that_is_off_is_a_failure_with_its_remedy(
    offset_s: float, error_s: float, time: TimeService, text: str, hint: str
) -> None:
    (finding,) = Clock().findings(host(), facts(offset_s, error_s, time=time), ())
    assert (finding.level, text in finding.text, hint in finding.hint) == ("failure", True, True)


def test_a_clock_is_not_blamed_for_a_slow_answer_nor_beyond_the_inventorys_limit() -> None:
    assert list(Clock().findings(host(), facts(0.06, 0.05, time=units(chrony=RUNS)), ())) == []
    far = facts(0.9, time=units(chrony=RUNS))
    assert list(Clock().findings(host(clock={"limit_ms": 1000}), far, ())) == []
    assert len(list(Clock().findings(host(clock={"limit_ms": 800.5}), far, ()))) == 1


def test_a_clock_that_nothing_keeps_is_told() -> None:
    (finding,) = Clock().findings(host(), facts(time=units(ntp=OFF)), ())
    assert (finding.level, finding.text) == ("warning", "nothing keeps its clock right")
    unset = TimeService(units={"chrony": RUNS}, synchronised=False)
    (finding,) = Clock().findings(host(), facts(time=unset), ())
    assert "has not set the clock yet" in finding.text
    assert list(Clock().findings(host(), facts(systemd=False), ())) == []


def test_a_time_service_is_started_only_where_it_is_asked_for() -> None:
    found = facts(time=units(systemd_timesyncd=OFF, ntp=OFF))
    assert list(Clock().changes(host(), found)) == []
    (change,) = Clock().changes(host(clock={"ntp": True}), found)
    (step,) = change.steps
    begin = "orin: (root) systemctl enable systemd-timesyncd.service && systemctl restart systemd-timesyncd.service"
    assert step.line().startswith(begin)
    assert list(Clock().changes(host(clock={"ntp": True}), facts(time=units(chrony=RUNS)))) == []
    masked = units(chrony=Unit("inactive", "masked"), ntp=OFF)
    (change,) = Clock().changes(host(clock={"ntp": True}), facts(time=masked))
    assert change.recorded["unit"] == "ntp"
    (finding,) = Clock().findings(host(clock={"ntp": True}), facts(), ())
    assert (finding.level, "chrony" in finding.hint) == ("failure", True)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    made = Board(tmp_path)
    made.program("systemctl", 'echo "$*" >>$BOARD/log')
    return made


def below(steps: list[Step], folder: Path) -> list[Step]:
    """Return steps whose paths below /etc lie in a folder of the test."""
    moved: list[Step] = []
    for step in steps:
        assert isinstance(step, Command)
        shell = step.shell.replace("/etc/", f"{folder}/")
        moved.append(Command(step.host, shell, step.title, stdin=step.stdin))
    return moved


@pytest.mark.parametrize(
    ("service", "path", "text"),
    [
        ("chrony", CHRONY_DROP_IN, "server 192.0.2.1 iburst\nserver ntp.lab iburst\n"),
        ("systemd-timesyncd", TIMESYNCD_DROP_IN, "[Time]\nNTP=192.0.2.1 ntp.lab\n"),
    ],
)
@pytest.mark.parametrize("before", [None, "[Time]\nNTP=old\n"])
def test_servers_are_named_in_a_file_of_our_own_and_taken_back(
    service: str, path: str, text: str, before: str | None, board: Board
) -> None:
    file = board.folder / path.removeprefix("/etc/")
    folders = (path.rpartition("/")[0],) if before else ()
    if before:
        file.parent.mkdir(parents=True)
        file.write_text(before)
    about = {"chrony_sources": True, "drop_ins": {path: before.strip()} if before else {}, "folders": folders}
    wanted = host(clock={"servers": ["192.0.2.1", "ntp.lab"]})
    (change,) = Clock().changes(wanted, facts(time=TimeService(units={service: OFF}, **about)))
    assert all(not done.returncode for done in board.run(below(list(change.steps), board.folder)))
    assert file.read_text() == text
    # Now it is as it should be.
    done = TimeService(units={service: RUNS}, chrony_sources=True, drop_ins={path: text.strip()})
    assert list(Clock().changes(wanted, facts(time=done))) == []
    steps = below(list(Clock().undo(wanted, facts(), change.recorded)), board.folder)
    for _ in range(2):
        undone = board.run(steps)
        assert not undone[-1].returncode, undone[-1].stderr
        assert (file.read_text() if file.exists() else None) == before
        assert file.parent.exists() == bool(before)
    assert board.log[:3] == [
        f"{verb} {service}.service" for verb in ("enable", "restart", "is-active --quiet")
    ]
    assert board.log[3:6] == [f"{verb} {service}.service" for verb in ("cat", "disable", "stop")]
    # An undoing that was cut off has taken the service's package away already.
    board.program("systemctl", 'echo "Unit not found." >&2; exit 5')
    assert not board.run(steps)[-1].returncode
    # One that starts and falls over is no success.
    board.program("systemctl", "test $1 != is-active")
    failed = board.run(below(list(change.steps), board.folder))[-1]
    assert (failed.returncode, "does not stay up" in failed.stderr) == (1, True)


def test_an_old_chrony_says_where_its_servers_must_be_named() -> None:
    wanted, found = host(clock={"servers": ["ntp.lab"]}), facts(time=units(chrony=RUNS))
    assert list(Clock().changes(wanted, found)) == []
    (finding,) = Clock().findings(wanted, found, ())
    assert (finding.level, "server ntp.lab iburst" in finding.hint) == ("warning", True)


# --- swap


@pytest.mark.skipif(
    shutil.which("systemd-escape") is None, reason="systemd's own answer is what it is held against"
)
@settings(max_examples=15, deadline=None)
@given(st.from_regex(r"/(?:[A-Za-z0-9_.-]+/){0,3}[A-Za-z0-9_.-]+", fullmatch=True))
@example("/var/swap.testbed")
@example("/a-b/.c_d")
def test_a_swap_files_unit_is_called_as_systemd_calls_it(path: str) -> None:
    if {".", ".."} & set(path.split("/")):
        return  # systemd takes no such path
    argv = ["systemd-escape", "--path", "--suffix=swap", path]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    assert swap_unit(path) == said


@pytest.mark.parametrize(
    ("areas", "missing"),
    [
        ([], 4096),
        ([SwapArea("/dev/zram0", 9 << 30)], 4096),
        ([SwapArea("/swap", 1 << 30)], 3072),
        ([SwapArea("/swap", 4 << 30)], 0),
        ([SwapArea("/var/swap.testbed", (4 << 30) - 4096)], 0),
        ([SwapArea("/var/swap.testbed", 1 << 30)], 4096),
    ],
)
def test_only_the_swap_that_is_missing_is_made(areas: list[SwapArea], missing: int) -> None:
    wanted, found = host(memory={"swap_mib": 4096}), facts(swap=Swap(tuple(areas)))
    assert Memory().missing_mib(wanted, found) == missing
    changes = list(Memory().changes(wanted, found))
    assert [change.recorded for change in changes] == (
        [{"file": "/var/swap.testbed", "larger": any("testbed" in area.path for area in areas)}]
        if missing
        else []
    )
    assert list(Memory().changes(host(), found)) == []


@given(st.lists(st.integers(0, 1 << 40), max_size=4), st.integers(1, 1 << 20))
def test_after_the_swap_file_is_made_nothing_is_missing(sizes: list[int], wanted_mib: int) -> None:
    others = tuple(SwapArea(f"/swap{number}", size) for number, size in enumerate(sizes))
    wanted = host(memory={"swap_mib": wanted_mib})
    size = Memory().missing_mib(wanted, facts(swap=Swap(others))) * MIB
    assert sum(sizes) + size >= (wanted_mib - 1) * MIB
    if size:
        made = (*others, SwapArea("/var/swap.testbed", size - 4096))
        assert Memory().missing_mib(wanted, facts(swap=Swap(made))) == 0


def test_a_swap_file_is_made_and_taken_away_and_a_strangers_is_left_alone(board: Board) -> None:
    for name in ("mkswap", "swapoff"):
        board.program(name, f'echo "{name} $*" >>$BOARD/log')
    (board.folder / "systemd/system").mkdir(parents=True)
    file = board.folder / "swap.testbed"
    wanted = host(memory={"swap_mib": 1, "swap_file": str(file)})
    (change,) = Memory().changes(wanted, facts())
    file.write_text("a stranger's")
    refused = board.run(below(list(change.steps), board.folder))
    assert (len(refused), refused[0].returncode, file.read_text()) == (1, 1, "a stranger's")
    assert "is there already" in refused[0].stderr
    undo = below(list(Memory().undo(wanted, facts(), change.recorded)), board.folder)
    assert not board.run(undo)[-1].returncode
    assert file.read_text() == "a stranger's"
    file.unlink()
    assert all(not done.returncode for done in board.run(below(list(change.steps), board.folder)))
    assert (file.stat().st_size, file.stat().st_mode & 0o777) == (MIB, 0o600)
    (unit,) = (board.folder / "systemd/system").iterdir()
    assert f"What={file}" in unit.read_text()
    for _ in range(2):
        assert not board.run(undo)[-1].returncode
        assert not file.exists()
        assert list((board.folder / "systemd/system").iterdir()) == []


@pytest.mark.parametrize(
    ("wanted", "on", "there"), [(False, True, 1), (True, True, 0), (True, False, 1), (None, True, 0)]
)
def test_zram_is_switched_where_it_differs(wanted: bool | None, on: bool, there: int) -> None:
    areas = (SwapArea("/dev/zram0", 1 << 30),) if on else ()
    found = facts(swap=Swap(areas, {"nvzramconfig": RUNS}))
    changes = list(Memory().changes(host(memory={"zram": wanted}), found))
    assert len(changes) == there
    for change in changes:
        assert change.recorded == {"zram": "nvzramconfig", "on": on, "enabled": True}
        (step,) = Memory().undo(host(), found, change.recorded)
        assert ("restart" if on else "swapoff") in step.line()


def test_swap_without_systemd_is_a_failure_that_says_so() -> None:
    bare = facts(systemd=False)
    (finding,) = Memory().findings(host(memory={"swap_mib": 1}), bare, ())
    assert (finding.level, "systemd" in finding.text) == ("failure", True)
    assert list(Memory().changes(host(memory={"swap_mib": 1}), bare)) == []
    (finding,) = Memory().findings(host(memory={"zram": True}), facts(), ())
    assert "zram-tools" in finding.hint


def test_swap_is_read_as_the_kernel_tells_it() -> None:
    text = "Filename\t\tType\tSize\tUsed\tPriority\n/dev/zram0 partition\t1024\t0\t5\n/swap file 2048 1 -2\n"
    assert probe.swap({}, text)["areas"] == [
        {"path": "/dev/zram0", "bytes": 1 << 20, "used_bytes": 0},
        {"path": "/swap", "bytes": 2 << 20, "used_bytes": 1024},
    ]


# --- disk


def change(item: str) -> Change:
    return Change("orin", item, "", "", "", ())


GIB = 1 << 30


@pytest.mark.parametrize(
    ("disks", "items", "found"),
    [
        ({"/home/ann": Disk(1, 9 * GIB)}, [], None),
        ({"/home/ann": Disk(1, GIB)}, [], ("warning", "only 1.0 GiB of disk are free in the home")),
        (
            {"/home/ann": Disk(1, 0)},
            [],
            ("failure", "only 0 MiB of disk are free in the home; 256 MiB are needed"),
        ),
        (
            {"/home/ann": Disk(1, 2 * GIB)},
            ["python"],
            ("failure", "only 2.0 GiB of disk are free in the home; 3.2 GiB"),
        ),
        (
            {"/home/ann": Disk(1, 9 * GIB, read_only=True)},
            [],
            ("failure", "nothing can be written in the home"),
        ),
        ({"/home/ann": Disk(1, 9 * GIB, free_files=9)}, [], ("failure", "only 9 more files can be made")),
        # A full disk elsewhere matters where something is about to be put there.
        ({"/home/ann": Disk(1, 9 * GIB), "/var": Disk(2, 0)}, [], None),
        (
            {"/home/ann": Disk(1, 9 * GIB), "/var": Disk(2, 0)},
            ["packages"],
            ("failure", "free in /var; 300 MiB"),
        ),
        # Folders of one file system share its room.
        ({"/home/ann": Disk(1, 500 * MIB), "/var": Disk(1, 500 * MIB)}, ["packages"], ("failure", "556 MiB")),
    ],
)
def test_room_is_held_against_what_is_planned(
    disks: dict[str, Disk], items: list[str], found: tuple[str, str] | None
) -> None:
    wanted = host(python={"packages": ["torch"]})
    findings = list(DiskAspect().findings(wanted, facts(disks=disks), [change(item) for item in items]))
    assert len(findings) == bool(found)
    for finding in findings:
        assert found is not None
        assert (finding.level, found[1] in finding.text, bool(finding.hint)) == (found[0], True, True)


def test_a_swap_file_needs_its_room_too() -> None:
    disks = {"/home/ann": Disk(1, 9 * GIB), "/": Disk(2, 3 * GIB)}
    wanted = host(memory={"swap_mib": 4096, "swap_file": "/swap"})
    (finding,) = DiskAspect().findings(wanted, facts(disks=disks), [change("memory")])
    assert finding.text == "only 3.0 GiB of disk are free in /; 4.0 GiB are needed"


# --- the keeper at boot


@pytest.mark.parametrize(
    "less",
    [{"systemd": False}, {"sudo": False}, {"board": BoardFacts()}, {"user": "lab\\ann"}],
    ids=lambda less: next(iter(less)),
)
def test_a_keeper_is_started_at_boot_where_there_is_power_to_put_back(less: dict[str, Any]) -> None:
    found = replace(facts(), board=BoardFacts(nvpmodel=True))
    (change,) = Keeper().changes(host(), found)
    (step,) = change.steps
    assert isinstance(step, Command)
    assert b"User=ann" in step.stdin  # nothing of what a user may write is run as root
    there = replace(found, units=Units(keeper=step.stdin.decode().strip()))
    assert list(Keeper().changes(host(), there)) == []
    assert len(list(Keeper().changes(host(python={"manage": False}), there))) == 1  # by another Python
    assert list(Keeper().changes(host(), replace(found, **less))) == []


def test_the_keepers_unit_is_made_and_taken_away_and_runs_its_code(board: Board) -> None:
    board.program("systemctl", 'echo "systemctl $*" >>"$BOARD/log"')
    (board.folder / "systemd/system").mkdir(parents=True)
    wanted = host(python={"manage": False, "interpreter": "/opt/it's 100% $own/python"})
    (change,) = Keeper().changes(wanted, replace(facts(), board=BoardFacts(nvpmodel=True)))
    assert [done.returncode for done in board.run(below(list(change.steps), board.folder))] == [0]
    (unit,) = (board.folder / "systemd/system").iterdir()
    assert board.log == ["systemctl daemon-reload", f"systemctl enable {unit.name}"]
    line = next(line for line in unit.read_text().splitlines() if line.startswith("ExecStart="))
    # As the manager reads it: quotes and backslashes as in a shell's double quotes, then $$ and %%.
    words = line.partition("-c ")[2].strip("'").replace("\\'", "'").replace("\\\\", "\\")
    shell = words.replace("$$", "$").replace("%%", "%")
    said = subprocess.run(
        ["sh", "-c", shell], env={"HOME": str(board.home)}, capture_output=True, text=True, check=True
    )
    assert said.stderr == ""  # no lease has left anything: nothing is even started
    (board.home / ".testbed-lease").mkdir()
    said = subprocess.run(["sh", "-c", shell], env={"HOME": str(board.home)}, capture_output=True, text=True)
    assert "/opt/it's 100% $own/python" in said.stderr
    for _ in range(2):
        undo = below(list(Keeper().undo(wanted, facts(), change.recorded)), board.folder)
        assert not board.run(undo)[-1].returncode
        assert list((board.folder / "systemd/system").iterdir()) == []
    assert board.log[2:] == [f"systemctl disable {unit.name}", "systemctl daemon-reload"]
