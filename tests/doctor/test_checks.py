from dataclasses import replace

import pytest

from testbed.doctor import PURPOSES, KeyFile, Ssh, Torch, check_machine, is_ready

LOCKED = KeyFile("/home/ann/.ssh/id_ed25519", 0o600, locked=True)
LAB_KEY = KeyFile("/etc/lab/key", 0o600, hosts=("nano-1", "nano-2"))
NO_NETEM = {"htb": None, "tbf": None, "netem": "not in this kernel", "tun": None}
NO_HTB = {"htb": "not in this kernel"}
LAB = ("demo", "tests")
RACK = ("rack",)


def test_a_machine_that_has_everything_is_ready_for_everything(machine):
    checks = check_machine(machine)
    assert {check.state for check in checks} == {"ok"}
    assert not any(check.fix for check in checks)
    assert all(is_ready(checks, purpose) for purpose in PURPOSES)


@pytest.mark.parametrize(
    ("change", "item", "state", "purposes", "said", "fix"),
    [
        ({"kernel": "Darwin 23"}, "system", "missing", PURPOSES, "Linux only", "Debian"),
        ({"python": "3.9.2"}, "python", "missing", PURPOSES, "3.11 or newer", "apt-get install python3"),
        (
            {"packages": {"numpy": None}},
            "packages",
            "missing",
            PURPOSES,
            "not installed: numpy",
            "pip install -c constraints.txt -e .",
        ),
        (
            {"packages": {"numpy": "1.9.0"}},
            "packages",
            "weak",
            PURPOSES,
            "numpy 1.9.0 instead of 2.0.0",
            "-c constraints.txt",
        ),
        ({"packages": {"pytest": None}}, "test packages", "missing", ("tests",), "pytest", "'.[dev]'"),
        (
            {"torch": Torch(error="libgomp.so.1: cannot open")},
            "torch",
            "missing",
            PURPOSES,
            "libgomp.so.1",
            "torch==2.13.0",
        ),
        (
            {"torch": Torch("2.13.0", cuda="12.8", gpu="RTX", error="no kernel image")},
            "torch",
            "missing",
            PURPOSES,
            "no kernel image",
            "torch==2.13.0",
        ),
        (
            {"torch": Torch("2.5.0", right=True)},
            "torch",
            "weak",
            PURPOSES,
            "tested with 2.13.0",
            "torch==2.13.0",
        ),
        ({"sudo": "none"}, "root", "missing", LAB, "no sudo", "apt-get install sudo"),
        (
            {"programs": {"sshd": None, "iw": None}},
            "programs",
            "missing",
            LAB,
            "iw, sshd",
            "apt-get install iw openssh-server",
        ),
        ({"programs": {"sudo": None}}, "board programs", "weak", LAB, "not root", "apt-get install sudo"),
        ({"namespaces": None}, "kernel", "unknown", LAB, "root only", "sudo /opt/venv/bin/testbed doctor"),
        (
            {
                "namespaces": {"network": "Operation not permitted"},
                "capabilities_missing": ("SYS_ADMIN",),
            },
            "namespaces",
            "missing",
            LAB,
            "network: Operation not permitted; this container's root has not SYS_ADMIN",
            "--privileged",
        ),
        (
            {"interfaces": {"bridge": None, "veth": "not supported"}},
            "interfaces",
            "missing",
            LAB,
            "veth",
            "modprobe veth",
        ),
        (
            {
                "link_kinds": NO_HTB,
                "link_backends": {"bs-htb-tbf": "htb", "socket-pacing": None},
                "capabilities_missing": ("NET_ADMIN",),
            },
            "links",
            "missing",
            LAB,
            "root has not NET_ADMIN",
            "--privileged",
        ),
        ({"overlay": "No such device"}, "overlay", "missing", LAB, "No such device", "modprobe overlay"),
        (
            {"link_kinds": NO_HTB, "link_backends": {"bs-htb-tbf": "htb", "socket-pacing": None}},
            "links",
            "missing",
            LAB,
            "htb (not in this kernel)",
            "shaping: pacing",
        ),
        (
            {"link_kinds": NO_HTB, "link_backends": {"bs-htb-tbf": "htb", "socket-pacing": "refused"}},
            "links",
            "missing",
            LAB,
            "shaped or paced",
            "linux-modules-extra",
        ),
        (
            {
                "link_kinds": {**NO_NETEM, "tun": "no such file"},
                "link_backends": {"bs-htb-tbf": None, "socket-pacing": None},
            },
            "links",
            "weak",
            LAB,
            "no delay, jitter or loss",
            "modprobe tun",
        ),
        ({"cgroups": ("no memory controller",)}, "control groups", "weak", LAB, "memory", "controllers"),
        ({"cpu_count": 1}, "processors", "weak", LAB, "one processor", "two processors"),
        ({"memory_bytes": 2 << 30}, "memory", "missing", LAB, "2.0 GiB", "more memory"),
        ({"memory_free_bytes": 1 << 30}, "memory", "weak", LAB, "1.0 free", "ps aux"),
        ({"disk_free_bytes": 2 << 30}, "disk", "missing", ("tests",), "3 GiB are needed", "make room"),
        ({"disk_free_bytes": 1 << 20}, "disk", "missing", PURPOSES, "3 GiB are needed", "make room"),
        ({"interpreters": {"3.8": None}}, "old Pythons", "weak", ("tests",), "3.8", "pyenv install 3.8"),
        ({"browser": None}, "browser", "weak", ("tests",), "skipped", "chromium-driver"),
        ({"stock_kernel": None}, "stock kernel", "weak", ("tests",), "skipped", "user-mode-linux"),
        ({"ssh": Ssh()}, "login", "missing", RACK, "no key to log in with", "ssh-keygen"),
        ({"ssh": Ssh(None, 0, (LOCKED,))}, "login", "missing", RACK, "passphrase", 'eval "$(ssh-agent)"'),
        ({"ssh": Ssh(True, 0, (LOCKED,))}, "login", "missing", RACK, "passphrase", "ssh-add /home/ann"),
        ({"ssh": Ssh(None, 0, (), ("a", "b"))}, "login", "missing", RACK, "for a, b", "ssh-copy-id"),
        ({"ssh": Ssh(False, 0, (LOCKED,))}, "SSH agent", "weak", RACK, "does not answer", "SSH_AUTH_SOCK"),
        (
            {"ssh": Ssh(True, 1, (replace(LAB_KEY, mode=None),), ())},
            "key",
            "missing",
            RACK,
            "no such file (the key of nano-1, nano-2)",
            "ls -l /etc/lab/key",
        ),
        (
            {"ssh": Ssh(True, 1, (replace(LAB_KEY, error="no private key"),), ())},
            "key",
            "missing",
            RACK,
            "no private key",
            "ls -l",
        ),
        (
            {"ssh": Ssh(True, 0, (replace(LAB_KEY, mode=0o644),), ())},
            "key",
            "weak",
            RACK,
            "mode 644",
            "chmod 600 /etc/lab/key",
        ),
        (
            {"ssh": Ssh(True, 0, (replace(LAB_KEY, locked=True),), ())},
            "key",
            "missing",
            RACK,
            "passphrase",
            "ssh-add /etc/lab/key",
        ),
        ({"clock_synchronised": False}, "clock", "weak", RACK, "not synchronised", "timedatectl"),
    ],
)
def test_what_is_missing_is_named_with_its_fix(machine, change, item, state, purposes, said, fix):
    checks = check_machine(replace(machine, **change))
    wrong = [check for check in checks if check.state != "ok"]
    found = next(check for check in wrong if check.item == item)
    assert (found.state, found.purposes) == (state, purposes)
    assert said in found.text
    assert fix in found.fix
    assert all(check.fix for check in wrong)
    for purpose in PURPOSES:
        missing = any(check.state == "missing" and purpose in check.purposes for check in wrong)
        assert is_ready(checks, purpose) is not missing


