"""The synthetic files of a board: /sys, /proc/stat and /proc/meminfo."""

from __future__ import annotations

import itertools

import pytest

from payloads.boardlog.rails import find_rails, total_rule
from testbed.boards.kinds import kinds
from testbed.boards.model import RailPower
from testbed.emulation import tree
from testbed.emulation.board_simulator import LiveFile
from testbed.emulation.power import LoadStep, energy_mj
from testbed.emulation.procfiles import meminfo, stat_file

BOARDS = {name: kind.at() for name, kind in kinds().items()}
boards = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)


@boards
def test_the_boards_own_readers_find_its_rails_and_the_rule_of_its_total(board, tmp_path):
    tree.write_tree(tree.sysfs(board, "1"), tmp_path)
    rails = find_rails(tmp_path)
    assert {rail.name for rail in rails} == {rail.label for rail in board.live_rails}
    rule = total_rule([rail.name for rail in rails]).rule
    assert sorted(rule.split("+")) == sorted(board.total_rule.split("+"))


@boards
def test_every_live_file_is_in_the_tree(board):
    files = tree.sysfs(board, "1").files
    live = [tree.current_path(board, rail) for rail in board.live_rails]
    live += [tree.gpu_load_path(board), tree.emc_activity_path()]
    live += [tree.temperature_path(zone) for zone in range(len(board.zones))]
    assert set(live) <= set(files)
    assert len(set(live)) == len(live)


@boards
def test_every_link_leads_somewhere(board, tmp_path):
    tree.write_tree(tree.sysfs(board, "1"), tmp_path)
    for link in tree.sysfs(board, "1").links:
        assert (tmp_path / link).exists(), link


@boards
def test_each_monitor_shows_one_hwmon_folder_and_the_traps_of_a_real_one(board, tmp_path):
    tree.write_tree(tree.sysfs(board, "1"), tmp_path)
    for chip in (tmp_path / "bus/i2c/devices").iterdir():
        (folder,) = (chip / "hwmon").iterdir()
        if (folder / "name").read_text() == "ina238\n":
            assert (folder / "label").read_text() == "VIN\n"
            continue
        assert (folder / "in7_label").read_text() == "sum of shunt voltages\n"


def test_serial_numbers_differ_and_stay():
    numbers = {tree.serial_number(lab, host) for lab, host in itertools.product("ab", "cd")}
    assert len(numbers) == 4
    assert tree.serial_number("a", "c") in numbers
    assert all(len(number) == 13 and number.isdecimal() for number in numbers)


@boards
def test_the_total_is_the_sum_of_its_rails(board):
    steps = [LoadStep(2, 0.7)]
    parts = [rail.power for rail in board.rails if rail.in_total]
    total = energy_mj(board.total, steps, level=0, tau_s=board.tau_s)
    assert total == pytest.approx(sum(energy_mj(part, steps, level=0, tau_s=board.tau_s) for part in parts))
    assert isinstance(board.total, RailPower)


def test_a_live_file_is_never_shorter_than_before_and_never_empty(tmp_path):
    path = tmp_path / "curr1_input"
    path.write_text("100\n")
    live = LiveFile(path)
    for value in (b"99\n", b"12345\n", b"7\n"):
        live.write(value)
        assert int(path.read_text()) == int(value)
        assert path.read_bytes().startswith(value)
    live.close()


def test_proc_stat_counts_the_boards_own_cpus():
    lines = stat_file(6, 2_000_000_000, 3_000_000_000).decode().splitlines()
    assert [line.split()[0] for line in lines[:7]] == ["cpu", *(f"cpu{number}" for number in range(6))]
    user, _, _, idle = map(int, lines[1].split()[1:5])
    assert (user, idle) == (50, 150)
    assert any(line.startswith("btime ") for line in lines)


def test_the_proc_files_keep_their_length():
    assert len(stat_file(6, 0, 0)) == len(stat_file(6, 10**15, 10**14))
    assert len(meminfo(8_000_000, 0)) == len(meminfo(8_000_000, 7_999_999))
    values = dict(line.split(":") for line in meminfo(8_000_000, 1_000_000).decode().splitlines())
    assert values["MemTotal"].split() == ["8000000", "kB"]
    assert values["MemAvailable"].split() == ["7000000", "kB"]
