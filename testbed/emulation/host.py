"""From a forked child to a running host: namespaces, filesystem, configuration files, process 1.

:func:`become_host` is what the keeper calls in the child that will be the host's process 1. It never returns.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.emulation import jetpack, rootfs, system, systemd
from testbed.emulation.accounts import make_accounts
from testbed.emulation.clock import clock_environment, clock_files, find_library, without_sleep
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
_CLOCK_LIBRARY = f"{_HOME}/clock.so"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Loading modules, raw input and output, the clock, device nodes, setting up audit, the kernel's log, wake-ups.
_DROPPED = (16, 17, 25, 27, 30, 32, 33, 34, 35, 36, 37)


@dataclass(frozen=True)
class HostKeys:
    """The keys of one host's SSH server.

    Attributes:
        private: Its private key, in OpenSSH's format.
        public: Its public key, as its console would show it.
        authorized: The public key of the lab's client.
        password_hash: The password of users whose sudo asks for one, as in ``/etc/shadow``.
    """

    private: str
    public: str
    authorized: str
    password_hash: str = ""


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


def become_host(
    spec: LabSpec,
    host: HostSpec,
    folders: HostFolders,
    keys: HostKeys,
    pipes: Pipes,
    *,
    hierarchies: Sequence[str],
) -> None:
    """Turn this process into process 1 of a host; never returns.

    A host that has been up before, with the same folders, keeps what is on its disk.

    Args:
        spec: The lab.
        host: The host.
        folders: Its parts.
        keys: Its keys.
        pipes: How to take turns with the keeper.
        hierarchies: The control groups of version 1 that a systemd there gets; none for version 2.
    """
    try:
        _become_host(spec, host, folders, keys, pipes, hierarchies)
    except BaseException as error:
        traceback.print_exc()
        os.write(pipes.said, f"e{error}".encode())
    finally:
        os._exit(1)


def _become_host(
    spec: LabSpec,
    host: HostSpec,
    folders: HostFolders,
    keys: HostKeys,
    pipes: Pipes,
    hierarchies: Sequence[str],
) -> None:
    die_with_parent(signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    # The parent may have died before the death signal was asked for; then the pipe is at its end.
    _wait(pipes)
    unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP)
    os.write(pipes.said, b"n")
    _wait(pipes)
    run_lines(host_lines(spec, host))
    first = folders.is_new
    interpreter = host.python
    rootfs.enter(
        folders,
        needed=spec.needed,
        placed={interpreter.on_board: interpreter.prefix} if interpreter else {},
        disk_mib=host.disk_mib,
        synthetic_sys=host.kind is not None,
    )
    set_hostname(host.name)
    if first:
        _configure(spec, host, keys)
    if host.systemd:
        systemd.mount_groups(hierarchies)
    drop_capabilities(_DROPPED)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(pipes.console, 1)
    os.dup2(pipes.console, 2)
    if host.systemd:
        environment = _environment() | systemd.ENVIRONMENT
        os.execve(systemd.PROGRAM, [systemd.PROGRAM, "--system", "--show-status=no"], environment)
    program = spec.interpreter
    os.execve(program, [program, "-I", "-S", f"{_HOME}/init.py", f"{_HOME}/services.json"], _environment())


def _wait(pipes: Pipes) -> None:
    if os.read(pipes.go, 1) == b"":
        os._exit(1)


def _environment() -> dict[str, str]:
    return {"PATH": _PATH, "HOME": "/root", "USER": "root", "LANG": "C.UTF-8", "SHELL": "/bin/sh"}


def _clock(host: HostSpec) -> dict[str, str]:
    return clock_environment(host.clock_offset_s, _CLOCK_LIBRARY if find_library() else None)


def services(spec: LabSpec, host: HostSpec) -> list[dict[str, object]]:
    """Return what process 1 of a host supervises, as the content of its services file."""
    entries: list[dict[str, object]] = [
        {
            "name": "sshd",
            "argv": ["/usr/sbin/sshd", "-D", "-e", "-f", f"{_HOME}/sshd_config"],
            "environment": _environment(),
        }
    ]
    if host.jtop:
        entries.append(
            {
                "name": "jtop",
                "argv": [f"{_HOME}/python", "-m", "jtop", "--force"],
                # The service asks Python which machine this is; its folder answers as a board's would.
                "environment": _environment()
                | _clock(host)
                | {"JTOP_SERVICE": "True", "PYTHONPATH": f"{_HOME}/jtop"},
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
        "/etc/ssh/ssh_host_ed25519_key.pub": (f"{keys.public}\n", 0o644),
        # sshd reads it as the user who logs in.
        f"{_HOME}/authorized_keys": (keys.authorized, 0o644),
        "/etc/hostname": (f"{host.name}\n", 0o644),
        "/etc/hosts": (hosts_file(spec, host), 0o644),
    }
    if host.kind is not None:
        board = host.kind
        files |= {
            "/etc/nv_tegra_release": (system.tegra_release(board), 0o644),
            system.nvpmodel_file(board): (jetpack.nvpmodel_conf(board), 0o644),
            "/var/lib/nvpmodel/status": (jetpack.nvpmodel_status(board), 0o644),
            "/usr/sbin/nvpmodel": (jetpack.NVPMODEL, 0o755),
            "/usr/bin/jetson_clocks": (jetpack.JETSON_CLOCKS, 0o755),
            "/usr/local/bin/jtop": (f'#!/bin/sh\nexec {_HOME}/python -m jtop "$@"\n', 0o755),
            f"{_HOME}/jtop/sitecustomize.py": (_JTOP_SITE, 0o644),
        }
        Path("/etc/fstab").touch()
    if host.systemd:
        units = systemd.unit_files(services(spec, host))
        files |= {path: (text, 0o644) for path, text in units.items()}
        files["/etc/machine-id"] = (systemd.machine_id(spec.lab, host.name) + "\n", 0o444)
    else:
        files |= {f"/usr/sbin/{name}": (jetpack.REBOOT, 0o755) for name in ("reboot", "shutdown", "poweroff")}
    files |= clock_files(_clock(host))
    if host.release is not None:
        files["/etc/os-release"] = (system.os_release(host.release), 0o644)
    _write(files)
    if _clock(host) and (library := find_library()):
        Path(_CLOCK_LIBRARY).write_bytes(without_sleep(Path(library).read_bytes()))
        Path(_CLOCK_LIBRARY).chmod(0o644)
    if host.kind is not None:
        _link("/etc/nvpmodel.conf", system.nvpmodel_file(host.kind))
    if host.systemd:
        for name in ("reboot", "shutdown", "poweroff"):
            # This machine may have systemd without the programs that other systems have for the same.
            if not Path(f"/usr/sbin/{name}").exists():
                _link(f"/usr/sbin/{name}", "/bin/systemctl")
        systemd.clear_units([Path(path).name for path in files if path.endswith(".service")])
    _place_python(host)
    make_accounts(host.user, host.sudo, keys.password_hash, board=host.kind is not None)
    if host.user != "root":
        _open_ways(spec.needed)


def _place_python(host: HostSpec) -> None:
    """Let ``python3`` be the interpreter that the board's JetPack comes with."""
    if host.python is None:
        return
    program = f"{host.python.on_board}/{host.python.program}"
    for name in {"python3", Path(program).name}:
        if f"/usr/bin/{name}" != program:
            _link(f"/usr/bin/{name}", program)
    for library in Path(host.python.on_board, "lib").glob("libpython3.*.so*"):
        # A program that has its library beside it looks for it by the path that it was built for.
        with contextlib.suppress(FileExistsError):
            Path("/usr/lib", library.name).symlink_to(library)


def _link(path: str, target: str) -> None:
    Path(path).unlink(missing_ok=True)
    Path(path).symlink_to(target)


def _open_ways(needed: Sequence[str]) -> None:
    """Let an ordinary user come to the folders that every host needs, of which some may lie in root's home."""
    for folder in needed:
        for path in [*Path(folder).parents, Path(folder)]:
            mode = stat.S_IMODE(path.stat().st_mode)
            if not mode & 0o001:
                path.chmod(mode | 0o011)


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
            # As on a Jetson: programs for root are on everybody's path.
            "SetEnv " + " ".join(f"{key}={value}" for key, value in {"PATH": _PATH, **_clock(host)}.items()),
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
