"""What an emulated lab needs of this machine, asked before anything is done."""

from __future__ import annotations

import functools
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from testbed.emulation import systemd
from testbed.emulation.namespaces import effective_capabilities
from testbed.emulation.spec import LabSpec
from testbed.errors import RefusedError, TestbedError

__all__ = ["PROGRAM_PATH", "missing_programs", "needed_programs", "require_programs", "require_root"]

_PROGRAMS = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ip": "iproute2",
    "nc": "netcat-openbsd",
    "nsenter": "util-linux",
    "swapon": "mount",
}
_NET_ADMIN, _SYS_ADMIN = 12, 21
PROGRAM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def require_root(verb: str) -> None:
    """Refuse to go on where namespaces and mounts cannot be made.

    Args:
        verb: The command that needs it, such as ``up``.

    Raises:
        RefusedError: One line that says what is needed and how to give it.
    """
    if os.geteuid() != 0:
        command = f"sudo {shlex.quote(str(Path(sys.argv[0]).absolute()))} emulate {verb}"
        raise RefusedError(
            f"an emulated lab needs root, for network namespaces, mounts and control groups: run `{command}`"
        )
    mask = effective_capabilities(Path("/proc/self/status").read_text())
    if not mask >> _SYS_ADMIN & 1 or not mask >> _NET_ADMIN & 1:
        raise RefusedError(
            "an emulated lab needs the capabilities SYS_ADMIN and NET_ADMIN, which this container's root has not:"
            " start the container with `--privileged`"
        )


def missing_programs(
    find: Callable[[str], str | None], programs: Mapping[str, str] = MappingProxyType(_PROGRAMS)
) -> dict[str, str]:
    """Return the programs that cannot be found, with the Debian package of each."""
    return {program: package for program, package in programs.items() if find(program) is None}


def needed_programs(spec: LabSpec) -> dict[str, str]:
    """Return the programs that a lab needs, with the Debian package of each."""
    programs = dict(_PROGRAMS)
    if any(host.user != "root" and host.sudo != "none" for host in spec.hosts):
        programs["sudo"] = "sudo"
    if any(host.sudo == "password" for host in spec.hosts):
        programs["openssl"] = "openssl"
    if any(host.clock_offset_s for host in spec.hosts):
        programs["faketime"] = "faketime"
    return programs


def require_programs(spec: LabSpec) -> None:
    """Refuse to go on where a program is missing.

    Args:
        spec: The lab that needs them.

    Raises:
        TestbedError: One line with what is missing and the Debian packages that have it.
    """
    find = functools.partial(shutil.which, path=PROGRAM_PATH)
    missing = missing_programs(find, needed_programs(spec))
    if missing:
        packages = " ".join(dict.fromkeys(missing.values()))
        raise TestbedError(
            f"not installed: {', '.join(missing)}; get them with `apt-get install {packages}` (Debian, Ubuntu)"
        )
    if any(host.systemd for host in spec.hosts) and not Path(systemd.PROGRAM).exists():
        raise TestbedError(
            f"{systemd.PROGRAM} is not there, and hosts with `systemd: true` need it: get it with"
            " `apt-get install systemd dbus` (Debian, Ubuntu), or set `emulation: {systemd: false}`"
        )
    if spec.jtop and importlib.util.find_spec("jtop") is None:
        raise TestbedError(
            f"the Python of the boards has no jtop: run `{sys.executable} -m pip install jetson-stats`,"
            " or set `emulation: {jtop: false}` in the inventory"
        )
    with open("/proc/filesystems") as file:
        kinds = {line.split()[-1] for line in file}
    if "overlay" in kinds:
        return
    # A container often has no modprobe at all.
    modprobe = shutil.which("modprobe", path=PROGRAM_PATH)
    if modprobe is None or subprocess.run([modprobe, "-q", "overlay"], check=False).returncode != 0:
        raise TestbedError(
            "this kernel has no overlay filesystem: run `modprobe overlay` as root on the machine itself"
        )
