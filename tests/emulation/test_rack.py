"""What makes emulated hosts differ as the boards of a rack do: accounts, Python, kernel options, clock, process 1."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.boards.kinds import board, kinds
from testbed.boards.releases import releases
from testbed.emulation import accounts, host, jetpack, pythons, system, systemd, tree
from testbed.emulation.clock import clock_environment, clock_files, find_library, without_sleep
from testbed.emulation.init import REBOOT_STATUS
from testbed.emulation.keys import NO_PASSWORD, lab_keys
from testbed.emulation.preflight import needed_programs
from testbed.emulation.running_host import RunningHost
from testbed.emulation.settings import load_lab
from tests.emulation.test_settings import changed

PASSWD = "root:x:0:0:root:/root:/bin/bash\nold:x:1000:1000::/home/old:/bin/sh\n"
GROUP = "root:x:0:\nadm:x:4:syslog\nsudo:x:27:\nvideo:x:44:\nold:x:1000:\n"
SHADOW = "root:!:19000:0:99999:7:::\nold:*:19000:0:99999:7:::\n"
names = st.from_regex(r"[a-z_][a-z0-9_-]{0,15}", fullmatch=True).filter(
    lambda name: f"{name}:" not in GROUP + PASSWD
)
USER = ("  user: root", "  user: jetson")
NETWORK = "network: 10.83.0.0/24"


@given(names)
def test_a_new_user_has_numbers_of_its_own_and_nobody_elses_line_changes(name):
    passwd, group, number = accounts.add_user(PASSWD, GROUP, name, ("adm", "sudo"))
    assert number not in (0, 1000)
    assert passwd.startswith(PASSWD)
    assert f"{name}:x:{number}:{number}::/home/{name}:/bin/bash\n" in passwd
    assert f"adm:x:4:syslog,{name}\nsudo:x:27:{name}\nvideo:x:44:\n" in group
    assert accounts.add_user(passwd, group, name, ("adm", "sudo")) == (passwd, group, number)


@given(names, st.text(st.characters(codec="ascii", exclude_characters=":\n\r"), min_size=1))
def test_passwords_go_to_their_users_alone(name, password):
    shadow = accounts.with_passwords(accounts.open_root(SHADOW), {name: password})
    fields = {line.split(":")[0]: line.split(":")[1] for line in shadow.split("\n") if line}
    assert fields == {"root": "*", "old": "*", name: password}


def test_sudo_is_given_as_the_inventory_says():
    assert accounts.sudoers("me", "none") == {}
    assert accounts.sudoers("me", "password") == {"90-me": "me ALL=(ALL:ALL) ALL\n"}
    assert "NOPASSWD" in accounts.sudoers("me", "nopasswd")["90-me"]


def test_a_lab_has_a_password_only_where_sudo_asks_for_one(tmp_path):
    spec = load_lab(changed(tmp_path, USER))
    assert lab_keys(spec)["password"] == NO_PASSWORD
    spec = load_lab(
        changed(tmp_path, USER, (NETWORK, f"{NETWORK}\n  hosts: {{orin-nx: {{sudo: password}}}}"))
    )
    password = lab_keys(spec)["password"]
    assert password["hash"].startswith("$6$")
    assert password["plain"] not in password["hash"]
    salt = password["hash"].split("$")[2]
    line = ["openssl", "passwd", "-6", "-salt", salt, "-stdin"]
    again = subprocess.run(line, input=password["plain"], capture_output=True, text=True, check=True)
    assert again.stdout.strip() == password["hash"]


def test_what_a_lab_needs_of_this_machine_follows_from_its_hosts(tmp_path):
    assert not {"sudo", "faketime"} & set(needed_programs(load_lab(changed(tmp_path))))
    own = f"{NETWORK}\n  hosts: {{orin-nx: {{clock_offset_s: 5, sudo: password}}}}"
    assert {"sudo", "faketime", "openssl"} <= set(
        needed_programs(load_lab(changed(tmp_path, USER, (NETWORK, own))))
    )


def test_each_board_gets_the_python_of_its_release(tmp_path, monkeypatch):
    made = {"3.10": pythons.Interpreter("3.10.99", "/x/3.10.99", "bin/python3.10")}
    monkeypatch.setattr("testbed.emulation.settings.find_python", made.get)
    own = f'{NETWORK}\n  hosts: {{orin-nano: {{l4t: "35.6.0"}}}}'
    hosts = {entry.name: entry for entry in load_lab(changed(tmp_path, (NETWORK, own))).hosts}
    assert (hosts["orin-nx"].python, hosts["orin-nx"].python.on_board) == (made["3.10"], "/opt/python3.10")
    assert (hosts["orin-nano"].python, hosts["orin-nano"].release.python) == (None, "3.8")
    assert (hosts["orin-nano"].kind.l4t, hosts["orin-nano"].kind.jetpack) == ("35.6.0", "5.1.4")
    assert (hosts["bs"].python, hosts["bs"].release) == (None, None)


@pytest.mark.parametrize("mode", [0o755, 0o644])
def test_this_machines_own_python_is_found_and_one_that_does_not_start_is_not(tmp_path, monkeypatch, mode):
    short = ".".join(map(str, sys.version_info[:2]))
    found = pythons.find_python.__wrapped__(short)
    assert found is not None
    assert found.version.startswith(f"{short}.")
    broken = tmp_path / "versions/3.99.1/bin/python3.99"
    broken.parent.mkdir(parents=True)
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(mode)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert pythons.find_python.__wrapped__("3.99") is None


def test_a_folder_where_this_user_may_not_look_has_no_python_for_them(tmp_path, monkeypatch):
    def refused(_folder, _pattern):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pythons.Path, "glob", refused)
    assert pythons.find_python.__wrapped__("3.99") is None


@given(st.sets(st.sampled_from(["NET_SCH_HTB", "NET_SCH_NETEM", "NET_SCH_TBF"])))
def test_only_the_missing_options_leave_a_kernels_configuration(missing):
    text = "CONFIG_NET=y\nCONFIG_NET_SCH_HTB=m\nCONFIG_NET_SCH_TBF=y\n# CONFIG_NET_SCH_NETEM is not set\n"
    lines = system.kernel_config(text, sorted(missing)).splitlines()
    assert len(lines) == 4
    assert "CONFIG_NET=y" in lines
    for option, line in {
        "NET_SCH_HTB": "CONFIG_NET_SCH_HTB=m",
        "NET_SCH_TBF": "CONFIG_NET_SCH_TBF=y",
    }.items():
        assert (line in lines) == (option not in missing)


def test_a_packed_configuration_is_read_back_and_a_machine_without_one_shows_none(tmp_path):
    machine = tmp_path / "config.gz"
    assert system.packed_config.__wrapped__(("NET_SCH_HTB",), machine) is None
    machine.write_bytes(gzip.compress(b"CONFIG_NET_SCH_HTB=y\n"))
    packed = system.packed_config.__wrapped__(("NET_SCH_HTB",), machine)
    assert gzip.decompress(packed) == b"# CONFIG_NET_SCH_HTB is not set\n"


def test_files_below_etc_say_which_release_it_is():
    text = system.os_release(releases()[36])
    assert 'VERSION_ID="22.04"\n' in text
    files = [system.nvpmodel_file(found.at()) for found in kinds().values()]
    assert "/etc/nvpmodel/nvpmodel_p3767_0005.conf" in files
    assert len(set(files)) == len(files)


def test_a_clock_that_is_right_needs_no_library(tmp_path):
    assert clock_environment(0.0, "/lib/x.so") == {}
    assert clock_files({}) == {}
    assert find_library(tmp_path) is None
    assert clock_environment(-2.5, "/lib/x.so")["FAKETIME"] == "-2.500000s"
    files = clock_files(clock_environment(5, "/lib/x.so"))
    assert files["/etc/sudoers.d/80-clock"][1] == 0o440
    assert "FAKETIME=+5.000000s\n" in files["/etc/testbed-clock.env"][0]


def test_python_sleeps_where_the_clock_is_off(tmp_path):
    library = find_library()
    if library is None:
        pytest.skip("the package faketime is not installed")
    copy = tmp_path / "clock.so"
    copy.write_bytes(without_sleep(Path(library).read_bytes()))
    code = "import time; time.sleep(0.001); print(time.time())"
    environment = {**os.environ, **clock_environment(1000.0, str(copy))}
    before = time.time()
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert before + 1000 <= float(done.stdout) <= time.time() + 1000


def test_another_library_is_taken_as_it_is():
    named = b"\0clock_nanosleep\0"
    assert without_sleep(named) == named
    assert without_sleep(named + b"code" + named) == b"\0clock_nanoslee_\0code" + named


def test_units_start_what_the_supervisor_would_start():
    spec = load_lab_with_jtop()
    entries = host.services(spec, spec.hosts[1])
    units = systemd.unit_files(entries)
    for entry in entries:
        name = "ssh" if entry["name"] == "sshd" else entry["name"]
        text = units[f"/etc/systemd/system/{name}.service"]
        assert f"ExecStart={' '.join(entry['argv'])}\n" in text
        assert all(f'Environment="{key}={value}"\n' in text for key, value in entry["environment"].items())
    assert len({systemd.machine_id("lab", entry.name) for entry in spec.hosts}) == len(spec.hosts)


def load_lab_with_jtop():
    from tests.emulation.test_settings import SHIPPED

    return load_lab(SHIPPED)


@pytest.mark.parametrize(
    ("code", "state"),
    [
        (f"import sys; sys.exit({REBOOT_STATUS})", "rebooting"),
        # Not ignored, as it is below nohup.
        (
            "import os, signal as s; s.signal(s.SIGHUP, s.SIG_DFL); os.kill(os.getpid(), s.SIGHUP)",
            "rebooting",
        ),
        ("pass", "down"),
        (f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})", "down"),
    ],
)
def test_how_process_1_ends_says_whether_the_host_comes_back(code, state):
    spec = load_lab_with_jtop()
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", code])
    running = RunningHost(spec.hosts[0], child.pid, None, None, None)
    assert running.state == "starting"
    while running.ended is None:
        running.check()
    child.returncode = 0  # its status was taken
    assert running.state == state
    running.booted(child.pid)
    assert (running.state, running.boots) == ("starting", 2)


def test_a_board_that_starts_again_has_the_clocks_of_its_mode():
    nano = board("jetson-orin-nano-8gb")
    fresh = tree.sysfs(nano, "1").files
    same = tree.settings_at(nano, nano.start_mode)
    assert same.items() <= fresh.items()
    other = tree.settings_at(nano, 1)
    assert set(other) == set(same)
    assert other["devices/platform/17000000.gpu/devfreq/17000000.gpu/max_freq"] == "918000000\n"
    assert tree.gpu_load_path(nano) not in same


@pytest.mark.parametrize(
    ("name", "arguments", "sent"),
    [
        ("reboot", [], "-s INT 1"),
        ("shutdown", ["-r", "now"], "-s INT 1"),
        ("shutdown", ["-h", "now"], "-s TERM 1"),
        ("poweroff", [], "-s TERM 1"),
    ],
)
def test_without_a_systemd_the_usual_programs_reach_the_supervisor(tmp_path, name, arguments, sent):
    text = jetpack.REBOOT.replace('[ "$(id -u)" = 0 ]', "true").replace("kill", "echo")
    program = tmp_path / name
    program.write_text(text)
    program.chmod(0o755)
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout == f"{sent}\n"
