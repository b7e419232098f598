"""What a user of an emulated host sees, and what he must not."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from payloads.services.systemd_limits import limits
from testbed.emulation import lab as lab_module
from testbed.emulation.settings import load_lab
from testbed.hosts.sent import sent_program
from tests.emulated.conftest import Lab, need_root

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


def test_ps_shows_only_the_hosts_own_processes(lab, wait_for):
    known = ("init.py", "sshd", "jtop", "ps -e", "nvpmodel", "swapon", "sh -c")

    def only_known():
        shown = lab.run("orin-nano", "ps", "-e", "-o", "pid=,args=").stdout.splitlines()
        programs = [line.split(None, 1)[1] for line in shown]
        assert "init.py" in programs[0]
        return all(any(part in line for part in known) for line in programs)

    wait_for(only_known)  # the jtop service asks many programs when it starts; another host's would stay


def test_each_host_has_its_own_name_and_knows_the_others(lab):
    for host in lab.spec.hosts:
        assert lab.run(host.name, "hostname").stdout.strip() == host.name
    ask = "import socket; print(socket.create_connection(('xavier-nx', 22)).recv(4).decode())"
    assert lab.run("bs", "/opt/testbed/python", "-c", ask).stdout == "SSH-\n"


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
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
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
        [*lab.command("orin-nx", "sh", "-c", "exit 7")], capture_output=True, check=False, timeout=300
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
    # Half a core: a busy loop of a second of wall time gets about half a second of CPU. Python's own start is left out.
    script = (
        "import time; a, b = time.monotonic(), time.process_time()\n"
        "while time.monotonic() - a < 1: pass\n"
        "print(time.process_time() - b)"
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
        timeout=300,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 3
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "needs root" in done.stderr
    assert "sudo" in done.stderr


RACK = """
lab: {name}
known_hosts: /run/testbed/labs/{name}/known_hosts
defaults:
  user: jetson
  key_file: /run/testbed/labs/{name}/id_ed25519
  gateway: nsenter --net=/run/testbed/labs/{name}/net nc {{address}} {{port}}
hosts:
  bs: {{role: base_station, address: 10.93.0.1, user: root}}
  orin: {{role: device, address: 10.93.0.2, board: jetson-orin-nano-8gb}}
  xavier: {{role: device, address: 10.93.0.3, board: jetson-xavier-nx-8gb}}
emulation:
  network: 10.93.0.0/24
  jtop: false
  hosts:
    orin: {{sudo: password, systemd: true}}
    xavier: {{l4t: "35.6.0", clock_offset_s: 5}}
