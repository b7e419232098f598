"""However a lab ends, nothing of it is left."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from testbed.emulation import cgroups, cleanup
from testbed.emulation import lab as lab_module
from testbed.errors import TestbedError
from tests.emulated.conftest import REPOSITORY

pytestmark = pytest.mark.emulated

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
#: `testbed emulate up` that has not got the lab from its keeper yet, however late this test is with what it does next.
UP = """
import time
from testbed.cli.main import run
from testbed.emulation import lab
up = lab.up
lab.up = lambda spec, tell: up(spec, lambda event: time.sleep(3600 if event["event"] == "ready" else 0))
run()
"""


@contextlib.contextmanager
def going_up(lab):
    """Run `testbed emulate up` for as long as the body takes, and end it if it still runs then."""
    line = [sys.executable, "-c", UP, "emulate", "up", "--inventory", str(lab.inventory)]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, cwd=REPOSITORY) as command:
        try:
            yield command
        finally:
            command.kill()


def namespaces_of(pid: int | str) -> set[str]:
    with contextlib.suppress(OSError):
        return {str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for kind in NAMESPACES}
    return set()


class Traces:
    """What a running lab has on this machine, to look for afterwards."""

    def __init__(self, lab):
        state = lab.state()
        self.lab = lab
        self.groups = [Path(path) for path in state["groups"]]
        members = {pid for group in self.groups for pid in cgroups.processes_in(group)}
        found = {pid: cleanup.start_ticks(pid) for pid in {state["pid"], *members}}
        # One that was just ending when it was listed is no trace of anything.
        self.processes = {pid: ticks for pid, ticks in found.items() if ticks is not None}
        self.namespaces = set().union(*(namespaces_of(pid) for pid in self.processes)) - namespaces_of("self")
        self.before = time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")
        assert len(self.processes) >= 4
        assert len(self.namespaces) >= 2 * len(NAMESPACES)
        assert all(group.is_dir() for group in self.groups)

    def left(self) -> list[str]:
        found = [
            f"process {pid}" for pid, ticks in self.processes.items() if cleanup.start_ticks(pid) == ticks
        ]
        found += [f"control group {group}" for group in self.groups if group.exists()]
        found += [str(self.lab.spec.files.root)] if self.lab.spec.files.root.exists() else []
        for entry in Path("/proc").iterdir():
            # The number of a namespace that is gone may be given to a new one, of a younger process.
            if entry.name.isdecimal() and (cleanup.start_ticks(int(entry.name)) or 1e18) < self.before:
                found += [f"{name} of {entry.name}" for name in namespaces_of(entry.name) & self.namespaces]
        found += [
            line for line in Path("/proc/self/mountinfo").read_text().splitlines() if self.lab.name in line
        ]
        links = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
        return found + [line for line in links.splitlines() if "v0-bs" in line or "v1-nano" in line]


def test_down_leaves_nothing_and_says_what_it_removed(small_lab):
    lab = small_lab()
    lab.cli("up")
    traces = Traces(lab)
    removed = json.loads(lab.cli("down", "--json").stdout)["removed"]
    assert traces.left() == []
    assert removed["hosts"] == ["bs", "nano"]
    assert removed["processes"] >= 6
    assert removed["control_groups"] >= 3


def test_down_ends_even_what_still_uses_the_labs_network(small_lab):
    lab = small_lab()
    lab.cli("up")
    with subprocess.Popen(lab.command("nano", "sleep", "1000"), stdout=subprocess.DEVNULL) as client:
        while "sleep 1000" not in lab.run("nano", "ps", "-e", "-o", "args=").stdout:
            assert client.poll() is None
        traces = Traces(lab)
        lab.cli("down")
        assert traces.left() == []
        assert client.wait(timeout=120) == 255


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_end_of_the_keeper_is_the_end_of_the_lab(small_lab, wait_for, number):
    lab = small_lab()
    lab.cli("up")
    traces = Traces(lab)
    os.kill(lab.state()["pid"], number)
    wait_for(lambda: traces.left() == [])
    assert json.loads(lab.cli("status", "--json", check=False).stdout)["state"] == "down"


@pytest.mark.parametrize("moment", ["keeper.log", "net", "bs.console", "nano.console"])
def test_an_up_that_is_killed_half_way_leaves_nothing(small_lab, wait_for, moment):
    lab = small_lab()
    with going_up(lab):
        wait_for((lab.spec.files.root / moment).exists)
    wait_for(lambda: not lab.spec.files.root.exists())
    layout = cgroups.find_layout()
    assert [group for group in cgroups.lab_folders(layout, lab.name) if group.exists()] == []
    shown = subprocess.run(
        ["ps", "-e", "-o", "stat=,args="], capture_output=True, text=True, check=True
    ).stdout
    assert [line for line in shown.splitlines() if lab.name in line and not line.startswith("Z")] == []
    lab.cli("up")
    lab.cli("down")


def test_ctrl_c_ends_a_lab_that_is_not_up_yet(small_lab, wait_for):
    lab = small_lab()
    with going_up(lab) as command:
        wait_for(lab.spec.files.net.is_symlink)
        command.send_signal(signal.SIGINT)
        assert command.wait(timeout=120) == 130
    assert not lab.spec.files.root.exists()


def test_what_a_dead_keeper_and_a_dead_reaper_left_is_cleaned(small_lab):
    lab = small_lab()
    lab.cli("up")
    traces = Traces(lab)
    keeper = lab.state()["pid"]
    reaper = int(Path(f"/proc/{keeper}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(reaper, signal.SIGKILL)
    os.kill(keeper, signal.SIGKILL)
    while cleanup.start_ticks(keeper) is not None:
        time.sleep(0.02)
    assert json.loads(lab.cli("status", "--json", check=False).stdout)["state"] == "stale"
    lab.cli("up")
    assert json.loads(lab.cli("status", "--json").stdout)["state"] == "up"
    lab.cli("down")
    assert traces.left() == []


def test_two_labs_do_not_know_of_each_other(small_lab):
    one, other = small_lab(), small_lab()
    one.cli("up")
    other.cli("up")
    one.run("nano", "sh", "-c", "echo one > /root/name")
    assert other.run("nano", "test", "-e", "/root/name", check=False).returncode == 1
    done = one.run("bs", "nc", "-z", "-w", "1", other.spec.hosts[1].address, "22", check=False)
    assert done.returncode != 0
    one.cli("down")
    assert other.run("nano", "hostname").stdout == "nano\n"
    other.cli("down")


def test_up_twice_says_so_and_another_inventory_is_refused(small_lab):
    lab = small_lab()
    assert "is up: bs, nano" in lab.cli("up").stdout
    assert "is up already" in lab.cli("up").stdout
    lab.inventory.write_text(lab.inventory.read_text().replace("memory_mib: 256", "memory_mib: 300"))
    done = lab.cli("up", check=False)
    assert done.returncode == 3
    assert "testbed emulate down" in done.stderr


def test_a_lab_that_cannot_start_says_why_and_leaves_nothing(small_lab):
    lab = small_lab()
    with pytest.raises(TestbedError, match=r"bs: .*/no/python"):
        lab_module.up(dataclasses.replace(lab.spec, interpreter="/no/python"))
    assert not lab.spec.files.root.exists()
