from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

READY = "touch $TESTBED_READY; exec sleep 1000"


def test_a_service_is_started_once_described_and_stopped(host, gone):
    started = host.start("worker", f"echo serving; {READY}")
    assert (started.returncode, started.stdout) == (0, "worker: started\n")
    pid = host.pid("worker")

    again = host.start("worker", f"echo serving; {READY}")
    assert (again.returncode, again.stdout) == (0, "worker: already running\n")
    assert host.pid("worker") == pid

    shown = host.service("worker")
    assert (shown["state"], shown["ready"], shown["pid"]) == ("running", True, pid)
    assert "serving" in host.run("logs", "worker").stdout

    assert host.run("stop", "worker").stdout == "worker: stopped\n"
    assert gone(pid)
    assert host.run("stop", "worker").stdout == "worker: was not running\n"
    assert host.service("worker")["state"] == "stopped"


@pytest.mark.unhurried
def test_another_command_line_replaces_the_service(host, gone):
    host.start("worker", f"echo one; {READY}")
    first = host.pid("worker")
    assert host.start("worker", f"echo two; {READY}").stdout == "worker: restarted\n"
    assert gone(first)
    assert host.pid("worker") != first
    assert host.run("logs", "worker").stdout.rstrip().endswith("two")


@pytest.mark.unhurried
def test_restart_keeps_the_command_line(host):
    host.start("worker", f"echo once more; {READY}")
    first = host.pid("worker")
    assert host.run("restart", "worker").returncode == 0
    assert host.pid("worker") != first
    assert host.run("logs", "worker").stdout.count("once more") == 2


def test_a_start_that_fails_shows_the_last_words(host):
    failed = host.start("worker", "echo the shard is missing >&2; exit 3", "--restart")
    assert failed.returncode == 1
    assert failed.stderr == "worker: exited with status 3 before it was ready: the shard is missing\n"
    assert host.service("worker")["state"] == "failed"


@pytest.mark.unhurried
def test_what_a_start_fails_with_ends_with_one_line_that_says_it_all(host):
    failed = host.start("worker", "echo loading; echo the port is taken; echo; exit 3")
    assert failed.stderr.splitlines() == [
        "the last words of worker:",
        "loading",
        "the port is taken",
        "",
        "worker: exited with status 3 before it was ready: the port is taken",
    ]
    silent = host.start("quiet", "exit 4")
    assert silent.stderr == "quiet: exited with status 4 before it was ready; it wrote nothing\n"


@pytest.mark.unhurried
def test_a_service_that_ends_right_after_its_start_says_its_last_line(host, eventually):
    host.start("worker", "touch $TESTBED_READY; echo no more memory; exit 3")
    eventually(lambda: host.state("worker") == "failed")
    shown = host.service("worker")
    assert (shown["state"], shown["last_line"]) == ("failed", "no more memory")
    assert shown["reason"] == shown["last_reason"] == "exited with status 3"
    assert "worker: failed: exited with status 3; its last line: no more memory" in host.run("status").stdout


@pytest.mark.unhurried
def test_a_service_that_runs_again_says_the_last_line_of_the_start_before(host, eventually):
    script = (
        f"[ -e $TESTBED_HOME/again ] && {{ echo well; {READY}; }}; touch $TESTBED_HOME/again $TESTBED_READY"
    )
    host.start("worker", f"{script}; echo connection lost; exit 3", "--restart")
    eventually(lambda: host.service("worker")["ready"] and host.service("worker")["restarts"])
    shown = host.service("worker")
    assert (shown["last_reason"], shown["last_line"]) == ("exited with status 3", "connection lost")
    host.start("other", READY)
    shown = host.service("other")
    assert (shown["last_reason"], shown["last_line"]) == ("", "")


@pytest.mark.unhurried
def test_last_words_are_those_of_the_last_start(host):
    host.start("worker", f"echo old words; {READY}")
    failed = host.run("start", "worker", "--", "/no/such/program")
    assert failed.returncode == 1
    assert "/no/such/program: No such file or directory" in failed.stderr
    assert "old words" not in failed.stderr


@pytest.mark.unhurried
def test_a_service_that_does_not_get_ready_is_not_left_running(host, gone):
    begun = host.start("worker", "echo $$ >$TESTBED_HOME/shell; sleep 1000", "--ready-timeout", "1")
    assert begun.returncode == 1
    assert "was not ready within 1 s" in begun.stderr
    assert gone(int((host.home / "shell").read_text()))
    assert host.service("worker")["reason"] == "was not ready within 1 s"


