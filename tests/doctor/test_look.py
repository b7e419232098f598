import json
import os
import re
import shutil
import struct
import subprocess
import tomllib
from pathlib import Path

import paramiko
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from testbed.cli.main import app
from testbed.config.inventory import Inventory
from testbed.doctor import Torch, look
from testbed.doctor.look import cgroup_problems, clock_state, look_at_keys, read_requirements

#: What pip is told to install with an extra, in a text or in a hint.
EXTRA = re.compile(r"pip install[^`\"\[]*?'?([\w.-]+)\[([a-z-]+)\]")
PROJECT = """
[project]
dependencies = ["NumPy", "torch==2.13.0"]
[project.optional-dependencies]
link-level = ["sionna-no-rt"]
dev = ["wireless-testbed[link-level]", "pytest", "numpy"]
"""


def write_key(path: Path, passphrase: bytes = b"", mode: int = 0o600) -> Path:
    way = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    kind = serialization.PrivateFormat.OpenSSH
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(Ed25519PrivateKey.generate().private_bytes(serialization.Encoding.PEM, kind, way))
    path.chmod(mode)
    return path


def test_requirements_are_those_of_the_source_with_the_versions_it_is_tested_with(tmp_path):
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "constraints.txt").write_text("# tested\nPyTest==9.0.1\nnumpy==2.0.0  # why\n")
    base, dev, pinned = read_requirements(tmp_path)
    assert (base, dev) == (["numpy", "torch"], ["sionna-no-rt", "pytest"])
    assert pinned == {"pytest": "9.0.1", "numpy": "2.0.0", "torch": "2.13.0"}


def test_requirements_without_the_source_are_those_of_the_installed_package(monkeypatch):
    lines = ["numpy", 'pytest; extra == "dev"', 'gguf; extra == "models"']
    monkeypatch.setattr(look.metadata, "requires", lambda _name: lines)
    assert read_requirements(None) == (["numpy"], ["pytest"], {})


def test_extras_are_installed_from_the_source_and_not_by_a_name_that_an_index_may_have_from_others():
    root = Path(__file__).parents[2]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    files = [root / "README.md", *root.glob("docs/*.md"), *root.glob("testbed/**/*.py")]
    told = [(file.name, *match) for file in files for match in EXTRA.findall(file.read_text())]
    assert {name for _, name, _ in told} == {"."}, told
    assert {extra for *_, extra in told} <= extras.keys()


@given(st.lists(st.from_regex(r"[a-z][a-z0-9-]{0,8}(==[0-9.]{1,5})?(; extra == \"dev\")?", fullmatch=True)))
def test_every_requirement_is_found_once(lines):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(look.metadata, "requires", lambda _name: lines)
        base, dev, _pinned = read_requirements(None)
    names = {line.split(";")[0].split("=")[0] for line in lines}
    assert sorted([*base, *dev]) == sorted(names)


