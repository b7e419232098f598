"""From a forked child to a running host: namespaces, filesystem, configuration files, process 1.

:func:`become_host` is what the keeper calls in the child that will be the host's process 1. It never returns.
"""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from testbed.emulation import jetpack, rootfs
from testbed.emulation.namespaces import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUTS,
    die_with_parent,
    drop_capabilities,
    set_hostname,
    unshare,
)
from testbed.emulation.network import host_lines, run_lines
from testbed.emulation.rootfs import HostFolders
from testbed.emulation.spec import HostSpec, LabSpec

__all__ = ["HostKeys", "Pipes", "become_host", "hosts_file", "services"]

_HOME = "/opt/testbed"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Loading modules, raw input and output, rebooting, the clock, device nodes, the kernel's log, wake-
# ups, audit.
_DROPPED = (16, 17, 22, 25, 27, 29, 30, 32, 33, 34, 35, 36, 37)


@dataclass(frozen=True)
class HostKeys:
    """The keys of one host's SSH server.

    Attributes:
        private: Its private key, in OpenSSH's format.
        authorized: The public key of the lab's client.
    """

    private: str
    authorized: str


@dataclass(frozen=True)
class Pipes:
    """How the child and the keeper take turns.

    Attributes:
        go: The child reads a byte here when it may go on.
        said: The child writes here: ``n`` when its namespaces exist, or an error's text.
        console: Where the host's services write.
    """

    go: int
    said: int
    console: int


def become_host(spec: LabSpec, host: HostSpec, folders: HostFolders, keys: HostKeys, pipes: Pipes) -> None:
    """Turn this process into process 1 of a host; never returns."""
    try:
        _become_host(spec, host, folders, keys, pipes)
    except BaseException as error:
        traceback.print_exc()
        os.write(pipes.said, f"e{error}".encode())
    finally:
        os._exit(1)


def _become_host(spec: LabSpec, host: HostSpec, folders: HostFolders, keys: HostKeys, pipes: Pipes) -> None:
    die_with_parent(signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    # The parent may have died before the death signal was asked for; then the pipe is at its end.
    _wait(pipes)
    unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP)
    os.write(pipes.said, b"n")
    _wait(pipes)
    run_lines(host_lines(spec, host))
    rootfs.enter(folders, needed=spec.needed, disk_mib=host.disk_mib, synthetic_sys=host.kind is not None)
    set_hostname(host.name)
    _configure(spec, host, keys)
    drop_capabilities(_DROPPED)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(pipes.console, 1)
    os.dup2(pipes.console, 2)
    program = spec.interpreter
    os.execve(program, [program, "-I", "-S", f"{_HOME}/init.py", f"{_HOME}/services.json"], _environment())


def _wait(pipes: Pipes) -> None:
    if os.read(pipes.go, 1) == b"":
        os._exit(1)


def _environment() -> dict[str, str]:
    return {"PATH": _PATH, "HOME": "/root", "USER": "root", "LANG": "C.UTF-8", "SHELL": "/bin/sh"}


def services(spec: LabSpec, host: HostSpec) -> list[dict[str, object]]:
    """Return what process 1 of a host supervises, as the content of its services file."""
    entries: list[dict[str, object]] = [
        {
            "name": "sshd",
            "argv": ["/usr/sbin/sshd", "-D", "-e", "-f", f"{_HOME}/sshd_config"],
            "environment": _environment(),
        }
    ]
    if host.kind is not None and spec.jtop:
        entries.append(
            {
                "name": "jtop",
                "argv": [f"{_HOME}/python", "-m", "jtop", "--force"],
                # The service asks Python which machine this is; its folder answers as a board's would.
                "environment": _environment() | {"JTOP_SERVICE": "True", "PYTHONPATH": f"{_HOME}/jtop"},
            }
        )
    return entries


