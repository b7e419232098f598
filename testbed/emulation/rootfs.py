"""The filesystem of an emulated host: a private writable layer over this machine's own root.

:func:`enter` is called in a new mount namespace, where nothing it mounts can be seen from outside. The writable layers
are on a tmpfs of their own, so they are gone with the namespace. What must not be seen inside (other people's homes,
``~/.ssh``, a ``~/.testbed`` of this machine) is covered before the host starts.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.emulation.namespaces import (
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    mount,
    pivot_root,
    umount_detached,
)

__all__ = ["HostFolders", "covered", "enter", "extra_layers", "make_host_folders"]

_FRESH = ("/run", "/tmp", "/dev", "/proc", "/sys")  # noqa: S108
"""What every host has of its own; nothing of this machine shows there."""
_HOMES = ("/root", "/home")
_DEVICES = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}


@dataclass(frozen=True)
class HostFolders:
    """Where a host's parts are while it is being built, on the keeper's private tmpfs.

    Attributes:
        base: The folder of all of them.
    """

    base: Path

    @property
    def sys(self) -> Path:
        """The synthetic ``/sys``; the keeper writes there while the host runs."""
        return self.base / "sys"

    @property
    def shared(self) -> Path:
        """What the host has as ``/run/testbed``; the keeper reads the worker's busy counter there."""
        return self.base / "shared"

    @property
    def proc(self) -> Path:
        """The files that cover ``/proc/stat`` and ``/proc/meminfo``."""
        return self.base / "proc"

    @property
    def layers(self) -> Path:
        """Where the writable layers are mounted."""
        return self.base / "layers"

    @property
    def root(self) -> Path:
        """What becomes the host's root."""
        return self.base / "root"


def make_host_folders(base: Path) -> HostFolders:
    """Make the empty folders of a host."""
    folders = HostFolders(base)
    for path in (folders.sys, folders.shared, folders.proc, folders.layers, folders.root):
        path.mkdir(parents=True)
    return folders


def extra_layers(mountinfo: str, needed: Iterable[str]) -> list[str]:
    """Return the needed folders that the layer over the root does not show.

    Args:
        mountinfo: The text of ``/proc/self/mountinfo``.
        needed: Absolute paths of folders.

    Returns:
        Those on another filesystem than the root, and those below a folder that each host has of its own.
    """
    points = {line.split()[4] for line in mountinfo.splitlines()} - {"/"}
    hidden = points | set(_FRESH)
    return [path for path in needed if any(path == top or path.startswith(f"{top}/") for top in hidden)]


def covered(needed: Sequence[str], list_folder: Callable[[str], Sequence[str]]) -> Iterator[str]:
    """Yield what of this machine's homes a host must not see: all but the way to what it needs.

    Args:
        needed: Absolute paths of folders that must stay.
        list_folder: Returns the names in a folder.
    """

    def walk(folder: str) -> Iterator[str]:
        for name in list_folder(folder):
            path = f"{folder}/{name}"
            if any(keep == path or path.startswith(f"{keep}/") for keep in needed):
                continue
            if any(keep.startswith(f"{path}/") for keep in needed):
                yield from walk(path)
            else:
                yield path

    for home in _HOMES:
        if not any(home == keep or home.startswith(f"{keep}/") for keep in needed):
            yield from walk(home)