"""
BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


@pytest.fixture(scope="module")
def rack(tmp_path_factory, request):
    """Two boards as a rack has them: ordinary users, two JetPacks, one with systemd, one with a clock that is off."""
    need_root()
    name = f"rack-{os.getpid()}"
    inventory = tmp_path_factory.mktemp("rack") / "rack.yaml"
    inventory.write_text(RACK.format(name=name))
    found = Lab(inventory, load_lab(inventory))
    lab_module.up(found.spec)
    try:
        yield found
    finally:
        lab_module.down(name)


def test_ordinary_users_have_the_sudo_that_the_inventory_says(rack):
    assert rack.run("xavier", "sh", "-c", "id -un; sudo -n id -un").stdout.split() == ["jetson", "root"]
    assert rack.run("orin", "sudo", "-n", "true", check=False).returncode != 0
    password = rack.spec.files.password.read_text()
    assert rack.run("orin", "sudo", "-S", "-p", "", "id", "-un", text=password).stdout == "root\n"
    assert rack.run("orin", "sudo", "-S", "-p", "", "id", text="wrong\n", check=False).returncode != 0
    assert rack.spec.files.password.stat().st_mode & 0o777 == 0o600


def test_a_board_has_the_python_and_the_kernel_options_of_its_jetpack(rack):
    ask = "import sys; print('.'.join(map(str, sys.version_info[:2])))"
    for host in rack.spec.hosts[1:]:
        if host.python is not None:
            assert rack.run(host.name, "python3", "-c", ask).stdout.strip() == host.release.python
        options = rack.run(host.name, "sh", "-c", "zcat /proc/config.gz 2>/dev/null || true").stdout
        assert "CONFIG_NET_SCH_NETEM=" not in options
        if host.name == "orin":
            assert "CONFIG_NET_SCH_HTB=" not in options


def test_a_clock_that_is_off_is_off_by_that_much_for_sudo_too(rack):
    script = "date +%s; sudo date +%s"
    before = int(time.time())
    times = [int(text) for text in rack.run("xavier", "sh", "-c", script).stdout.split()]
    after = int(time.time())
    assert [before + 5 <= found <= after + 5 for found in times] == [True, True]


def test_a_mode_that_needs_a_reboot_is_there_after_it_and_the_disk_is_as_it_was(rack, wait_for):
    password = rack.spec.files.password.read_text()
    before = rack.run("orin", "sh", "-c", f"{BOOT_ID}; nvpmodel -q; echo kept > note").stdout.splitlines()
    assert before[1:] == ["NV Power Mode: 15W", "0"]
    linger = "/var/lib/systemd/linger/jetson"
    script = f"(cat; echo YES) | sudo -S -p '' sh -c 'touch /run/gone {linger}; nvpmodel -m 3'; sleep 120"
    assert rack.run("orin", "sh", "-c", script, text=password, check=False).returncode == 255
    wait_for(lambda: rack.run("orin", "sh", "-c", BOOT_ID, check=False).stdout.strip() not in ("", before[0]))
    after = rack.run("orin", "sh", "-c", "nvpmodel -q; cat note; ls /run/gone || true").stdout.splitlines()
    assert after == ["NV Power Mode: 7W", "3", "kept"]
    manager = "test -d /run/user/$(id -u)/systemd"
    wait_for(lambda: rack.run("orin", "sh", "-c", manager, check=False).returncode == 0)
    rack.run("orin", "sudo", "-S", "-p", "", "rm", linger, text=password)


def test_services_of_a_systemd_keep_to_their_limits(rack):
    password = rack.spec.files.password.read_text()
    unit = "systemd-run --quiet --pipe --wait -p MemoryMax=64M -p NoNewPrivileges=yes -p ProtectSystem=strict"
    for mebibytes, ended in ((16, 0), (300, 137)):
        code = f"x = bytearray({mebibytes} << 20)"
        done = rack.run(
            "orin", "sh", "-c", f"sudo -S -p '' {unit} python3 -c '{code}'; echo ended with $?", text=password
        )
        assert done.stdout.endswith("ended with 0\n") == (ended == 0)


def test_a_service_of_root_has_the_rights_that_it_needs_and_no_others(rack):
    """The link daemon makes a namespace to try the kernel in; a worker opens devices, and writes to its own folder."""
    tries = "unshare -n true && echo namespace; exec 3<>/dev/net/tun && echo device; echo > /root/own/it && echo own"
    tries += "; (echo > /etc/it) 2>&1 || echo closed; umount /tmp 2>/dev/null && echo unmounted"
    rack.run("orin", "mkdir", "-p", "/root/own", user="root")
    for service, allowed in (("linkd", ["namespace"]), ("worker", [])):
        given = limits(service, system=True, home=Path("/root/own"), user_home=Path("/root"))
        unit = ["systemd-run", "--quiet", "--pipe", "--wait", *(f"--property={each}" for each in given)]
        done = rack.run("orin", *unit, "sh", "-c", tries, user="root", check=False)
        words = [line for line in done.stdout.splitlines() if " " not in line]
        assert words == [*allowed, "device", "own", "closed"], done.stderr


def test_a_reservation_outlives_its_session_where_systemd_ends_what_is_left_of_one(rack, wait_for):
    """As logind does with KillUserProcesses=yes."""
    left = ["sh", "-c", 'setsid sleep 300 >/dev/null 2>&1 & exec "$@"', "session"]
    session = ["systemd-run", "--quiet", "--scope", "--unit=session-9", *left]

    def lease(*words, within=()):
        services = ["python3", "-c", "import sys; exec(sys.stdin.buffer.readline())", "services", "lease"]
        line = [*within, *services, *words]
        return json.loads(rack.run("orin", *line, text=sent_program().decode(), user="root").stdout)

    def kept():
        names = rack.run("orin", "ls", "-A", "/var/tmp", user="root").stdout.split()
        return [name for name in names if not name.startswith("systemd-private-")]

    before = kept()  # this machine's own files show there too
    assert lease("take", "--owner", "ann@laptop", within=session)["reserved"]
    wait_for(lambda: lease("show")["keeper"])
    rack.run("orin", "systemctl", "stop", "session-9.scope", user="root")
    assert lease("show")["keeper"]["owner"] == "ann@laptop"
    assert lease("release", "--owner", "ann@laptop")["released"] is True
    wait_for(lambda: lease("show")["keeper"] is None)

    wait_for(lambda: kept() == before)  # the keeper goes before the folder does
