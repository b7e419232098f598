import pytest

from testbed.doctor import KeyFile, Machine, Ssh, Torch


@pytest.fixture
def machine() -> Machine:
    """Return a machine that has everything."""
    works = dict.fromkeys
    return Machine(
        system="Debian GNU/Linux 12 (bookworm)",
        kernel="Linux 6.1.0",
        python="3.11.2",
        executable="/opt/venv/bin/python",
        cpu_count=4,
        memory_bytes=16 << 30,
        memory_free_bytes=12 << 30,
        disk_free_bytes=50 << 30,
        sudo="root",
        programs={"sshd": "/usr/sbin/sshd", "ip": "/usr/sbin/ip"},
        packages={"numpy": "2.0.0", "torch": "2.13.0", "pytest": "9.0.0"},
        packages_dev=frozenset({"pytest"}),
        pinned={"numpy": "2.0.0", "torch": "2.13.0", "pytest": "9.0.0"},
        torch=Torch("2.13.0+cpu", right=True),
        namespaces=works(["mount", "network"]),
        interfaces=works(["bridge", "veth"]),
        overlay="",
        link_kinds=works(["htb", "tbf", "netem", "tun"]),
        link_backends=works(["bs-htb-tbf", "bs-htb-netem", "bs-line", "socket-pacing"]),
        interpreters={"3.8": "/usr/bin/python3.8"},
        browser="/usr/bin/chromium",
        stock_kernel="/usr/bin/linux.uml",
        ssh=Ssh(True, 0, (KeyFile("/home/ann/.ssh/id_ed25519", 0o600),)),
        clock_synchronised=True,
        clock_error_s=0.002,
    )
