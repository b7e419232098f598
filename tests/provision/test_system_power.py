from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.config.inventory import Host
from testbed.hosts.facts import Facts, Recorded
from testbed.hosts.facts.board import Board as BoardFacts
from testbed.hosts.facts.board import PowerMode, board_of
from testbed.hosts.probes import board as probe
from testbed.provision.aspect import NEEDS_REBOOT, Change
from testbed.provision.aspects.clocks import Clocks
from testbed.provision.aspects.power import Power
from tests.provision.stubs import Board

CONF = """
# A comment: < POWER_MODEL ID=9 NAME=NO >
< PARAM TYPE=FILE NAME=TPC_POWER_GATING >
TPC_PG_MASK /sys/devices/gpu.0/tpc_pg_mask
< POWER_MODEL ID=0 NAME=MAXN >
TPC_POWER_GATING TPC_PG_MASK 0
GPU MAX_FREQ -1   # no cap
< POWER_MODEL ID=3 NAME=15W >
TPC_POWER_GATING TPC_PG_MASK 252
FBP_POWER_GATING FBP_PG_MASK 2
<POWER_MODEL ID=5 NAME=25W>
TPC_POWER_GATING TPC_PG_MASK 0
< PM_CONFIG DEFAULT=3 >
TPC_POWER_GATING TPC_PG_MASK 7
"""
MODES = tuple(PowerMode(mode["id"], mode["name"], mode["gates"]) for mode in probe.power_modes(CONF))

# Asks before it changes the mask, as NVIDIA's does, and only boots where it is told yes.
NVPMODEL = """
now=$(cat $BOARD/mode)
case "$1" in
-q) echo "NVPM WARN: fan mode is not set!"; echo "NV Power Mode: MODE$now"; echo $now ;;
-m)
    echo "$1 $2" >>$BOARD/log
    test "$2" != 9 || { echo "NVPM ERROR: invalid power mode" >&2; exit 255; }
    if [ $(($2 < 3)) != $((now < 3)) ]; then
        echo "NVPM WARN: Reboot required for changing to this power mode: $2"
        echo "NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:"
        read answer
        case "$answer" in YES) echo boot >>$BOARD/log ;; *) exit 1 ;; esac
    fi
    echo $2 >$BOARD/mode ;;
esac
"""
CLOCKS = """
case "${1:-}" in
--store) cp $BOARD/clocks "$2" ;;
--restore) cp "$2" $BOARD/clocks ;;
'') echo locked >$BOARD/clocks ;;
esac
"""


def host(**settings: Any) -> Host:
    return Host.model_validate({"name": "orin", "role": "device", "address": "x", "user": "root"} | settings)


def facts(mode: PowerMode = MODES[0], **board: Any) -> Facts:
    about = {"nvpmodel": True, "modes": MODES, "mode_id": mode.id, "jetson_clocks": True, "locked": False}
    return Facts("orin", power_mode=mode.name, sudo=True, board=BoardFacts(**(about | board)))


def change(wanted: Host, found: Facts, **options: Any) -> Change:
    (only,) = Power(**options).changes(wanted, found)
    return only


@pytest.fixture
def board(tmp_path: Path) -> Board:
    made = Board(tmp_path)
    made.program("nvpmodel", NVPMODEL)
    made.program("jetson_clocks", CLOCKS)
    (tmp_path / "mode").write_text("0\n")
    (tmp_path / "clocks").write_text("by hand\n")
    (made.home / ".testbed").mkdir(parents=True)
    return made


def test_modes_are_read_with_the_masks_that_a_boot_lies_between() -> None:
    assert [(mode.id, mode.name) for mode in MODES] == [(0, "MAXN"), (3, "15W"), (5, "25W")]
    assert MODES[1].gates == {"TPC_PG_MASK": "252", "FBP_PG_MASK": "2"}
    assert MODES[0].gates == MODES[2].gates == {"TPC_PG_MASK": "0"}


NAME = st.text("ABCMWX_019", min_size=1, max_size=9)


@settings(max_examples=20)
@given(
    st.lists(
        st.tuples(st.integers(0, 99), NAME, st.dictionaries(NAME, st.integers(0, 99), max_size=2)), max_size=4
    )
)
def test_every_mode_is_read_as_it_was_written(modes: list[tuple[int, str, dict[str, int]]]) -> None:
    text = "".join(
        f"< POWER_MODEL ID={number} NAME={name} >\nCPU MAX_FREQ 7\n"
        + "".join(f"GATING {key}_PG_MASK {mask}\n" for key, mask in gates.items())
        for number, name, gates in modes
    )
    read = [(mode["id"], mode["name"], mode["gates"]) for mode in probe.power_modes(text)]
    assert read == [(n, name, {f"{k}_PG_MASK": str(v) for k, v in gates.items()}) for n, name, gates in modes]


