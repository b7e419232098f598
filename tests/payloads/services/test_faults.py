"""What holds when something is killed at the worst moment."""

from __future__ import annotations

import json
import os
import signal

import pytest

READY = "touch $TESTBED_READY; exec sleep 1000"


def _end(holder) -> dict:
    return json.loads(holder.stdout.readlines()[-1])


def test_the_lease_ends_with_its_input(host, gone):
    holder = host.hold()
    host.start("a", READY)
    host.start("b", READY)
    pids = [host.pid("a"), host.pid("b")]
    holder.stdin.close()
    assert holder.wait(30) == 0
    said = {"held": False, "reason": "end of input", "stopped": ["a", "b"], "restored": [], "problems": []}
    assert _end(holder) == said
    assert all(gone(pid) for pid in pids)
    assert "the lease ended" in host.service("a")["reason"]


@pytest.mark.unhurried
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_lease_ends_with_a_signal(host, gone, number):
    holder = host.hold()
    host.start("a", READY)
    pid = host.pid("a")
    holder.send_signal(number)
    assert holder.wait(30) == 0
    assert _end(holder)["reason"] == number.name
    assert gone(pid)


@pytest.mark.unhurried
def test_the_lease_ends_when_the_controller_falls_silent(host, gone):
    host.start("a", READY)
    pid = host.pid("a")
    holder = host.hold("--ttl", "1")
    assert holder.wait(30) == 0
    assert "no sign of the controller for 1 s" in _end(holder)["reason"]
    assert gone(pid)


@pytest.mark.unhurried
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


@pytest.mark.unhurried
def test_services_end_when_the_holder_is_killed(host, gone, eventually, kill9):
    host.start("a", READY)
    pid, supervisor = host.pid("a"), host.supervisor()
    holder = host.hold("--ttl", "3")
    kill9(holder.pid)
    eventually(lambda: gone(pid) and gone(supervisor))
    assert host.service("a")["reason"] == "the lease ended"


@pytest.mark.unhurried
def test_services_that_nobody_comes_to_hold_end_too(host, gone, eventually):
    # Its own word, which stays: on a busy machine it may have ended before the start is answered.
    host.start("a", f"echo $$ >$TESTBED_HOME/shell; {READY}", "--initial-lease", "1")
    pid = int((host.home / "shell").read_text())
    eventually(lambda: gone(pid))


def test_a_killed_supervisor_takes_its_services_along(host, gone, eventually, kill9):
    host.start("a", READY)
    pid = host.pid("a")
    kill9(host.supervisor())
    eventually(lambda: gone(pid))
    assert host.service("a")["state"] == "lost"
    assert host.start("a", READY).returncode == 0
    assert host.service("a")["state"] == "running"


@pytest.mark.unhurried
def test_the_holder_cleans_up_after_a_killed_supervisor(host, gone, kill9):
    holder = host.hold()
    deaf = "trap '' TERM; touch $TESTBED_READY; while :; do sleep 0.2; done"
    host.start("deaf", deaf)
    host.start("nest", "setsid sleep 1000 & echo $! >$TESTBED_HOME/inner; " + READY)
    left = [host.pid("deaf"), host.pid("nest"), int((host.home / "inner").read_text())]
    supervisor = host.supervisor()
    kill9(supervisor)
    assert holder.wait(60) == 1
    end = _end(holder)
    assert end["reason"] == f"lost: the supervisor (process {supervisor}) was killed"
    assert end["stopped"] == ["deaf", "nest"]
    assert all(gone(pid) for pid in left)
    assert host.service("deaf")["state"] == "stopped"


@pytest.mark.unhurried
def test_stop_cleans_up_after_everything_was_killed(host, gone, kill9):
    holder = host.hold()
    host.start("nest", "setsid sleep 1000 & echo $! >$TESTBED_HOME/inner; " + READY)
    inner = int((host.home / "inner").read_text())
    kill9(holder.pid)
    kill9(host.supervisor())
    assert host.run("stop", "--all").returncode == 0
    assert gone(inner)


@pytest.mark.unhurried
def test_a_new_holder_cleans_up_after_everything_was_killed(host, gone, kill9):
    host.start("nest", "setsid sleep 1000 & echo $! >$TESTBED_HOME/inner; " + READY)
    inner = int((host.home / "inner").read_text())
    kill9(host.supervisor())
    holder = host.hold()
    assert gone(inner)
    assert host.start("nest", READY).returncode == 0
    holder.stdin.close()
    assert holder.wait(30) == 0


@pytest.mark.unhurried
def test_a_supervisor_that_hangs_is_killed(host, gone):
    host.start("a", READY)
    pid, supervisor = host.pid("a"), host.supervisor()
    os.kill(supervisor, signal.SIGSTOP)
    done = host.run("stop", "--all")
    assert done.returncode == 0
    assert "the supervisor does not answer" in done.stderr
    assert gone(pid)
    assert gone(supervisor)


@pytest.mark.unhurried
def test_a_killed_service_is_started_again_where_that_was_asked(host, eventually, kill9):
    host.start("again", READY, "--restart")
    host.start("once", READY)
    first = host.pid("again")
    kill9(first)
    kill9(host.pid("once"))
    eventually(lambda: host.service("again")["restarts"] == 1 and host.service("again")["ready"])
    assert host.pid("again") != first
    assert host.service("once")["state"] == "failed"
    assert "killed by signal 9" in host.service("once")["reason"]
    assert "killed by signal 9" in host.run("logs", "again").stdout


@pytest.mark.unhurried
def test_one_that_ends_well_is_not_started_again(host, eventually):
    host.start("a", "touch $TESTBED_READY; exec sleep 0.3", "--restart")
    eventually(lambda: host.state("a") == "exited")
