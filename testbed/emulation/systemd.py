"""A real systemd as process 1 of an emulated host, with what a container gives it instead of a machine's hardware.

systemd finds control groups of its own below the host's (version 1 or 2, as this machine has them), starts what the
host is made of as units, and nothing of what this machine has enabled. ``systemctl reboot`` reboots the host.
"""

from __future__ import annotations

import grp
import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from testbed.emulation.namespaces import MS_NODEV, MS_NOEXEC, MS_NOSUID, mount

__all__ = ["ENVIRONMENT", "PROGRAM", "clear_units", "machine_id", "mount_groups", "unit_files", "unit_text"]

PROGRAM = "/lib/systemd/systemd"
ENVIRONMENT = {"container": "testbed"}
"""How systemd knows that hardware, mounts and the clock are not its own."""
_UNITS = Path("/etc/systemd/system")
_KEPT = ("dbus.", "dev-mqueue.", "systemd-journal")
"""Of the units that every boot of a Debian starts: what a host needs."""
LINGER = """[Unit]
Description=logind at boot, as machines have it, where a user's services are to run without a login
ConditionDirectoryNotEmpty=/var/lib/systemd/linger

[Service]
Type=oneshot
ExecStart=/bin/systemctl --no-block start systemd-logind.service

[Install]
WantedBy=multi-user.target
"""
_SAFE = MS_NOSUID | MS_NODEV | MS_NOEXEC


def machine_id(lab: str, host: str) -> str:
    """Return a host's ``/etc/machine-id``, which depends on nothing but the names."""
    return hashlib.sha256(f"machine/{lab}/{host}".encode()).hexdigest()[:32]


def unit_text(name: str, argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return the unit of one of the host's services.

    Args:
        name: The service.
        argv: Its command line, with the program's whole path.
        environment: Its environment.
    """
    lines = ["[Unit]", f"Description={name} of an emulated host", "", "[Service]"]
    lines += [f'Environment="{key}={value}"' for key, value in sorted(environment.items())]
    lines += [
        f"ExecStart={' '.join(argv)}",
        "Restart=always",
        "RestartSec=0.2",
        # A server that is confined to few system calls cannot carry a library that asks for more.
        *(["UnsetEnvironment=LD_PRELOAD"] if name == "ssh" else []),
        # What was started over SSH goes on when the server starts again.
        "KillMode=process" if name == "ssh" else "KillMode=control-group",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
        "",
    ]
    return "\n".join(lines)


def unit_files(services: Sequence[Mapping[str, object]], folder: Path = _UNITS) -> dict[str, str]:
    """Return the unit files of a host's services by their paths."""
    files = {}
    for service in services:
        name = {"sshd": "ssh"}.get(str(service["name"]), str(service["name"]))
        argv, environment = service["argv"], service["environment"]
        assert isinstance(argv, list)
        assert isinstance(environment, dict)
        files[f"{folder}/{name}.service"] = unit_text(name, argv, environment)
    files[f"{folder}/linger.service"] = LINGER
    files["/etc/systemd/journald.conf.d/testbed.conf"] = (
        "[Journal]\nStorage=persistent\nSystemMaxUse=16M\nForwardToSyslog=no\nForwardToKMsg=no\n"
    )
    return files


def clear_units(names: Sequence[str]) -> None:
    """Leave of this machine's units those that a host needs, and enable its own.

    Args:
        names: The host's own units, which are written.
    """
    keep = set(names)
    for entry in list(_UNITS.iterdir()) if _UNITS.is_dir() else []:
        if entry.name in keep:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    stock = Path("/lib/systemd")
    for link in stock.glob("system/*.target.wants/*"):
        if not link.name.startswith(_KEPT):
            link.unlink()
    for generator in stock.glob("system-generators/*"):
        generator.unlink()
    wants = _UNITS / "multi-user.target.wants"
    wants.mkdir()
    for name in names:
        (wants / name).symlink_to(_UNITS / name)
    # The first user of an Ubuntu reads the journal, by the group adm.
    journal = Path("/var/log/journal")
    shutil.rmtree(journal, ignore_errors=True)
    journal.mkdir(parents=True)
    os.chown(journal, 0, grp.getgrnam("adm").gr_gid)
    journal.chmod(0o2755)
    # logind makes it when it starts, which on a machine is at boot.
    Path("/var/lib/systemd/linger").mkdir(parents=True, exist_ok=True)
    # Whatever this machine boots into, a host has no desktop.
    (_UNITS / "default.target").symlink_to("/lib/systemd/system/multi-user.target")


def mount_groups(controllers: Sequence[str]) -> None:
    """Mount the host's own part of the control groups. The control group namespace is the host's by now.

    Args:
        controllers: The hierarchies of version 1, such as ``memory`` and ``name=systemd``, and ``cgroup2`` where
            version 2 is beside them; none for version 2 alone.
    """
    top = Path("/sys/fs/cgroup")
    if not controllers:
        mount("cgroup2", top, "cgroup2", _SAFE)
        return
    mount("tmpfs", top, "tmpfs", _SAFE, "mode=0755,size=1m")
    for options in controllers:
        if options == "cgroup2":
            (top / "unified").mkdir()
            mount("cgroup2", top / "unified", "cgroup2", _SAFE)
            continue
        named = options.startswith("name=")
        folder = top / options.removeprefix("name=")
        folder.mkdir()
        mount("cgroup", folder, "cgroup", _SAFE, f"none,{options},xattr" if named else options)
