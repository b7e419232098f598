"""What is left of a lab when its keeper is gone, and how it is removed.

Processes, namespaces, mounts and interfaces end with the keeper by themselves. Control groups and the
lab's folder do not, and a gateway command that still runs in the lab's network namespace would keep that
alive. The keeper's parent, the reaper, does nothing but wait for the keeper's end, however it comes, and
then removes those.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from testbed.emulation.cgroups import remove_tree
from testbed.emulation.namespaces import become_subreaper, name_process

__all__ = ["clean", "fork_under_reaper", "processes_in_network", "start_ticks"]

_GRACE_S = 1.0


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot, or None where there is no such process.

    Together with its number this names a process for good; the number alone is used again.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def processes_in_network(inode: int) -> list[int]:
    """Return the processes whose network namespace has an inode, but for this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if (entry / "ns/net").stat().st_ino == inode:
                    found.append(int(entry.name))
    return found


def _end_processes(inode: int) -> None:
    """End what still runs in the lab's network namespace: gateway commands of controllers."""
    deadline = time.monotonic() + _GRACE_S
    number = signal.SIGTERM
    while pids := processes_in_network(inode):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if time.monotonic() > deadline:
            number = signal.SIGKILL
        if time.monotonic() > deadline + _GRACE_S:
            return
        time.sleep(0.02)


def clean(folder: Path, groups: Sequence[Path]) -> int:
    """Remove a dead lab's control groups and its folder.

    Args:
        folder: The lab's folder below ``/run/testbed/labs``.
        groups: Its folders of control groups.

    Returns:
        How many control groups were removed.

    Raises:
        OSError: Something cannot be removed; the lab's folder then stays, as the sign of it.
    """
    removed = sum(remove_tree(group) for group in groups)
    if folder.is_dir():
        shutil.rmtree(folder)
    return removed


def fork_under_reaper(folder: Path, groups: Sequence[Path]) -> int:
    """Go on as the keeper, a grandchild of this process; the child between becomes the reaper, this process ends.

    As the keeper's parent the reaper learns of its end from the kernel, and as a subreaper it inherits
    and buries what the keeper leaves, even where process 1 of this machine buries nobody.

    Args:
        folder: The lab's folder.
        groups: Its folders of control groups.

    Returns: The end of a pipe that the keeper holds until it ends. One byte there tells the reaper that
    the keeper's
        network namespace is the lab's by now.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    if os.fork() != 0:
        os._exit(0)
    keeper = os.fork()
    if keeper == 0:
        os.close(read_end)
        return write_end
    try:
        become_subreaper()
        name_process("testbed-reaper")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.close(write_end)
        _drop_descriptors(read_end)
        network = -1
        while os.read(read_end, 1):
            # Held open, so that the namespace's inode is not used for another one before the end.
            # A keeper that was killed just now has none any more; the rest is cleared away all the same.
            with contextlib.suppress(OSError):
                network = os.open(f"/proc/{keeper}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        _bury_all()
        if network >= 0:
            _end_processes(os.fstat(network).st_ino)
            os.close(network)
        clean(folder, groups)
    finally:
        os._exit(0)


def _bury_all() -> None:
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _drop_descriptors(keep: int) -> None:
    """Close everything inherited, above all the pipes by which ``up`` and the keeper notice each other's end."""
    null = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    for entry in list(Path("/proc/self/fd").iterdir()):
        number = int(entry.name)
        if number > 2 and number != keep:
            with contextlib.suppress(OSError):
                os.close(number)
