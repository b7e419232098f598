"""CPU and memory limits of emulated hosts, by control groups of version 1 or 2.

:func:`find_layout` reads how this machine has its control groups mounted (some have both versions at
once) and says where a lab's groups go; :class:`Group` makes, reads and removes one host's. Where a
controller cannot be had, as in a container without the right to it, the layout carries the reason and the
host runs without that limit.

Groups outlive their processes, unlike everything else of a lab: whoever ends a lab calls :func:`remove_tree`.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Group", "Layout", "find_layout", "lab_folders", "memory_of", "remove_tree", "usage_ns"]

_PERIOD_US = 20_000
"""A short period: a host at its limit waits for milliseconds, not for a tenth of a second."""
_SETTLE_S = 5.0


@dataclass(frozen=True)
class Layout:
    """Where control groups can be made on this machine.

    Attributes:
        cpu: The parent folder for CPU limits, or None.
        usage: The parent folder for CPU accounting, or None.
        memory: The parent folder for memory limits, or None.
        unified: Whether they are of version 2, and then all one folder.
        others: The parent folders in every other hierarchy, with its mount options (``cgroup2`` is version 2 beside
            version 1): only a host whose process 1 manages groups itself needs groups there.
        problems: What cannot be had, and why.
    """

    cpu: Path | None
    usage: Path | None
    memory: Path | None
    unified: bool
    others: tuple[tuple[str, Path], ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def parents(self) -> tuple[Path, ...]:
        """The different parent folders."""
        return tuple(dict.fromkeys(path for path in (self.cpu, self.usage, self.memory) if path is not None))

    @property
    def hierarchies(self) -> tuple[str, ...]:
        """All hierarchies of version 1, and of version 2 beside them, as mount options; none for version 2 alone."""
        if self.unified:
            return ()
        together: dict[Path, list[str]] = {}
        for name, path in (("cpu", self.cpu), ("cpuacct", self.usage), ("memory", self.memory)):
            if path is not None:
                together.setdefault(path, []).append(name)
        return (*(",".join(names) for names in together.values()), *(name for name, _ in self.others))


def find_layout(root: Path = Path("/")) -> Layout:
    """Find out where this machine's control groups are.

    Args:
        root: The root of the filesystem, for tests.
    """
    mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    own = dict(_own_groups((root / "proc/self/cgroup").read_text()))
    version1: dict[str, Path] = {}
    others: list[tuple[str, Path]] = []
    unified: Path | None = None
    for line in mounts:
        left, _, right = line.partition(" - ")
        fields, kind, options = left.split(), right.split()[0], right.split()[-1].split(",")
        inside, place = fields[3], root / fields[4].lstrip("/")
        if kind == "cgroup2":
            unified = place
            others.append(("cgroup2", place / os.path.relpath(own.get("", "/"), inside)))
        elif kind == "cgroup":
            used = [name for name in ("cpu", "cpuacct", "memory") if name in options]
            for controller in used:
                # The groups go below this process's own, so that a limit on it holds for the lab too.
                version1[controller] = place / os.path.relpath(own.get(controller, "/"), inside)
            names = [name for name in options if name in own]
            if names and not used:
                others.append((",".join(names), place / os.path.relpath(own[names[0]], inside)))
    if version1:
        missing = [name for name in ("cpu", "memory") if name not in version1]
        return Layout(
            version1.get("cpu"),
            version1.get("cpuacct"),
            version1.get("memory"),
            unified=False,
            others=tuple(others),
            problems=tuple(f"no {name} controller is mounted" for name in missing),
        )
    if unified is None:
        return Layout(None, None, None, unified=True, problems=("no control groups are mounted",))
    return _unified_layout(unified)


def _own_groups(text: str) -> list[tuple[str, str]]:
    """Return the controllers of ``/proc/self/cgroup`` and this process's path in each."""
    found = []
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        found += [(name, path) for name in controllers.split(",")]
    return found


def _unified_layout(top: Path) -> Layout:
    """Return the layout of version 2, with the controllers switched on for children of the top group."""
    available = (top / "cgroup.controllers").read_text().split()
    problems = []
    usable = {}
    for controller in ("cpu", "memory"):
        enabled = (top / "cgroup.subtree_control").read_text().split()
        if controller not in available:
            problems.append(f"no {controller} controller in {top}")
        elif controller not in enabled:
            try:
                (top / "cgroup.subtree_control").write_text(f"+{controller}")
                usable[controller] = top
            except OSError as error:
                problems.append(
                    f"the {controller} controller cannot be switched on in {top}: {error.strerror}"
                )
        else:
            usable[controller] = top
    return Layout(usable.get("cpu"), top, usable.get("memory"), unified=True, problems=tuple(problems))


def lab_folders(layout: Layout, lab: str) -> tuple[Path, ...]:
    """Return the folders that hold a lab's groups."""
    every = dict.fromkeys((*layout.parents, *(path for _, path in layout.others)))
    return tuple(parent / f"testbed-{lab}" for parent in every)


