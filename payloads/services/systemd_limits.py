"""What a service under systemd may not do: the properties of its unit that take rights away and set limits.

Root's services run in the system's manager, which can close the file system to them and take away what makes root
almighty. Another user's own manager cannot, and need not: that user may do little in any case. What both have: no way
to more rights (``NoNewPrivileges``), a bound on memory, no core dumps (they would hold keys), and a place before all
other processes when memory runs out, so that SSH is not what dies.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import List

__all__ = ["caches", "limits"]

MEMORY_MAX = "90%"
"""Of the machine's memory: a service that takes all of it would take the board's SSH with it."""

_ALWAYS = (
    "NoNewPrivileges=yes",
    f"MemoryMax={MEMORY_MAX}",
    "TasksMax=4096",
    "OOMScoreAdjust=500",
    "LimitCORE=0",
    "UMask=0077",
    "LockPersonality=yes",
    "RestrictSUIDSGID=yes",
    "SystemCallArchitectures=native",
)
_SYSTEM = (
    "ProtectSystem=strict",
    "ProtectHome=read-only",
    "PrivateTmp=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    # Managers and container engines would do for root whatever this unit may not do itself.
    "InaccessiblePaths=-/run/systemd/private",
    "InaccessiblePaths=-/run/dbus/system_bus_socket",
    "InaccessiblePaths=-/run/docker.sock",
    "InaccessiblePaths=-/run/containerd",
    # Root without capabilities still owns these.
    *(f"InaccessiblePaths=-{path}" for path in ("/etc/ssh", "/etc/shadow", "/etc/gshadow", "/etc/sudoers.d")),
    # Disks as such are closed. All else is named, since ProtectClock= of older systemds would close the GPU as well.
    "DevicePolicy=closed",
    "DeviceAllow=char-* rw",
)
_ORDINARY = (
    "CapabilityBoundingSet=",
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
)
# The link daemon sets queueing disciplines, loads their modules, makes interfaces of its own, and tries the kernel's
# parts out in a network namespace, for which there is but the widest of capabilities: what else that opens is closed.
_LINKS = (
    "CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_SYS_MODULE CAP_SYS_ADMIN",
    "RestrictNamespaces=net",
    "SystemCallFilter=~@mount @swap @reboot @raw-io",
)
_WRITABLE = ("-/run/testbed",)


def limits(name: str, *, system: bool, home: Path, user_home: Path) -> list[str]:
    """Return the properties that bound a service.

    Args:
        name: The service's name: the link daemon keeps the rights to the network that it is there for.
        system: Whether it runs in the system's manager, as root.
        home: Testbed's own folder, which it may write to.
        user_home: The user's home, whose keys for SSH it may not read.
    """
    if not system:
        return list(_ALWAYS)
    own = _LINKS if name == "linkd" else _ORDINARY
    writable = " ".join([str(home), *_WRITABLE])
    return [
        *_ALWAYS,
        *_SYSTEM,
        f"InaccessiblePaths=-{user_home / '.ssh'}",
        f"ReadWritePaths={writable}",
        *_python_in_sight(),
        *own,
    ]


def _python_in_sight() -> List[str]:
    """Return what keeps this Python in sight where it stands in a folder that a unit has of its own (PrivateTmp)."""
    folders = {Path(sys.prefix), Path(sys.base_prefix)}
    own = Path("/tmp"), Path("/var/tmp")
    return [
        f"BindReadOnlyPaths={folder}"
        for folder in sorted(folders)
        if any(one in folder.parents for one in own)
    ]


def caches(home: Path) -> dict[str, str]:
    """Return the environment that leads caches, such as that of CUDA's compiler, to testbed's own folder.

    Args:
        home: Testbed's own folder; the user's home is closed to a service of root.
    """
    return {"XDG_CACHE_HOME": str(home / "cache"), "CUDA_CACHE_PATH": str(home / "cache" / "cuda")}