def hosts_file(spec: LabSpec, own: HostSpec) -> str:
    """Return ``/etc/hosts`` of a host: every host of the lab by name."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost"]
    lines += [f"{host.address} {host.name}" for host in spec.hosts]
    lines.append(f"{spec.gateway} gateway")
    return "\n".join([*lines, ""])


def _configure(spec: LabSpec, host: HostSpec, keys: HostKeys) -> None:
    """Write the host's own files. The root is the host's by now."""
    files: dict[str, tuple[str, int]] = {
        f"{_HOME}/python": (f'#!/bin/sh\nexec {_quoted(spec.interpreter)} "$@"\n', 0o755),
        f"{_HOME}/init.py": ((Path(__file__).parent / "init.py").read_text(), 0o644),
        f"{_HOME}/services.json": (json.dumps(services(spec, host)), 0o644),
        f"{_HOME}/sshd_config": (_sshd_config(host), 0o600),
        f"{_HOME}/host_key": (keys.private, 0o600),
        f"{_HOME}/authorized_keys": (keys.authorized, 0o600),
        "/etc/hostname": (f"{host.name}\n", 0o644),
        "/etc/hosts": (hosts_file(spec, host), 0o644),
    }
    if host.kind is not None:
        board = host.kind
        files |= {
            "/etc/nv_tegra_release": (jetpack.tegra_release(board), 0o644),
            "/etc/nvpmodel.conf": (jetpack.nvpmodel_conf(board), 0o644),
            "/var/lib/nvpmodel/status": (jetpack.nvpmodel_status(board), 0o644),
            "/usr/sbin/nvpmodel": (jetpack.NVPMODEL, 0o755),
            "/usr/bin/jetson_clocks": (jetpack.JETSON_CLOCKS, 0o755),
            "/usr/local/bin/jtop": (f'#!/bin/sh\nexec {_HOME}/python -m jtop "$@"\n', 0o755),
            f"{_HOME}/jtop/sitecustomize.py": (_JTOP_SITE, 0o644),
        }
        _add_group("jtop")
        Path("/etc/fstab").touch()
    _write(files)
    _open_root_account()


_JTOP_SITE = '''"""Seen by the jtop service alone: it reads a board's files only on a board's processor."""

import platform

platform.machine = lambda: "aarch64"
'''


def _quoted(path: str) -> str:
    return "'" + path.replace("'", "'\\''") + "'"


def _sshd_config(host: HostSpec) -> str:
    return "\n".join(
        [
            f"Port {host.port}",
            f"ListenAddress {host.address}",
            f"HostKey {_HOME}/host_key",
            f"AuthorizedKeysFile {_HOME}/authorized_keys",
            "PermitRootLogin prohibit-password",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "UsePAM no",
            "UseDNS no",
            # Many logins at once are the rule here; the default drops them at random.
            "MaxStartups 200",
            "MaxSessions 100",
            "PrintMotd no",
            "PidFile none",
            "LogLevel ERROR",
            "AcceptEnv LANG LC_*",
            "Subsystem sftp internal-sftp",
            "",
        ]
    )


def _write(files: Mapping[str, tuple[str, int]]) -> None:
    for name, (text, mode) in files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        # What this machine has there may be a link to somewhere else.
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_text(text)
        path.chmod(mode)


def _add_group(name: str) -> None:
    path = Path("/etc/group")
    lines = path.read_text().splitlines()
    taken = {int(line.split(":")[2]) for line in lines if line.count(":") >= 3}
    if any(line.startswith(f"{name}:") for line in lines):
        return
    number = next(candidate for candidate in range(900, 0, -1) if candidate not in taken)
    path.write_text("\n".join([*lines, f"{name}:x:{number}:root", ""]))


def _open_root_account() -> None:
    """Let root in by key: an account that is locked (``!``) is refused without PAM."""
    path = Path("/etc/shadow")
    if not path.is_file():
        return
    lines = path.read_text().splitlines()
    fixed = []
    for line in lines:
        name, password, rest = [*line.split(":", 2), "", ""][:3]
        fixed.append(f"root:*:{rest}" if name == "root" and password.startswith("!") else line)
    if fixed != lines:
        path.write_text("\n".join([*fixed, ""]))