def test_what_another_purpose_needs_is_left_out(machine):
    broken = replace(machine, sudo="none", ssh=Ssh(), browser=None)
    assert [check.item for check in check_machine(broken, ["rack"]) if check.state != "ok"] == ["login"]
    assert [check.item for check in check_machine(broken, ["demo"]) if check.state != "ok"] == ["root"]


def test_what_only_follows_from_another_lack_is_not_told(machine):
    denied = dict.fromkeys(["mount", "network"], "Operation not permitted")
    checks = check_machine(replace(machine, namespaces=denied, interfaces={}, overlay=""), ["demo"])
    assert [(check.item, check.text) for check in checks if check.state != "ok"] == [
        ("namespaces", "mount, network: Operation not permitted")
    ]
    assert not {"overlay", "interfaces"} & {check.item for check in checks}


def test_the_worst_comes_first(machine):
    broken = replace(machine, sudo="none", browser=None, namespaces=None)
    states = [check.state for check in check_machine(broken)]
    assert states[:3] == ["missing", "weak", "unknown"]
    assert set(states[3:]) == {"ok"}


def test_a_lab_whose_hosts_all_name_a_key_needs_no_other(machine):
    checks = check_machine(replace(machine, ssh=Ssh(keys=(LAB_KEY,), unnamed=())))
    assert is_ready(checks, "rack")


def test_keys_in_the_agent_open_a_locked_file(machine):
    checks = check_machine(replace(machine, ssh=Ssh(True, 1, (LOCKED, replace(LAB_KEY, locked=True)), ())))
    assert is_ready(checks, "rack")
