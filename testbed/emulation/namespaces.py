"""The few system calls of Linux that Python 3.11 does not have: namespaces, mounts, prctl.

Nothing here keeps state. Every failure is an ``OSError`` that names the call and its arguments.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "CLONE_NEWCGROUP",
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "CLONE_NEWUTS",
    "MS_BIND",
    "MS_NODEV",
    "MS_NOEXEC",
    "MS_NOSUID",
    "MS_PRIVATE",
    "MS_RDONLY",
    "MS_REC",
    "MS_REMOUNT",
    "become_subreaper",
    "die_with_parent",
    "drop_capabilities",
    "effective_capabilities",
    "mount",
    "name_process",
    "pivot_root",
    "set_hostname",
    "setns",
    "umount_detached",
    "unshare",
]

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18

_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Move this process into new namespaces."""
    _check(_libc.unshare(flags), f"unshare({flags:#x})")


def setns(descriptor: int, kind: int) -> None:
    """Join the namespace behind a descriptor.

    Args:
        descriptor: An open file below ``/proc/<pid>/ns``.
        kind: The ``CLONE_NEW...`` flag that it must match.
    """
    _check(_libc.setns(descriptor, kind), f"setns({kind:#x})")


def mount(source: str | Path, target: str | Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Mount a filesystem, or bind, remount or change the propagation of one."""
    result = _libc.mount(
        str(source).encode(),
        str(target).encode(),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    _check(result, f"mount {kind or 'bind'} {source} on {target}" + (f" ({options})" if options else ""))


def umount_detached(target: str | Path) -> None:
    """Take a mount away; what still uses it keeps it until it is done."""
    _check(_libc.umount2(str(target).encode(), _MNT_DETACH), f"umount {target}")


def pivot_root(new_root: Path) -> None:
    """Make a mounted folder the root of this mount namespace and drop the old root."""
    number = _PIVOT_ROOT.get(platform.machine())
    if number is None:
        raise OSError(38, f"pivot_root: no system call number known for {platform.machine()}")
    os.chdir(new_root)
    # The old root is stacked under the new one at the same place, so that it needs no folder of its own.
    _check(_libc.syscall(number, b".", b"."), f"pivot_root {new_root}")
    umount_detached(".")
    os.chdir("/")


def set_hostname(name: str) -> None:
    """Set the host name of this UTS namespace."""
    data = name.encode()
    _check(_libc.sethostname(data, len(data)), f"sethostname {name}")


def die_with_parent(signal_number: int) -> None:
    """Ask for a signal at the death of the thread that forked this process."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def become_subreaper() -> None:
    """Become the parent of every descendant whose own parent ends."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER)")


def name_process(name: str) -> None:
    """Set the short name that ``ps -o comm`` shows."""
    _check(_libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0), "prctl(PR_SET_NAME)")


def drop_capabilities(numbers: Iterable[int]) -> None:
    """Make capabilities unreachable for every program that this process will execute."""
    for number in numbers:
        result = _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
        # An older kernel does not know the newest capabilities; then there is nothing to drop.
        if result != 0 and ctypes.get_errno() != 22:
            _check(result, f"prctl(PR_CAPBSET_DROP, {number})")


def effective_capabilities(status: str) -> int:
    """Return the effective capability mask from the text of ``/proc/self/status``."""
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    raise ValueError("no CapEff line in /proc/self/status")