class Group:
    """The control groups of one host.

    Args:
        layout: Where groups can be made.
        lab: The lab's name.
        host: The host's name.
        whole: Whether the host has a group in every hierarchy, also where nothing is limited.
    """

    def __init__(self, layout: Layout, lab: str, host: str, *, whole: bool = False) -> None:
        self._layout = layout
        self._others = tuple(path for _, path in layout.others) if whole else ()
        self.name = f"testbed-{lab}/{host}"

    @property
    def hierarchies(self) -> tuple[str, ...]:
        """The hierarchies of version 1 that the group is in, as mount options; none for version 2."""
        return self._layout.hierarchies

    def _folder(self, parent: Path | None) -> Path | None:
        return None if parent is None else parent / self.name

    @property
    def folders(self) -> tuple[Path, ...]:
        """Every folder of this group."""
        return tuple(parent / self.name for parent in (*self._layout.parents, *self._others))

    @property
    def usage_file(self) -> Path | None:
        """The file that tells how much CPU time was used."""
        folder = self._folder(self._layout.usage)
        return None if folder is None else folder / ("cpu.stat" if self._layout.unified else "cpuacct.usage")

    @property
    def memory_file(self) -> Path | None:
        """The file that tells how much memory is in use."""
        folder = self._folder(self._layout.memory)
        name = "memory.current" if self._layout.unified else "memory.usage_in_bytes"
        return None if folder is None else folder / name

    def make(self, *, cpu_cores: float, memory_mib: int) -> None:
        """Make the group and set its limits.

        Args:
            cpu_cores: The most CPU, in cores of this machine.
            memory_mib: The most memory.

        Raises:
            OSError: The kernel refused.
        """
        for folder in self.folders:
            folder.mkdir(parents=True, exist_ok=True)
            _hand_down_cpuset(folder)
        if self._layout.unified:
            # Children of the lab's own group get a controller only where that group hands it down.
            hand_down = Path(self.name).parent
            for parent, controller in ((self._layout.cpu, "cpu"), (self._layout.memory, "memory")):
                if parent is not None:
                    (parent / hand_down / "cgroup.subtree_control").write_text(f"+{controller}")
        quota_us = max(1000, round(cpu_cores * _PERIOD_US))
        cpu, memory = self._folder(self._layout.cpu), self._folder(self._layout.memory)
        if cpu is not None and self._layout.unified:
            (cpu / "cpu.max").write_text(f"{quota_us} {_PERIOD_US}")
        elif cpu is not None:
            (cpu / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (cpu / "cpu.cfs_quota_us").write_text(str(quota_us))
        if memory is not None:
            name = "memory.max" if self._layout.unified else "memory.limit_in_bytes"
            (memory / name).write_text(str(memory_mib << 20))
            # This machine's swap is no memory of the host's: version 1 avoids it, version 2 refuses it.
            # A kernel without swap has no such file.
            swap = memory / ("memory.swap.max" if self._layout.unified else "memory.swappiness")
            if swap.exists():
                swap.write_text("0")

    def add(self, pid: int) -> None:
        """Move a process into the group; its children will follow it."""
        for folder in self.folders:
            (folder / "cgroup.procs").write_text(str(pid))


def _hand_down_cpuset(folder: Path) -> None:
    """Give a group of the hierarchy ``cpuset`` its parents' processors and memory: without any it takes no process."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        top = folder.parent.parent / name
        if top.exists() and (folder / name).exists():
            for group in (folder.parent, folder):
                (group / name).write_text(top.read_text())


def usage_ns(text: bytes, *, unified: bool) -> int:
    """Return the CPU time in nanoseconds from the content of a group's usage file."""
    if not unified:
        return int(text)
    for line in text.splitlines():
        if line.startswith(b"usage_usec "):
            return int(line.split()[1]) * 1000
    raise ValueError("no usage_usec line in cpu.stat")


def memory_of(path: Path | None) -> int:
    """Return how much memory a group uses in bytes, or 0 where that is not known."""
    if path is None:
        return 0
    try:
        return int(path.read_text())
    except OSError:
        return 0


def remove_tree(folder: Path, *, settle_s: float = _SETTLE_S) -> int:
    """Remove a lab's folder of groups; wait a little for its last processes to be gone.

    Args:
        folder: The folder, such as one of :func:`lab_folders`.
        settle_s: The most seconds to wait.

    Returns:
        How many groups were removed.

    Raises:
        OSError: A group is still in use.
    """
    if not folder.is_dir():
        return 0
    deadline = time.monotonic() + settle_s
    removed = 0
    groups = [Path(path) for path, _, _ in os.walk(folder, topdown=False)]
    for group in groups:
        while True:
            try:
                group.rmdir()
                removed += 1
                break
            except FileNotFoundError:
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
    return removed


def processes_in(folder: Path) -> list[int]:
    """Return the processes in a folder of groups."""
    found: set[int] = set()
    for path, _, names in os.walk(folder):
        if "cgroup.procs" in names:
            with contextlib.suppress(OSError):
                found |= {int(line) for line in (Path(path) / "cgroup.procs").read_text().split()}
    return sorted(found)
