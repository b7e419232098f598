"""The parts that need no supervisor: the log, the restart limit, the processes of another boot."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from hypothesis import given
from hypothesis import strategies as st

from payloads.services import logs, processes, service
from payloads.services.layout import ServiceError, check_name
from payloads.services.spec import Spec


def test_the_log_is_bounded_and_keeps_its_end(tmp_path):
    log = logs.open_log(tmp_path)
    for number in range(3000):
        os.write(log, f"line {number}\n".encode())
        if number % 100 == 0:
            logs.rotate(tmp_path, limit_bytes=8192)
    os.close(log)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3 * 8192
    rows = logs.tail(tmp_path, 0).splitlines()
    assert rows[-1] == "line 2999"
    assert rows[1:] == [f"line {number}" for number in range(3001 - len(rows), 3000)]


def test_a_service_that_keeps_failing_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setenv("TESTBED_HOME", str(tmp_path))
    monkeypatch.setattr(service, "_BACK_OFF_S", 0.0)
    spec = Spec("flaky", ("sh", "-c", "exit 7"), restart=True, awaits_ready=False, directory="/", code="")
    flaky = service.Service(spec, os.environ)
    flaky.start()
    deadline = time.monotonic() + 60
    while flaky.is_active and time.monotonic() < deadline:
        if flaky.state == "running":
            flaky.reaped(os.waitpid(flaky.pid, 0)[1])
        flaky.tick()
    assert flaky.state == "failed"
    assert flaky.incarnation == 1 + service.RESTARTS
    assert "exited with status 7; restarted 5 times in 60 s already, given up" in flaky.reason


def test_a_process_is_not_mistaken_for_a_later_one():
    ticks, boot = processes.start_ticks(os.getpid()), processes.boot_id()
    assert processes.is_alive(processes.Process(os.getpid(), ticks, boot))
    assert not processes.is_alive(processes.Process(os.getpid(), ticks + 1, boot))
    assert not processes.is_alive(processes.Process(os.getpid(), ticks, "another boot"))


@given(st.text(max_size=50))
def test_a_name_is_safe_as_folder_and_unit_or_refused(name):
    try:
        assert check_name(name) == name
    except ServiceError:
        return
    assert name
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")
    assert not name.startswith("-")


def test_a_program_that_cannot_be_started_leaves_no_child():
    # In an interpreter of its own: this one may have other children.
    program = (
        "import os\n"
        "from payloads.services import processes\n"
        "try:\n    processes.spawn(['/no/such'], {}, '/', 1)\n"
        "except FileNotFoundError as error:\n    print(error)\n"
        "try:\n    os.waitpid(-1, os.WNOHANG)\n"
        "except ChildProcessError:\n    print('no child')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "/no/such" in done.stdout
    assert done.stdout.endswith("no child\n")