@pytest.mark.unhurried
def test_a_service_inherits_the_environment_and_has_a_session_of_its_own(host):
    script = (
        'echo "$PYTHONPATH $COLOUR [$SSH_CONNECTION] $GLIBC_TUNABLES" >$TESTBED_HOME/seen; '
        "readlink /proc/self/fd/0 >>$TESTBED_HOME/seen; " + READY
    )
    host.environment.pop("GLIBC_TUNABLES", None)
    host.start("worker", script, COLOUR="green", SSH_CONNECTION="10.0.0.1 1 10.0.0.2 22")
    seen = (host.home / "seen").read_text().splitlines()
    assert seen == [f"{host.environment['PYTHONPATH']} green [] glibc.malloc.hugetlb=1", "/dev/null"]
    assert os.getsid(host.pid("worker")) == host.pid("worker")
    host.start("other", script, COLOUR="red", GLIBC_TUNABLES="glibc.malloc.check=0")  # the user's own
    assert "red [] glibc.malloc.check=0\n" in (host.home / "seen").read_text()


@pytest.mark.unhurried
def test_plain_python_module_services_find_the_payload_code(host, eventually):
    program = [
        host.command[0],
        "-c",
        "from payloads.services.ready import announce_ready as a; a(); input()",
    ]
    # Its input is empty, so that it fails right after it was ready.
    assert host.run("start", "worker", "--", *program).returncode in (0, 1)
    eventually(lambda: "EOFError" in host.run("logs", "worker").stdout)


@pytest.mark.unhurried
def test_the_program_can_lie_in_the_home_folder(host):
    program = host.folder / "serve"
    program.write_text(f"#!/bin/sh\n{READY}\n")
    program.chmod(0o755)
    assert host.run("start", "worker", "--", "~/serve", HOME=str(host.folder)).returncode == 0


@pytest.mark.unhurried
def test_concurrent_starts_share_one_supervisor(host):
    names = ["a", "b", "c", "d", "d", "d"]
    begun = [host.begin("start", name, "--", "sh", "-c", READY) for name in names]
    assert [process.wait(60) for process in begun] == [0] * len(names)
    supervisor = host.supervisor()
    parents = {name: Path(f"/proc/{host.pid(name)}/stat").read_text().split()[3] for name in names}
    assert set(parents.values()) == {str(supervisor)}
    listing = subprocess.run(["ps", "-o", "args=", "--ppid", str(supervisor)], capture_output=True, text=True)
    assert len(listing.stdout.splitlines()) == 4


@pytest.mark.unhurried
def test_the_supervisor_leaves_when_nothing_is_left(host, eventually, gone):
    host.start("worker", READY)
    supervisor = host.supervisor()
    host.run("stop", "--all")
    eventually(lambda: gone(supervisor))
    assert host.service("worker")["state"] == "stopped"
    assert host.start("worker", READY).returncode == 0


@pytest.mark.unhurried
def test_processes_that_left_the_session_end_with_their_service(host, gone, eventually):
    host.start("worker", "setsid sleep 1000 & echo $! >$TESTBED_HOME/inner; " + READY)
    inner = int((host.home / "inner").read_text())
    host.run("stop", "worker")
    eventually(lambda: gone(inner))


@pytest.mark.unhurried
def test_no_zombies_are_left(host, eventually):
    host.start("worker", "for i in 1 2 3; do (sleep 0.1 & exec true) & done; wait; " + READY)
    supervisor = host.supervisor()

    def zombies() -> list[str]:
        shown = subprocess.run(
            ["ps", "-o", "stat=", "--ppid", str(supervisor)], capture_output=True, text=True
        )
        return [line for line in shown.stdout.split() if line.startswith("Z")]

    eventually(lambda: not zombies())
    host.run("stop", "worker")
    assert host.service("worker")["state"] == "stopped"


@pytest.mark.unhurried
def test_a_service_deaf_to_sigterm_is_killed(host, gone):
    host.start("worker", "trap '' TERM; touch $TESTBED_READY; while :; do sleep 0.2; done")
    pid = host.pid("worker")
    assert host.run("stop", "worker").returncode == 0
    assert gone(pid)


@pytest.mark.unhurried
def test_new_code_replaces_services_of_old_code(host, tmp_path, gone):
    host.start("worker", READY)
    first, supervisor = host.pid("worker"), host.supervisor()
    newer = tmp_path / "newer"
    newer.mkdir()
    subprocess.run(["cp", "-r", Path(host.environment["PYTHONPATH"]) / "payloads", newer], check=True)
    again = host.start("worker", READY, PYTHONPATH=str(newer))
    assert again.returncode == 0
    assert gone(first)
    assert host.supervisor() != supervisor


@pytest.mark.unhurried
def test_wrong_use_is_said_in_one_line(host):
    for arguments in (["start", "a"], ["start", "A/b", "--", "true"], ["stop"], ["logs", "nobody"]):
        done = host.run(*arguments)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.unhurried
def test_status_is_readable_before_anything_was_started(host):
    shown = json.loads(host.run("status", "--json").stdout)
    assert shown == {"backend": "supervisor", "lease": None, "services": []}


def test_a_look_at_a_host_that_was_never_used_leaves_nothing_there(host):
    assert json.loads(host.run("status", "--json").stdout)["services"] == []
    assert host.run("logs", "worker").returncode != 0
    assert not host.home.exists()
