"""One host of a lab as its keeper sees it: how it is started, and whether its services answer."""

from __future__ import annotations

import os
import select
import signal
import socket
import stat
import time
from pathlib import Path

from testbed.emulation.board_simulator import BoardSimulator
from testbed.emulation.cgroups import Group, Layout
from testbed.emulation.host import HostKeys, Pipes, become_host
from testbed.emulation.namespaces import CLONE_NEWPID, setns, unshare
from testbed.emulation.network import link_lines, run_lines
from testbed.emulation.procfiles import meminfo, stat_file
from testbed.emulation.rootfs import HostFolders, make_host_folders
from testbed.emulation.spec import HostSpec, LabSpec
from testbed.emulation.tree import serial_number, sysfs, write_tree

__all__ = ["RunningHost", "start_host"]

START_TIMEOUT_S = 30.0  # for the namespaces and mounts of one host, which take a tenth of a second


class RunningHost:
    """One host that was started.

    Attributes:
        host: What it is to be.
        pid: Its process 1.
        group: Its control groups.
        board: Its power model, or None for a plain machine.
        ended: The wait status of process 1, or None while it runs.
        sshd: Whether its SSH server has answered.
        jtop: Whether its jtop service has answered, where it has one.
    """

    def __init__(
        self, host: HostSpec, pid: int, group: Group, board: BoardSimulator | None, *, jtop: bool
    ) -> None:
        self.host = host
        self.pid = pid
        self.group = group
        self.board = board
        self.ended: int | None = None
        self.sshd = False
        self.jtop = board is None or not jtop

    @property
    def state(self) -> str:
        """How the host is: ``up``, ``starting`` or ``down``."""
        if self.ended is not None:
            return "down"
        return "up" if self.sshd and self.jtop else "starting"

    def check(self) -> None:
        """Note whether the host has ended and which of its services have begun to answer."""
        if self.ended is not None:
            return
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.ended = status
            print(f"{self.host.name} ended with {os.waitstatus_to_exitcode(status)}", flush=True)
            return
        self.sshd = self.sshd or _ssh_answers(self.host)
        self.jtop = self.jtop or _jtop_listens(self.pid)


def start_host(spec: LabSpec, number: int, keys: HostKeys, layout: Layout, pid_namespace: int) -> RunningHost:
    """Start one host from the lab's network namespace; return when its process 1 is about to run.

    Args:
        spec: The lab.
        number: The host's number in it.
        keys: The host's keys.
        layout: Where control groups go.
        pid_namespace: The keeper's own PID namespace, as an open file.

    Raises:
        OSError: It did not start; then nothing of it runs.
    """
    host = spec.hosts[number]
    folders, group = _prepare(spec, host, layout)
    go_read, go_write = os.pipe2(os.O_CLOEXEC)
    said_read, said_write = os.pipe2(os.O_CLOEXEC)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    console = os.open(spec.files.console(host.name), flags, 0o600)
    # The next child, and it alone, is process 1 of a new PID namespace.
    unshare(CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        os.close(go_write)
        os.setpriority(os.PRIO_PROCESS, 0, 0)
        become_host(spec, host, folders, keys, Pipes(go_read, said_write, console))
    setns(pid_namespace, CLONE_NEWPID)
    for descriptor in (go_read, said_write, console):
        os.close(descriptor)
    try:
        group.add(pid)
        os.write(go_write, b"1")
        _expect(said_read, b"n", host.name)
        run_lines(link_lines(number, host, pid))
        os.write(go_write, b"2")
        _expect(said_read, b"", host.name)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(go_write)
        os.close(said_read)
    return RunningHost(host, pid, group, _simulator(spec, host, folders, group, layout), jtop=spec.jtop)


def _prepare(spec: LabSpec, host: HostSpec, layout: Layout) -> tuple[HostFolders, Group]:
    folders = make_host_folders(spec.files.boards / host.name)
    board = host.kind
    if board is not None:
        write_tree(sysfs(board, serial_number(spec.lab, host.name)), folders.sys)
        (folders.proc / "stat").write_bytes(stat_file(board.cpus, 0, 0))
        (folders.proc / "meminfo").write_bytes(meminfo(host.memory_mib * 1024, 0))
    group = Group(layout, spec.lab, host.name)
    group.make(cpu_cores=host.cpu_cores, memory_mib=host.memory_mib)
    return folders, group


def _simulator(
    spec: LabSpec, host: HostSpec, folders: HostFolders, group: Group, layout: Layout
) -> BoardSimulator | None:
    if host.kind is None:
        return None
    return BoardSimulator(
        host,
        host.kind,
        folders,
        group,
        unified=layout.unified,
        seed=spec.seed,
        now_ns=time.monotonic_ns(),
    )


def _expect(descriptor: int, wanted: bytes, host: str) -> None:
    """Wait for the child to say something; an empty ``wanted`` is the end of the pipe."""
    if not select.select([descriptor], [], [], START_TIMEOUT_S)[0]:
        raise OSError(f"{host}: it did not start within {START_TIMEOUT_S:.0f} s")
    said = os.read(descriptor, 4096)
    if said != wanted:
        text = said[1:].decode(errors="replace") if said.startswith(b"e") else "ended while it was started"
        raise OSError(f"{host}: {text}")


def _ssh_answers(host: HostSpec) -> bool:
    try:
        with socket.create_connection((host.address, host.port), timeout=0.2) as connection:
            return connection.recv(256).startswith(b"SSH-")
    except OSError:
        return False


def _jtop_listens(pid: int) -> bool:
    """Return whether the board's jtop socket is there with its final mode."""
    try:
        mode = Path(f"/proc/{pid}/root/run/jtop.sock").stat().st_mode
    except OSError:
        return False
    return stat.S_IMODE(mode) == 0o660