@given(st.text())
def test_no_text_makes_the_reading_of_modes_fail(text: str) -> None:
    for mode in probe.power_modes(f"< POWER_MODEL ID=1 NAME=A >\n{text}"):
        assert isinstance(mode["id"], int)
    probe.power_mode_in(text)


def test_the_mode_is_found_between_warnings() -> None:
    text = "NVPM WARN: fan mode is not set!\nNV Power Mode: 15W\n3\n"
    assert probe.power_mode_in(text) == {"power_mode": "15W", "mode_id": 3}
    assert probe.power_mode_in("") == {"power_mode": None, "mode_id": None}


@pytest.mark.parametrize(("cpu", "gpu", "locked"), [("9", "7", True), ("1", "7", False), ("9", "2", False)])
def test_locked_clocks_have_no_room_left(cpu: str, gpu: str, locked: bool, tmp_path: Path) -> None:
    files = {
        "devices/system/cpu/cpu0/cpufreq": {"scaling_min_freq": cpu, "scaling_max_freq": "9"},
        "class/devfreq/17000000.gpu": {"min_freq": gpu, "max_freq": "7"},
        # Not the GPU's: no jetson_clocks touches it.
        "class/devfreq/15340000.vic": {"min_freq": "1", "max_freq": "7"},
    }
    for folder, content in files.items():
        (tmp_path / folder).mkdir(parents=True)
        for name, text in content.items():
            (tmp_path / folder / name).write_text(f"{text}\n")
    assert probe.clocks_locked(str(tmp_path)) is locked
    assert probe.clocks_locked(str(tmp_path / "nothing")) is None


def test_a_mode_is_set_by_its_name_and_given_back(board: Board) -> None:
    wanted = host(power_mode="25w")
    planned = change(wanted, facts())
    assert (planned.before, planned.after, planned.reboots) == ("MAXN", "25W", False)
    (board.folder / "mode").write_text("3\n")  # numbers of this stub: no boot between 3 and 5
    assert [done.returncode for done in board.run(planned.steps)] == [0, 0]
    assert board.log == ["-m 5"]
    recorded = planned.recorded | {"id": 3}
    (board.folder / "clocks").write_text("of the other mode\n")
    for _ in range(2):  # undone twice is undone once
        assert all(not done.returncode for done in board.run(Power().undo(wanted, facts(), recorded)))
        assert (board.folder / "mode").read_text() == "3\n"
        assert (board.folder / "clocks").read_text() == "by hand\n"
    assert list((board.home / ".testbed").iterdir()) == []
    assert board.log == ["-m 5", "-m 3"]


def test_undoing_what_never_began_does_nothing(board: Board) -> None:
    planned = change(host(power_mode="25W"), facts())
    assert all(not done.returncode for done in board.run(Power().undo(host(), facts(), planned.recorded)))
    assert board.log == []
    assert (board.folder / "clocks").read_text() == "by hand\n"


def test_an_unforeseen_question_is_answered_no_and_remembered(board: Board) -> None:
    planned = change(host(power_mode="25W"), facts())
    assert not planned.reboots
    assert all(not done.returncode for done in board.run(planned.steps))
    assert (board.folder / "mode").read_text() == "0\n"
    assert board.log == ["-m 5"]
    boot, mode = (board.home / ".testbed/power.reboot").read_text().split()
    assert (boot, mode) == (Path("/proc/sys/kernel/random/boot_id").read_text().strip(), "25W")
    again = change(host(power_mode="25W"), facts(needs_reboot=mode))
    assert again.reboots


def test_a_boot_is_agreed_to_only_where_masks_differ(board: Board) -> None:
    planned = change(host(power_mode="15W"), facts(), reboot=True)
    assert planned.reboots
    assert planned.title == "power mode 15W"
    assert all(not done.returncode for done in board.run(planned.steps))
    assert board.log == ["-m 3", "boot"]
    # Going back needs one too: without leave, nothing is changed, and it says so.
    back = board.run(Power().undo(host(), facts(MODES[1]), planned.recorded))
    assert (back[-1].returncode, board.log[2:]) == (NEEDS_REBOOT, ["-m 0"])
    assert back[-1].stderr == "it needs a reboot\n"
    steps = list(Power(reboot=True).undo(host(), facts(MODES[1]), planned.recorded))
    assert [getattr(step, "reboots", None) for step in steps] == [True, False, False]
    assert all(not done.returncode for done in board.run(steps))
    assert (board.folder / "mode").read_text() == "0\n"


