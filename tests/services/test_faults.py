"""What holds when something is killed at the worst moment."""

from __future__ import annotations

import json
import os
import signal

import pytest

READY = "touch $TESTBED_READY; exec sleep 1000"


def _end(holder) -> dict:
    return json.loads(holder.stdout.readlines()[-1])


def test_the_lease_ends_with_its_input(board, gone):
    holder = board.hold()
    board.start("a", READY)
    board.start("b", READY)
    pids = [board.pid("a"), board.pid("b")]
    holder.stdin.close()
    assert holder.wait(30) == 0
    said = {"held": False, "reason": "end of input", "stopped": ["a", "b"], "restored": [], "problems": []}
    assert _end(holder) == said
    assert all(gone(pid) for pid in pids)
    assert "the lease ended" in board.service("a")["reason"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_lease_ends_with_a_signal(host, gone, number):
    holder = host.hold()
    host.start("a", READY)
    pid = host.pid("a")
    holder.send_signal(number)
    assert holder.wait(30) == 0
    assert _end(holder)["reason"] == number.name
    assert gone(pid)


def test_the_lease_ends_when_the_controller_falls_silent(board, gone):
    board.start("a", READY)
    pid = board.pid("a")
    holder = board.hold("--ttl", "1")
    assert holder.wait(30) == 0
    assert "no sign of the controller for 1 s" in _end(holder)["reason"]
    assert gone(pid)


def test_the_lease_lasts_while_bytes_come(host, eventually):
    host.start("a", READY)
    holder = host.hold("--ttl", "3")
    begun = json.loads((host.home / "services/lease.json").read_text())["until_ns"]

    def feed() -> bool:
        holder.stdin.write(".")
        holder.stdin.flush()
        return json.loads((host.home / "services/lease.json").read_text())["until_ns"] > begun + 4_000_000_000

    eventually(feed)
    assert host.state("a") == "running"
    holder.stdin.close()
    assert holder.wait(30) == 0


def test_services_end_when_the_holder_is_killed(board, gone, eventually, kill9):
    board.start("a", READY)
    pid, supervisor = board.pid("a"), board.supervisor()
    holder = board.hold("--ttl", "3")
    kill9(holder.pid)
    eventually(lambda: gone(pid) and gone(supervisor))
    assert board.service("a")["reason"] == "the lease ended"


def test_services_that_nobody_comes_to_hold_end_too(host, gone, eventually):
    host.start("a", READY, "--initial-lease", "1")
    pid = host.pid("a")
    eventually(lambda: gone(pid))


def test_a_killed_supervisor_takes_its_services_along(board, gone, eventually, kill9):
    board.start("a", READY)
    pid = board.pid("a")
    kill9(board.supervisor())
    eventually(lambda: gone(pid))
    assert board.service("a")["state"] == "lost"
    assert board.start("a", READY).returncode == 0
    assert board.service("a")["state"] == "running"


def test_the_holder_cleans_up_after_a_killed_supervisor(board, gone, kill9):
    holder = board.hold()
    deaf = "trap '' TERM; touch $TESTBED_READY; while :; do sleep 0.2; done"
    board.start("deaf", deaf)
    board.start("nest", "setsid sleep 1000 & echo $! >$TESTBED_HOME/inner; " + READY)
    left = [board.pid("deaf"), board.pid("nest"), int((board.home / "inner").read_text())]
    supervisor = board.supervisor()
    kill9(supervisor)
    assert holder.wait(60) == 1
    end = _end(holder)
    assert end["reason"] == f"lost: the supervisor (process {supervisor}) was killed"
    assert end["stopped"] == ["deaf", "nest"]
    assert all(gone(pid) for pid in left)
    assert board.service("deaf")["state"] == "stopped"


def test_stop_cleans_up_after_everything_was_killed(host, gone, kill9):
    holder = host.hold()
    host.start("nest", "setsid sleep 1000 & echo $! >$TESTBED_HOME/inner; " + READY)
    inner = int((host.home / "inner").read_text())
    kill9(holder.pid)
    kill9(host.supervisor())
    assert host.run("stop", "--all").returncode == 0
    assert gone(inner)


def test_a_new_holder_cleans_up_after_everything_was_killed(host, gone, kill9):
    host.start("nest", "setsid sleep 1000 & echo $! >$TESTBED_HOME/inner; " + READY)
    inner = int((host.home / "inner").read_text())
    kill9(host.supervisor())
    holder = host.hold()
    assert gone(inner)
    assert host.start("nest", READY).returncode == 0
    holder.stdin.close()
    assert holder.wait(30) == 0


def test_a_supervisor_that_hangs_is_killed(host, gone):
    host.start("a", READY)
    pid, supervisor = host.pid("a"), host.supervisor()
    os.kill(supervisor, signal.SIGSTOP)
    done = host.run("stop", "--all")
    assert done.returncode == 0
    assert "the supervisor does not answer" in done.stderr
    assert gone(pid)
    assert gone(supervisor)


def test_a_killed_service_is_started_again_where_that_was_asked(board, eventually, kill9):
    board.start("again", READY, "--restart")
    board.start("once", READY)
    first = board.pid("again")
    kill9(first)
    kill9(board.pid("once"))
    eventually(lambda: board.service("again")["restarts"] == 1 and board.service("again")["ready"])
    assert board.pid("again") != first
    assert board.service("once")["state"] == "failed"
    assert "killed by signal 9" in board.service("once")["reason"]
    assert "killed by signal 9" in board.run("logs", "again").stdout


def test_one_that_ends_well_is_not_started_again(host, eventually):
    host.start("a", "touch $TESTBED_READY; exec sleep 0.3", "--restart")
    eventually(lambda: host.state("a") == "exited")
