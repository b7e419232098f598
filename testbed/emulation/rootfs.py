"""The filesystem of an emulated host: a private writable layer over this machine's own root.

:func:`enter` is called in a new mount namespace, where nothing it mounts can be seen from outside. The
writable layers are on a tmpfs of their own, so they are gone with the namespace. What must not be seen
inside (other people's homes, ``~/.ssh``, a ``~/.testbed`` of this machine) is covered before the host
starts.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
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

_FRESH = ("/run", "/tmp", "/dev", "/proc", "/sys")
"""What every host has of its own; nothing of this machine shows there."""
_HOMES = ("/root", "/home")
_SAFE = MS_NOSUID | MS_NODEV | MS_NOEXEC
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
    def boot_id(self) -> Path:
        """What covers the kernel's boot id: a new one each time that the host starts."""
        return self.base / "boot_id"

    @property
    def is_new(self) -> bool:
        """Whether the host has not been up before; then its writable layers are empty."""
        return not (self.layers / "root").exists()

    @property
    def root(self) -> Path:
        """What becomes the host's root."""
        return self.base / "root"


def make_host_folders(base: Path, *, disk_mib: int, shared_mode: int = 0o755) -> HostFolders:
    """Make the empty folders of a host, with room for its writable layers, which stay when it starts again.

    Args:
        base: Where they go.
        disk_mib: What the writable layers may hold.
        shared_mode: The mode of the folder that the host shares with the keeper.
    """
    folders = HostFolders(base)
    for path in (folders.sys, folders.shared, folders.proc, folders.layers, folders.root):
        path.mkdir(parents=True)
    folders.shared.chmod(shared_mode)
    mount("testbed", folders.layers, "tmpfs", MS_NOSUID, f"size={disk_mib}m,mode=0755")
    return folders


def extra_layers(mountinfo: str, needed: Sequence[str]) -> list[str]:
    """Return the needed folders that the layer over the root does not show.

    Args:
        mountinfo: The text of ``/proc/self/mountinfo``.
        needed: Absolute paths of folders.

    Returns:
        Those on another filesystem than the root, and those below a folder that each host has of its own; outer
        folders before inner ones, and an inner one only where its outer one does not show it.
    """
    points = {line.split()[4] for line in mountinfo.splitlines()} | set(_FRESH)

    def covering(path: str) -> str:
        """Return the last mount on the way to a path."""
        return max((point for point in points if _inside(path, point)), key=len, default="/")

    found: list[str] = []
    for path in sorted(needed):
        shown = any(_inside(path, outer) and covering(path) == covering(outer) for outer in found)
        if covering(path) != "/" and not shown:
            found.append(path)
    return found


def _inside(path: str, outer: str) -> bool:
    return path == outer or path.startswith(outer.rstrip("/") + "/")


def covered(needed: Sequence[str], list_folder: Callable[[str], Sequence[str]]) -> Iterator[str]:
    """Yield what of this machine's homes a host must not see: all but the way to what it needs.

    Args:
        needed: Absolute paths of folders that must stay.
        list_folder: Returns the names in a folder.
    """

    def walk(folder: str) -> Iterator[str]:
        for name in list_folder(folder):
            path = f"{folder}/{name}"
            if any(_inside(path, keep) for keep in needed):
                continue
            if any(_inside(keep, path) for keep in needed):
                yield from walk(path)
            else:
                yield path

    for home in _HOMES:
        if not any(_inside(home, keep) for keep in needed):
            yield from walk(home)


def enter(
    folders: HostFolders,
    *,
    needed: Sequence[str],
    placed: Mapping[str, str],
    disk_mib: int,
    synthetic_sys: bool,
) -> None:
    """Build the host's filesystem and make it this mount namespace's root.

    Args:
        folders: The host's folders; ``proc`` may hold files to cover those of ``/proc`` with.
        needed: Folders that must be seen inside.
        placed: Folders of this machine that are seen in another place, by that place.
        disk_mib: What ``/run`` and ``/tmp`` may hold, each.
        synthetic_sys: Whether ``/sys`` is the folder's, else the kernel's own, read-only.

    Raises:
        OSError: The kernel refused something; the message names it.
    """
    if folders.is_new:
        _cover_homes(folders.layers / "root", needed)
    root = folders.root
    _overlay("/", folders.layers / "root", root)
    _fresh_folders(root, disk_mib)
    mounts = Path("/proc/self/mountinfo").read_text()
    for number, path in enumerate(extra_layers(mounts, needed)):
        target = _below(root, path)
        target.mkdir(parents=True, exist_ok=True)
        _overlay(path, folders.layers / f"extra{number}", target)
    for number, (place, path) in enumerate(sorted(placed.items())):
        if place != path:
            _below(root, place).mkdir(parents=True, exist_ok=True)
            _overlay(path, folders.layers / f"placed{number}", _below(root, place))
    _bind(folders.shared, root / "run/testbed")
    _proc(root / "proc", folders)
    if synthetic_sys:
        _synthetic_sys(root, folders.sys)
    else:
        mount("sysfs", root / "sys", "sysfs", MS_RDONLY | _SAFE)
    pivot_root(root)


