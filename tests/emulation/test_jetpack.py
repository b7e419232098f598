"""The emulated nvpmodel and jetson_clocks, run by a real shell over folders of their own."""

from __future__ import annotations

import subprocess

import pytest

from testbed.boards.kinds import kinds
from testbed.emulation import jetpack, system, tree

BOARDS = {name: kind.at() for name, kind in kinds().items()}
NANO = BOARDS["jetson-orin-nano-8gb"]


@pytest.fixture
def board(tmp_path):
    """Return a function that runs a command on a board in a folder."""
    tree.write_tree(tree.sysfs(NANO, "1"), tmp_path / "sys")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nvpmodel.conf").write_text(jetpack.nvpmodel_conf(NANO))
    (tmp_path / "var/lib/nvpmodel").mkdir(parents=True)
    (tmp_path / "var/lib/nvpmodel/status").write_text(jetpack.nvpmodel_status(NANO))
    (tmp_path / "bin").mkdir()
    for name, text in {"nvpmodel": jetpack.NVPMODEL, "jetson_clocks": jetpack.JETSON_CLOCKS}.items():
        for folder in ("/sys", "/etc", "/var"):
            text = text.replace(f"{folder}/", f"{tmp_path}{folder}/")
        # These tests need no root: whoever runs them plays it, and nothing is rebooted.
        text = text.replace('[ "$(id -u)" = 0 ]', "true").replace("|| reboot", "|| echo rebooting")
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    def run(*argv, text=""):
        return subprocess.run(
            [tmp_path / "bin" / argv[0], *argv[1:]],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HOME": str(tmp_path)},
        )

    run.root = tmp_path
    return run


def test_the_mode_is_kept(board):
    assert board("nvpmodel", "-q").stdout == "NV Power Mode: 15W\n0\n"
    assert board("nvpmodel", "-m", "1").returncode == 0
    assert board("nvpmodel", "-q").stdout == "NV Power Mode: 25W\n1\n"
    assert int((board.root / "sys/class/devfreq/17000000.gpu/max_freq").read_text()) == 918_000_000


def test_a_mode_with_another_mask_asks_for_a_reboot(board):
    for answer in ("", "NO\n"):
        done = board("nvpmodel", "-m", "3", text=answer)
        assert done.returncode != 0
        assert "NVPM WARN" in done.stdout
        assert board("nvpmodel", "-q").stdout.endswith("\n0\n")
    done = board("nvpmodel", "-m", "3", text="YES\n")
    assert done.returncode == 0
    assert "rebooting" in done.stdout
    assert board("nvpmodel", "-q").stdout == "NV Power Mode: 7W\n3\n"


@pytest.mark.parametrize("mode", ["9", "-1", "x", ""])
def test_a_mode_that_is_not_there_is_an_error(board, mode):
    done = board("nvpmodel", "-m", mode)
    assert done.returncode != 0
    assert "NVPM ERROR" in done.stderr
    assert board("nvpmodel", "-q").stdout.endswith("\n0\n")


def test_the_configuration_lists_every_mode_by_number(board):
    shown = board("nvpmodel", "-p", "--verbose").stdout
    for number, mode in enumerate(NANO.modes):
        assert f"POWER_MODEL: ID={number} NAME={mode.name}\n" in shown
    assert "PM_CONFIG: DEFAULT=15W(0)\n" in shown


def test_clocks_are_stored_raised_and_restored(board):
    before = board("jetson_clocks", "--show").stdout
    assert f"Machine:{NANO.model}\n" in before
    assert board("jetson_clocks", "--restore").returncode != 0
    assert board("jetson_clocks", "--store").returncode == 0
    assert board("jetson_clocks").returncode == 0
    raised = board("jetson_clocks", "--show").stdout
    assert "GPU MinFreq=624750000 MaxFreq=624750000 CurrentFreq=624750000\n" in raised
    assert "FreqOverride=1" in raised
    assert board("jetson_clocks", "--restore").returncode == 0
    assert board("jetson_clocks", "--show").stdout == before


@pytest.mark.parametrize("board_kind", BOARDS.values(), ids=BOARDS)
def test_the_release_file_has_the_shape_of_l4ts(board_kind):
    release, revision = system.tegra_release(board_kind).split(", ")[:2]
    number = f"{release.removeprefix('# R').removesuffix(' (release)')}.{revision.removeprefix('REVISION: ')}"
    assert number == board_kind.l4t
