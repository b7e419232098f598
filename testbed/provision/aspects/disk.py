"""The room on a host's disks, against what is about to be put there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.config.inventory import Host
from testbed.hosts.facts import Facts
from testbed.hosts.facts.system import Disk as FileSystem
from testbed.hosts.steps import Step
from testbed.provision.aspect import Change, Finding
from testbed.provision.aspects.memory import Memory

__all__ = ["Disk", "needed_bytes"]

MIB = 1 << 20
LEAST_BYTES = 256 * MIB
"""Less than this, and neither code nor a run's records are safe."""
LEAST_FILES = 2000
PACKAGES_BYTES = 300 * MIB
PYTHON_BYTES = 100 * MIB
TORCH_BYTES = 3072 * MIB
"""What a build of torch for a board's GPU takes, its archive included."""


@dataclass(frozen=True)
class Disk:
    """The room on a host's disks."""

    item: str = "disk"

    def changes(self, host: Host, facts: Facts) -> Iterator[Change]:
        """Yield nothing: what could be thrown away is not ours to know."""
        yield from ()

    def findings(self, host: Host, facts: Facts, changes: Sequence[Change]) -> Iterator[Finding]:
        """Yield file systems that are full, too full for what is planned, or read-only."""
        systems = _systems(facts)
        judged: set[int] = set()
        needed = needed_bytes(host, facts, changes)
        for path, disk in systems.items():
            if disk.device in judged:
                continue
            judged.add(disk.device)
            # Folders of one file system share its room.
            sharing = [other for other, about in systems.items() if about.device == disk.device]
            need = sum(needed.get(other, 0) for other in sharing)
            yield from self._judge(host, path, disk, need)

    def undo(self, host: Host, facts: Facts, recorded: Mapping[str, Any]) -> Iterator[Step]:
        """Yield nothing, since nothing is changed."""
        yield from ()

    def _judge(self, host: Host, path: str, disk: FileSystem, need: int) -> Iterator[Finding]:
        home = path not in ("/", "/var", "/tmp")
        where = "in the home" if home else f"in {path}"
        look = (
            f"on the host: `sudo du -xh {'~' if home else path} | sort -h | tail` shows what takes the room"
        )
        if disk.read_only and (home or need):
            hint = (
                "on the host: sudo dmesg | tail; a disk with errors is mounted read-only: check or replace it"
            )
            yield Finding(
                host.name, "failure", self.item, f"nothing can be written {where}: it is read-only", hint
            )
        elif disk.free_bytes < need:
            text = f"only {_gib(disk.free_bytes)} of disk are free {where}; {_gib(need)} are needed"
            yield Finding(host.name, "failure", self.item, text, look)
        elif disk.free_files is not None and disk.free_files < LEAST_FILES and (home or need):
            text = f"only {disk.free_files} more files can be made {where}"
            hint = f"on the host: `sudo du -x --inodes {'~' if home else path} | sort -n | tail` shows where they are"
            yield Finding(host.name, "failure", self.item, text, hint)
        elif home and disk.free_bytes < host.disk.free_gib * 2**30:
            text = f"only {_gib(disk.free_bytes)} of disk are free {where}"
            yield Finding(host.name, "warning", self.item, text, look)


def needed_bytes(host: Host, facts: Facts, changes: Sequence[Change]) -> dict[str, int]:
    """Return how much room is needed at least in each folder, for what is planned and for a small run.

    Args:
        host: The host.
        facts: What it is.
        changes: What is about to be changed there.
    """
    items = {change.item for change in changes}
    home = next(iter(_systems(facts)), "~")
    needed = {home: LEAST_BYTES}
    if items & {"python", "torch"}:
        packages = " ".join(host.python.packages)
        needed[home] += TORCH_BYTES if "torch" in packages or "torch" in items else PYTHON_BYTES
    if "packages" in items:
        needed["/var"] = PACKAGES_BYTES
    if "memory" in items:
        folder = "/var" if host.memory.swap_file.startswith("/var/") else "/"
        needed[folder] = needed.get(folder, 0) + Memory().missing_mib(host, facts) * MIB
    return needed


def _systems(facts: Facts) -> Mapping[str, FileSystem]:
    """Return the file systems; the home's alone where only its room is known."""
    if facts.system.disks or facts.disk_free_bytes is None:
        return facts.system.disks
    return {"~": FileSystem(0, facts.disk_free_bytes)}


def _gib(number: int) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / MIB:.0f} MiB"