def _below(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _overlay(lower: str, layer: Path, target: Path) -> None:
    upper, work = layer / "upper", layer / "work"
    upper.mkdir(parents=True, exist_ok=True)
    if not work.exists():
        work.mkdir()
        _like(lower, upper)
    # A colon or a comma in a path would end it in the mount options.
    if set(",:\\") & set(f"{lower}{layer}"):
        raise OSError(f"cannot lay an overlay over {lower}: its path holds a comma, a colon or a backslash")
    mount("overlay", target, "overlay", 0, f"lowerdir={lower},upperdir={upper},workdir={work}")


def _like(original: str, copy: Path) -> None:
    """Give a folder of a writable layer the mode and owner of the one it covers."""
    found = Path(original).stat()
    copy.chmod(stat.S_IMODE(found.st_mode))
    os.chown(copy, found.st_uid, found.st_gid)


def _cover_homes(layer: Path, needed: Sequence[str]) -> None:
    """Put the overlay's mark for a deleted file (a device with number 0) over what must not be seen."""

    def list_folder(name: str) -> list[str]:
        path = Path(name)
        return (
            sorted(entry.name for entry in path.iterdir()) if path.is_dir() and not path.is_symlink() else []
        )

    upper = layer / "upper"
    upper.mkdir(parents=True)
    for path in covered(needed, list_folder):
        mark = _below(upper, path)
        for parent in [parent for parent in reversed(mark.parents) if not parent.exists()]:
            parent.mkdir()
            _like(f"/{parent.relative_to(upper)}", parent)
        os.mknod(mark, stat.S_IFCHR, os.makedev(0, 0))


def _bind(source: Path, target: Path, *, read_only: bool = False) -> None:
    mount(source, target, "", MS_BIND | MS_REC)
    if read_only:
        mount(source, target, "", MS_BIND | MS_REMOUNT | MS_RDONLY)


def _fresh_folders(root: Path, disk_mib: int) -> None:
    for name, mode in (("run", "0755"), ("tmp", "1777"), ("dev", "0755")):
        # Device nodes work on /dev alone.
        flags = MS_NOSUID | (0 if name == "dev" else MS_NODEV)
        (root / name).mkdir(exist_ok=True)
        mount("testbed", root / name, "tmpfs", flags, f"size={disk_mib}m,mode={mode}")
    for folder in ("run/sshd", "run/testbed", "run/lock", "dev/net", "dev/pts", "dev/shm"):
        (root / folder).mkdir()
    device = root / "dev"
    mask = os.umask(0)
    for name, minor in _DEVICES.items():
        os.mknod(device / name, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
    os.mknod(device / "tty", 0o666 | stat.S_IFCHR, os.makedev(5, 0))
    if Path("/dev/net/tun").exists():  # each network namespace has tunnels of its own
        os.mknod(device / "net/tun", 0o666 | stat.S_IFCHR, os.makedev(10, 200))
    os.umask(mask)
    mount("devpts", device / "pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620")
    mount("testbed", device / "shm", "tmpfs", MS_NOSUID | MS_NODEV, f"size={disk_mib}m,mode=1777")
    (device / "ptmx").symlink_to("pts/ptmx")
    (device / "fd").symlink_to("/proc/self/fd")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        (device / name).symlink_to(f"/proc/self/fd/{number}")


def _proc(proc: Path, folders: HostFolders) -> None:
    proc.mkdir(exist_ok=True)
    mount("proc", proc, "proc", _SAFE)
    for cover in folders.proc.iterdir():
        _bind(cover, proc / cover.name)
    # Settings of the whole machine can be read and not written; those of the host's own network can.
    _bind(proc / "sys", proc / "sys", read_only=True)
    _bind(proc / "sys/net", proc / "sys/net")
    mount("proc", proc / "sys/net", "", MS_BIND | MS_REMOUNT | _SAFE)
    _bind(folders.boot_id, proc / "sys/kernel/random/boot_id", read_only=True)
    if (proc / "sysrq-trigger").exists():
        _bind(Path("/dev/null"), proc / "sysrq-trigger")


def _synthetic_sys(root: Path, tree: Path) -> None:
    (root / "sys").mkdir(exist_ok=True)
    _bind(tree, root / "sys")
    # The kernel's own sysfs shows the interfaces of the network namespace that mounts it.
    kernel = root / "tmp/.sys"
    kernel.mkdir()
    mount("sysfs", kernel, "sysfs", MS_RDONLY | _SAFE)
    for folder in ("class/net", "devices/virtual/net"):
        _bind(kernel / folder, root / "sys" / folder)
    umount_detached(kernel)
    kernel.rmdir()
