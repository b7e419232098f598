"""Boards as data: what every kind's file must say, and the line of every mistake."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.boardlog.rails import total_rule
from testbed.boards.kinds import (
    KINDS_FOLDER,
    RefusedKind,
    board,
    dense_ops_per_s,
    kind,
    kind_names,
    kinds,
    memory_bandwidth_bytes_per_s,
    read_kind,
    refusal,
)
from testbed.boards.model import board_from_json
from testbed.boards.releases import RELEASES_FILE, jetpack_of, read_releases, release_of, releases
from testbed.errors import InputError

every_kind = pytest.mark.parametrize("found", kinds().values(), ids=kinds())
NANO = KINDS_FOLDER / "jetson-orin-nano-8gb.yaml"


@every_kind
def test_every_kind_has_a_board_for_each_of_its_releases(found):
    for major in found.l4t.majors:
        made = found.at(f"{major}.2.0")
        assert release_of(made.l4t).major == major
        assert made.jetpack
        assert made.mode(made.start_mode) in made.modes
        assert board_from_json(json.loads(json.dumps(asdict(made)))) == made


@every_kind
def test_the_total_rule_is_the_one_that_the_boards_own_logger_comes_to(found):
    made = found.at()
    rule = total_rule([rail.label for rail in made.live_rails]).rule
    assert sorted(rule.split("+")) == sorted(made.total_rule.split("+"))


@every_kind
def test_a_kind_runs_only_what_device_code_supports(found):
    for major in found.l4t.majors:
        assert tuple(map(int, releases()[major].python.split("."))) >= (3, 8)


def test_no_two_kinds_have_the_same_module():
    modules = [name for found in map(kind, kind_names()) for name in found.device_tree.compatible[:1]]
    assert len(set(modules)) == len(kind_names())


def test_the_same_mode_has_another_number_on_another_board():
    nano, nx = board("jetson-orin-nano-8gb"), board("jetson-orin-nx-16gb")
    numbers = [{mode.name: mode.id for mode in made.modes}["MAXN_SUPER"] for made in (nano, nx)]
    assert numbers == [2, 0]


def test_super_modes_come_with_the_release_that_has_them():
    found = kinds()["jetson-orin-nano-8gb"]
    assert "MAXN_SUPER" not in {mode.name for mode in found.at("36.4.0").modes}
    assert not found.at("36.4").model.endswith("Super")
    assert found.at("36.4.3").compatible[0].endswith("-super")
    assert "MAXN_SUPER" in {mode.name for mode in found.at("39.1").modes}


def test_a_refused_kind_says_why():
    nano = kind("jetson-nano-4gb")
    assert isinstance(nano, RefusedKind)
    assert "Python is 3.6" in nano.refused
    assert nano.name not in kinds()
    assert nano.refused in refusal(nano.name)
    assert [name for name in (*kinds(), "some-board", "") if refusal(name)] == []
    with pytest.raises(KeyError):
        board(nano.name)


def test_what_is_unknown_takes_part_with_the_share_of_a_small_board():
    assert kind("some-board") is None
    assert (
        0 < memory_bandwidth_bytes_per_s("some-board") < memory_bandwidth_bytes_per_s("jetson-orin-nano-8gb")
    )
    assert dense_ops_per_s(None) == dense_ops_per_s("jetson-nano-4gb")


@pytest.mark.parametrize(
    ("old", "new", "at", "expected"),
    [
        ("rails: [VDD_IN]", "rails: [VDD_INN]", "VDD_INN", "total.rails[0]: one of the `rails` was expected"),
        ("default: 15W", "default: 16W", "16W", "power_modes[0].default: the name of one of the `modes`"),
        ("{id: 1, name: 7W", "{id: 0, name: 7W", "0, name: 7W", "modes[1].id: another mode has it already"),
        ("cpus: 6, cpu_mhz: 1510", "cpus: 7, cpu_mhz: 1510", "cpus: 7", "at most 6 cores"),
        ("channel: 2", "channel: 1", "VDD_CPU_GPU_CV", "this channel of the chip is there already (line "),
        ('default: "36.4.3"', 'default: "38.2"', "38.2", "l4t.default: a release of one of the `majors`"),
        ("memory_mib: 7620 ", "memory_mib: much ", "much", "an integer of at least 1 was expected"),
        ("memory_clock_hz", "memory_clok_hz", "clok", "did you mean `memory_clock_hz`?"),
        ("name: jetson-orin-nano-8gb", "name: jetson-orin-nano-9gb", "9gb", "name: the file's own name"),
        (
            ' 15W\n    since: "36.4.3"',
            " 7W",
            "default: 7W",
            "power_modes[1].since: the first release that has",
        ),
    ],
)
def test_each_mistake_is_named_with_its_line(tmp_path, old, new, at, expected):
    text = NANO.read_text()
    assert old in text
    path = tmp_path / NANO.name
    path.write_text(text.replace(old, new, 1))
    line = next(number for number, line in enumerate(path.read_text().splitlines(), 1) if at in line)
    with pytest.raises(InputError) as caught:
        read_kind(path)
    said = "\n".join([str(caught.value), *caught.value.problems])
    assert f"{path}:{line}: " in said
    assert expected in said


def test_a_mistake_in_the_releases_is_named_with_its_line(tmp_path):
    path = tmp_path / "releases.yaml"
    shutil.copy(RELEASES_FILE, path)
    path.write_text(path.read_text().replace('python: "3.10"', "python: 3.10"))
    with pytest.raises(InputError, match=r"releases\.yaml:\d+: 36\.python: a version in quotes"):
        read_releases(path)


@given(st.sampled_from(sorted(releases())), st.integers(0, 20), st.integers(0, 20))
def test_every_exact_release_has_a_jetpack_of_its_major_release(major, minor, patch):
    found = jetpack_of(f"{major}.{minor}.{patch}")
    assert found is not None
    assert found.partition(".")[0] == releases()[major].jetpack


def test_an_unknown_release_has_no_jetpack():
    assert jetpack_of("99.1") is None
    assert jetpack_of("x") is None
    assert jetpack_of(None) is None