@pytest.mark.parametrize(
    ("mounts", "controllers", "problems"),
    [
        ("", "", ("no control groups are mounted",)),
        ("1 2 0:3 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct", "", ("no memory controller",)),
        ("1 2 0:3 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "cpu io memory", ()),
        (
            "1 2 0:3 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
            "io",
            ("no cpu controller", "no memory controller"),
        ),
    ],
)
def test_control_groups_are_read_and_not_changed(tmp_path, mounts, controllers, problems):
    for name, text in (("proc/self/mountinfo", mounts), ("sys/fs/cgroup/cgroup.controllers", controllers)):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    assert cgroup_problems(tmp_path) == problems


@pytest.mark.parametrize(
    ("answer", "status", "expected"),
    [(0, 0x2001, (True, 0.0042)), (5, 0x40, (False, None)), (-1, 0, (None, None))],
)
def test_the_clock_is_what_the_kernel_takes_it_for(answer, status, expected):
    def read(record):
        struct.pack_into("@illlli", record, 0, 0, 0, 0, 4200, 10, status)
        return answer

    assert clock_state(read) == expected


def test_this_kernel_says_something_of_its_clock():
    assert clock_state()[0] in (True, False)


def test_keys_are_the_users_and_those_that_the_lab_names(tmp_path):
    write_key(tmp_path / ".ssh" / "id_ed25519", b"a secret")
    named = write_key(tmp_path / "lab.key", mode=0o640)
    hosts = {
        "bs": {"role": "base_station", "address": "10.0.0.1"},
        "one": {"role": "device", "address": "10.0.0.2", "key_file": str(named)},
        "two": {"role": "device", "address": "10.0.0.3", "key_file": str(named)},
        "six": {"role": "device", "address": "10.0.0.4", "key_file": str(tmp_path / "gone")},
    }
    ssh = look_at_keys(Inventory.model_validate({"lab": "keys", "hosts": hosts}), tmp_path, None)
    own, lab, gone = ssh.keys
    assert (own.locked, own.usable, own.hosts) == (True, False, ())
    assert (lab.mode, lab.usable, lab.hosts) == (0o640, True, ("one", "two"))
    assert (gone.mode, gone.error, gone.hosts) == (None, "No such file or directory", ("six",))
    assert (ssh.unnamed, ssh.agent) == (("bs",), None)


@pytest.mark.parametrize("content", ["", "no key at all", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"])
def test_a_file_that_is_no_key_is_said_to_be_none(tmp_path, content):
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_rsa").write_text(content)
    (key,) = look_at_keys(None, tmp_path, None).keys
    assert not key.usable
    assert key.error.startswith("no private key")


@pytest.mark.skipif(shutil.which("ssh-agent") is None, reason="needs ssh-agent")
def test_an_agent_is_asked_for_its_keys(tmp_path):
    socket = tmp_path / "agent"
    assert look_at_keys(None, tmp_path, str(socket)).agent is False
    agent = subprocess.Popen(
        ["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert agent.stdout is not None
        agent.stdout.readline()
        found = look_at_keys(None, tmp_path, str(socket))
        assert (found.agent, found.agent_keys) == (True, 0)
        key = write_key(tmp_path / "key")
        subprocess.run(
            ["ssh-add", "-q", str(key)], env={**os.environ, "SSH_AUTH_SOCK": str(socket)}, check=True
        )
        assert look_at_keys(None, tmp_path, str(socket)).agent_keys == 1
    finally:
        agent.terminate()
        agent.wait()
        agent.stdout.close()


def test_a_torch_that_cannot_be_imported_says_why(monkeypatch):
    monkeypatch.setattr(look, "_TORCH", "import torch_of_nobody")
    assert look._torch() == Torch(error="ModuleNotFoundError: No module named 'torch_of_nobody'")


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("print()", "cannot be run: Permission denied"),
        ("import time; time.sleep(60)", "no answer within 0.1 s"),
    ],
)
def test_a_python_that_cannot_be_run_is_told_from_one_that_does_not_answer(
    monkeypatch, tmp_path, program, error
):
    if "run" in error:
        (tmp_path / "python").touch(mode=0o600)
        monkeypatch.setattr(look.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(look, "_TORCH", program)
    monkeypatch.setattr(look, "TORCH_S", 0.1)
    assert look._torch().error.endswith(error)


def test_this_machine_is_looked_at_and_left_as_it_is(monkeypatch, tmp_path):
    monkeypatch.setattr(look, "_TORCH", "print('{}')")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(look.tempfile, "tempdir", None)

    def own_mounts():
        """The root, and what lies below the trial's folder: others may mount something meanwhile."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line for line in lines if line.split()[4] == "/" or str(tmp_path) in line]

    before = own_mounts()
    done = CliRunner().invoke(app, ["doctor", "--json"])
    answer = json.loads(done.stdout)
    # Of torch nothing was learnt: it is missing, whatever else is there.
    assert done.exit_code == 1
    assert answer["ready"] == {"demo": False, "tests": False, "rack": False}
    machine = answer["machine"]
    assert machine["packages"]["paramiko"] == paramiko.__version__
    assert machine["python"].startswith("3.")
    if os.geteuid() == 0:
        assert machine["namespaces"].keys() == {"mount", "network", "host name", "ipc", "cgroup", "process"}
        assert set(machine["link_backends"]) >= {"bs-htb-tbf", "socket-pacing"}
    assert list(tmp_path.iterdir()) == []
    assert own_mounts() == before


@pytest.mark.parametrize(
    ("arguments", "sudo", "status", "end"),
    [
        (["demo"], "root", 0, "demo: ready\n"),
        (["demo"], "none", 1, "demo: not ready, for want of root\n"),
        (["rack"], "none", 0, "rack: ready\n"),
        (["rack", "demo"], "none", 1, "rack: ready\n"),
        (["kitchen"], "root", 2, ""),
    ],
)
def test_the_exit_code_says_whether_something_is_missing(monkeypatch, machine, arguments, sudo, status, end):
    from dataclasses import replace

    monkeypatch.setattr(look, "look_at_machine", lambda _lab: replace(machine, sudo=sudo))
    done = CliRunner().invoke(app, ["doctor", *arguments])
    assert done.exit_code == status
    assert done.stdout.endswith(end)


def test_who_asked_for_no_rack_needs_no_key_to_one(monkeypatch, machine, tmp_path):
    from dataclasses import replace

    from testbed.doctor import Ssh

    monkeypatch.setattr(look, "look_at_machine", lambda _lab: replace(machine, ssh=Ssh()))
    done = CliRunner().invoke(app, ["doctor"])
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "rack: not ready, for want of login")
    lab = tmp_path / "lab.yaml"
    lab.write_text("lab: x\nhosts:\n  bs: {role: base_station, address: 10.0.0.1}\n")
    for asked in (["rack"], ["-i", str(lab)]):
        assert CliRunner().invoke(app, ["doctor", *asked]).exit_code == 1


def test_a_mistake_in_the_inventory_is_one_line(monkeypatch, tmp_path):
    from testbed.errors import InputError

    (tmp_path / "lab.yaml").write_text("lab: x\nhosts: {}\nfoo: 1\n")
    done = CliRunner().invoke(app, ["doctor", "-i", str(tmp_path / "lab.yaml")])
    assert isinstance(done.exception, InputError)
    assert "lab.yaml:3" in str(done.exception)