def test_undoing_several_modes_foresees_each_boot_on_the_way_back(board: Board) -> None:
    # From MAXN (0) over 15W (3), whose masks are others, to 25W (5), whose masks are those of MAXN.
    ways = [{"id": 0, "mode": "MAXN", "clocks": None}, {"id": 3, "mode": "15W", "clocks": None}]
    now = replace(facts(MODES[2]), record=tuple(Recorded("power", way) for way in ways))
    assert MODES[0].gates == MODES[2].gates != MODES[1].gates
    for way in reversed(ways):
        assert [getattr(step, "reboots", None) for step in Power(reboot=True).undo(host(), now, way)] == [
            True,
            False,
        ]


def test_a_mode_that_nvpmodel_refuses_fails_with_its_words(board: Board) -> None:
    odd = (*MODES, PowerMode(9, "ODD", MODES[0].gates))
    done = board.run(change(host(power_mode="ODD"), facts(modes=odd)).steps)
    assert done[-1].returncode == 255
    assert "invalid power mode" in done[-1].stderr


@pytest.mark.parametrize(
    ("wanted", "found", "level", "text"),
    [
        ("40W", {}, "failure", "it has no power mode 40W"),
        ("15W", {"modes": ()}, "failure", "its modes are unknown"),
        ("15W", {"nvpmodel": False, "modes": ()}, "failure", "there is no nvpmodel"),
        ("15W", {}, "warning", "its power mode is MAXN instead of 15W"),
    ],
)
def test_a_mode_that_is_not_set_is_told(wanted: str, found: dict[str, Any], level: str, text: str) -> None:
    (finding,) = Power().findings(host(power_mode=wanted), facts(**found), ())
    assert (finding.level, text in finding.text, bool(finding.hint)) == (level, True, True)


def test_the_modes_that_there_are_are_the_remedy() -> None:
    (finding,) = Power().findings(host(power_mode="40W"), facts(), ())
    assert finding.hint == "`power_mode` in the inventory: one of MAXN, 15W, 25W"


@pytest.mark.parametrize("name", ["MAXN", "maxn", None])
def test_the_right_mode_is_left_alone(name: str | None) -> None:
    wanted = host(power_mode=name)
    assert list(Power().changes(wanted, facts())) == list(Power().findings(wanted, facts(), ())) == []


def test_clocks_are_stored_locked_and_given_back(board: Board) -> None:
    wanted = host(jetson_clocks=True)
    (planned,) = Clocks().changes(wanted, facts())
    assert all(not done.returncode for done in board.run(planned.steps))
    assert (board.folder / "clocks").read_text() == "locked\n"
    # What is stored stays what there was first, however often an attempt was cut off.
    assert all(not done.returncode for done in board.run(planned.steps))
    for _ in range(2):
        assert all(
            not done.returncode for done in board.run(Clocks().undo(wanted, facts(), planned.recorded))
        )
        assert (board.folder / "clocks").read_text() == "by hand\n"


def test_clocks_are_locked_again_in_another_mode_and_not_before_a_boot() -> None:
    both = host(jetson_clocks=True, power_mode="25W")
    assert len(list(Clocks().changes(both, facts(locked=True)))) == 1
    assert list(Clocks().changes(host(jetson_clocks=True), facts(locked=True))) == []
    assert list(Clocks().changes(host(jetson_clocks=True, power_mode="15W"), facts())) == []
    assert list(Clocks().changes(host(), facts())) == []


def test_a_board_without_jetson_clocks_says_so() -> None:
    (finding,) = Clocks().findings(host(jetson_clocks=True), facts(jetson_clocks=False), ())
    assert finding.level == "failure"
    (finding,) = Clocks().findings(host(jetson_clocks=True), facts(), ())
    assert finding.level == "warning"


def test_what_the_probe_says_becomes_facts() -> None:
    raw = {
        "modes": probe.power_modes(CONF),
        "mode_id": 3,
        "nvpmodel": True,
        "locked": None,
        "power_mode": "15W",
    }
    read = board_of(raw)
    assert read.modes == MODES
    assert read.mode("15w") == read.by_id(3) == MODES[1]
    assert board_of({}) == BoardFacts()
