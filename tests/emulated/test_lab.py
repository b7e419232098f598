"""What a user of an emulated host sees, and what he must not."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.emulated


def test_a_written_file_is_not_seen_outside_or_on_another_board(lab):
    for place in (
        "/root/note",
        "/etc/note",
        "/tmp/note",
        "/usr/local/note",
        str(Path(__file__).parent / "note"),
    ):
        lab.run("orin-nano", "sh", "-c", f"echo mine > {place}")
        assert lab.run("orin-nano", "cat", place).stdout == "mine\n"
        assert not Path(place).exists()
        assert lab.run("orin-nx", "test", "-e", place, check=False).returncode == 1


def test_ps_shows_only_the_hosts_own_processes(lab):
    shown = lab.run("orin-nano", "ps", "-e", "-o", "pid=,args=").stdout.splitlines()
    programs = [line.split(None, 1)[1] for line in shown]
    assert "init.py" in programs[0]
    known = ("init.py", "sshd", "jtop", "ps -e", "nvpmodel", "swapon", "sh -c")
    assert [line for line in programs if not any(part in line for part in known)] == []


def test_each_host_has_its_own_name_and_knows_the_others(lab):
    for host in lab.spec.hosts:
        assert lab.run(host.name, "hostname").stdout.strip() == host.name
    answer = lab.run("bs", "sh", "-c", "nc -w 2 xavier-nx 22 </dev/null | head -c 4").stdout
    assert answer == "SSH-"


def test_nothing_of_this_machines_homes_is_seen_but_what_python_needs(lab):
    script = "import os; print(sorted(os.listdir('/root')))"
    seen = lab.run("agx-orin", "/opt/testbed/python", "-c", script).stdout
    assert ".ssh" not in seen
    assert ".testbed" not in seen


def test_settings_of_the_whole_machine_cannot_be_written(lab):
    done = lab.run("bs", "sh", "-c", "echo 1 > /proc/sys/kernel/panic", check=False)
    assert done.returncode != 0
    lab.run("bs", "sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward")
    done = lab.run("bs", "sh", "-c", "date -s '2001-01-01'", check=False)
    assert done.returncode != 0


def test_the_controllers_network_is_untouched(lab):
    shown = subprocess.run(["ip", "-o", "address"], capture_output=True, text=True, check=True).stdout
    assert "10.84." not in shown


def test_a_stranger_cannot_log_in(lab, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    line = [
        str(tmp_path / "key") if part == str(lab.spec.files.key) else part
        for part in lab.command("bs", "true")
    ]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 255
    assert "Permission denied" in done.stderr


def test_keys_and_state_are_for_root_alone(lab):
    files = lab.spec.files
    assert files.root.stat().st_mode & 0o777 == 0o700
    assert files.key.stat().st_mode & 0o777 == 0o600


def test_a_board_shows_its_own_cpus_and_memory(lab):
    script = "import os; print(os.cpu_count(), open('/proc/meminfo').readline().split()[1])"
    assert lab.run("agx-orin", "/opt/testbed/python", "-c", script).stdout.split() == [
        "12",
        str(62840 * 1024),
    ]
    assert lab.run("orin-nano", "/opt/testbed/python", "-c", script).stdout.split() == ["6", str(7620 * 1024)]


def test_status_names_every_host_and_shell_runs_a_command_there(lab):
    found = json.loads(lab.cli("status", "--json").stdout)
    assert found["state"] == "up"
    assert [host["name"] for host in found["hosts"]] == [host.name for host in lab.spec.hosts]
    done = subprocess.run(
        [*lab.command("orin-nx", "sh", "-c", "exit 7")], capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 7


def test_a_service_that_is_killed_comes_back(lab, wait_for):
    lab.run("xavier-nx", "pkill", "-f", "sshd_config", check=False)
    wait_for(lambda: lab.run("xavier-nx", "true", check=False).returncode == 0)


def test_limits_hold(small_lab):
    lab = small_lab()
    lab.cli("up")
    big = "/opt/testbed/python -c 'x = bytearray(400 << 20); print(len(x))'; echo ended with $?"
    assert lab.run("nano", "sh", "-c", big).stdout == "ended with 137\n"
    # Half a core: a busy loop of a second of wall time gets about half a second of CPU.
    script = (
        "import time; a = time.monotonic()\nwhile time.monotonic() - a < 1: pass\nprint(time.process_time())"
    )
    assert float(lab.run("nano", "/opt/testbed/python", "-c", script).stdout) < 0.75


def test_a_machine_without_a_lab_says_so(small_lab):
    lab = small_lab()
    done = lab.cli("down")
    assert "not up" in done.stdout
    done = lab.cli("status", check=False)
    assert done.returncode == 1
    assert f"lab {lab.name}: down" in done.stdout


def test_without_root_one_line_says_what_is_needed(lab, emulate_line):
    # Python may be installed where only root can read; being allowed to read is all that nobody gets here.
    nobody = [
        "setpriv",
        "--reuid=65534",
        "--clear-groups",
        "--inh-caps=+dac_read_search",
        "--ambient-caps=+dac_read_search",
    ]
    done = subprocess.run(
        [*nobody, *emulate_line("up")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 3
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "needs root" in done.stderr
    assert "sudo" in done.stderr