def enter(
    folders: HostFolders,
    *,
    needed: Sequence[str],
    disk_mib: int,
    synthetic_sys: bool,
) -> None:
    """Build the host's filesystem and make it this mount namespace's root.

    Args:
        folders: The host's folders; ``proc`` may hold files to cover those of ``/proc`` with.
        needed: Folders that must be seen inside.
        disk_mib: What the writable layers may hold.
        synthetic_sys: Whether ``/sys`` is the folder's, else the kernel's own, read-only.

    Raises:
        OSError: The kernel refused something; the message names it.
    """
    mount("testbed", str(folders.layers), "tmpfs", MS_NOSUID, f"size={disk_mib}m,mode=0755")
    _cover_homes(folders.layers / "root", needed)
    _overlay("/", folders.layers / "root", folders.root)
    root = str(folders.root)
    _fresh_folders(root)
    mounts = Path("/proc/self/mountinfo").read_text()
    for number, path in enumerate(extra_layers(mounts, needed)):
        target = Path(f"{root}{path}")
        target.mkdir(parents=True, exist_ok=True)
        _overlay(path, folders.layers / f"extra{number}", target)
    _bind(str(folders.shared), f"{root}/run/testbed")
    _proc(root, folders.proc)
    if synthetic_sys:
        _synthetic_sys(root, folders.sys)
    else:
        mount("sysfs", f"{root}/sys", "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    pivot_root(root)


def _overlay(lower: str, layer: Path, target: Path) -> None:
    upper, work = layer / "upper", layer / "work"
    upper.mkdir(parents=True, exist_ok=True)
    work.mkdir()
    _like(lower, upper)
    # A colon or a comma in a path would end it in the mount options.
    if set(",:\\") & set(f"{lower}{layer}"):
        raise OSError(f"cannot lay an overlay over {lower}: its path holds a comma, a colon or a backslash")
    mount("overlay", str(target), "overlay", 0, f"lowerdir={lower},upperdir={upper},workdir={work}")


def _like(original: str, copy: Path) -> None:
    """Give a folder of a writable layer the mode and owner of the one it covers."""
    found = os.stat(original)
    copy.chmod(stat.S_IMODE(found.st_mode))
    os.chown(copy, found.st_uid, found.st_gid)


def _cover_homes(layer: Path, needed: Sequence[str]) -> None:
    """Put the overlay's mark for a deleted file (a device with number 0) over what must not be seen."""

    def list_folder(path: str) -> list[str]:
        return sorted(os.listdir(path)) if os.path.isdir(path) and not os.path.islink(path) else []

    upper = layer / "upper"
    for path in covered(needed, list_folder):
        mark = Path(f"{upper}{path}")
        missing = [parent for parent in reversed(mark.parents) if not parent.exists()]
        for parent in missing:
            parent.mkdir()
            if parent != upper and upper in parent.parents:
                _like("/" + str(parent.relative_to(upper)), parent)
        os.mknod(mark, stat.S_IFCHR, os.makedev(0, 0))


def _bind(source: str, target: str, *, read_only: bool = False) -> None:
    mount(source, target, "", MS_BIND | MS_REC)
    if read_only:
        mount(source, target, "", MS_BIND | MS_REMOUNT | MS_RDONLY)


def _fresh_folders(root: str) -> None:
    for name, mode in (("run", "0755"), ("tmp", "1777"), ("dev", "0755")):
        # Device nodes work on /dev alone.
        flags = MS_NOSUID | (0 if name == "dev" else MS_NODEV)
        os.makedirs(f"{root}/{name}", exist_ok=True)
        mount("testbed", f"{root}/{name}", "tmpfs", flags, f"mode={mode}")
    for folder in ("run/sshd", "run/testbed", "run/lock", "dev/pts", "dev/shm"):
        os.makedirs(f"{root}/{folder}")
    os.umask(0)
    for name, minor in _DEVICES.items():
        os.mknod(f"{root}/dev/{name}", 0o666 | stat.S_IFCHR, os.makedev(1, minor))
    os.mknod(f"{root}/dev/tty", 0o666 | stat.S_IFCHR, os.makedev(5, 0))
    os.umask(0o022)
    mount("devpts", f"{root}/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620")
    mount("testbed", f"{root}/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    for name, target in {"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0"}.items():
        os.symlink(target, f"{root}/dev/{name}")
    os.symlink("/proc/self/fd/1", f"{root}/dev/stdout")
    os.symlink("/proc/self/fd/2", f"{root}/dev/stderr")


def _proc(root: str, covers: Path) -> None:
    os.makedirs(f"{root}/proc", exist_ok=True)
    mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for cover in covers.iterdir():
        _bind(str(cover), f"{root}/proc/{cover.name}")
    # Settings of the whole machine can be read and not written; those of the host's own network can.
    _bind(f"{root}/proc/sys", f"{root}/proc/sys", read_only=True)
    _bind(f"{root}/proc/sys/net", f"{root}/proc/sys/net")
    mount("testbed", f"{root}/proc/sys/net", "", MS_BIND | MS_REMOUNT)
    if os.path.exists(f"{root}/proc/sysrq-trigger"):
        _bind("/dev/null", f"{root}/proc/sysrq-trigger")


def _synthetic_sys(root: str, tree: Path) -> None:
    os.makedirs(f"{root}/sys", exist_ok=True)
    _bind(str(tree), f"{root}/sys")
    # The kernel's own sysfs shows the interfaces of the network namespace that mounts it.
    kernel = f"{root}/tmp/.sys"
    os.mkdir(kernel)
    mount("sysfs", kernel, "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for folder in ("class/net", "devices/virtual/net"):
        _bind(f"{kernel}/{folder}", f"{root}/sys/{folder}")
    umount_detached(kernel)
    os.rmdir(kernel)
