"""One host of a lab as its keeper sees it: how it is started, and whether its services answer."""

from __future__ import annotations

import os
import select
import signal
import socket
import stat
import subprocess
import time
import uuid
from pathlib import Path

from testbed.boards.model import Board
from testbed.emulation.board_simulator import BoardSimulator
from testbed.emulation.cgroups import Group, Layout
from testbed.emulation.host import HostKeys, Pipes, become_host
from testbed.emulation.init import REBOOT_STATUS
from testbed.emulation.namespaces import CLONE_NEWPID, setns, unshare
from testbed.emulation.network import link_lines, port_name, run_lines
from testbed.emulation.procfiles import meminfo, stat_file
from testbed.emulation.rootfs import HostFolders, make_host_folders
from testbed.emulation.spec import HostSpec, LabSpec
from testbed.emulation.system import packed_config
from testbed.emulation.tree import serial_number, settings_at, sysfs, write_tree

__all__ = ["RunningHost", "restart_host", "start_host"]

_AWAY_S = 1.0  # how long a host that reboots is away
START_TIMEOUT_S = 30.0  # for the namespaces and mounts of one host, which take a tenth of a second


class RunningHost:
    """One host that was started.

    Attributes:
        host: What it is to be.
        pid: Its process 1.
        group: Its control groups.
        folders: Its parts.
        board: Its power model, or None for a plain machine.
        ended: The wait status of process 1, or None while it runs.
        boots: How many times it has started.
        again_s: When it is to start again, by the monotonic clock; None where it is not.
        sshd: Whether its SSH server has answered.
        jtop: Whether its jtop service has answered, where it has one.
    """

    def __init__(
        self, host: HostSpec, pid: int, group: Group, folders: HostFolders, board: BoardSimulator | None
    ) -> None:
        self.host = host
        self.group = group
        self.folders = folders
        self.board = board
        self.boots = 0
        self._asked: socket.socket | None = None
        self.booted(pid)

    def booted(self, pid: int) -> None:
        """Note that the host has started."""
        self.pid = pid
        self.boots += 1
        self.ended: int | None = None
        self.again_s: float | None = None
        self.sshd = False
        self.jtop = not self.host.jtop
        self._hang_up()

    @property
    def state(self) -> str:
        """How the host is: ``up``, ``starting``, ``rebooting`` or ``down``."""
        if self.again_s is not None:
            return "rebooting"
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
            code = os.waitstatus_to_exitcode(status)
            # The kernel ends process 1 of a PID namespace with SIGHUP where a process there asked for a reboot.
            if code in (REBOOT_STATUS, -signal.SIGHUP):
                self.again_s = time.monotonic() + _AWAY_S
            what = "reboots" if self.again_s is not None else f"ended with {code}"
            print(f"{self.host.name} {what}", flush=True)
            return
        self.sshd = self.sshd or self._ssh_answers()
        self.jtop = self.jtop or _jtop_listens(self.pid)

    def _ssh_answers(self) -> bool:
        """Return whether the SSH server has said what it is; a busy one that is asked once takes its time for that."""
        try:
            if self._asked is None:
                self._asked = socket.create_connection((self.host.address, self.host.port), timeout=0.2)
                self._asked.setblocking(False)
            answer = self._asked.recv(256)
        except BlockingIOError:
            return False
        except OSError:
            answer = b""
        self._hang_up()
        return answer.startswith(b"SSH-")

    def _hang_up(self) -> None:
        if self._asked is not None:
            self._asked.close()
            self._asked = None


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
    pid = _boot(spec, number, keys, folders, group, pid_namespace)
    return RunningHost(host, pid, group, folders, _simulator(spec, host, folders, group, layout))


def restart_host(
    spec: LabSpec, number: int, keys: HostKeys, running: RunningHost, pid_namespace: int
) -> None:
    """Start a host again that has ended; what is on its disk stays.

    Raises:
        OSError: It did not start; then nothing of it runs.
    """
    host = running.host
    running.again_s = None
    # The kernel takes the old link away when it gets round to it.
    subprocess.run(
        ["/bin/sh", "-c", f"exec ip link delete {port_name(number, host.name)}"],
        stderr=subprocess.DEVNULL,
        timeout=20,
        check=False,
    )
    if host.kind is not None:
        _settle(host.kind, running.folders)
    running.booted(_boot(spec, number, keys, running.folders, running.group, pid_namespace))


def _boot(
    spec: LabSpec, number: int, keys: HostKeys, folders: HostFolders, group: Group, pid_namespace: int
) -> int:
    """Start process 1 of a host; return its number."""
    host = spec.hosts[number]
    folders.boot_id.write_text(f"{uuid.uuid4()}\n")
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
        pipes = Pipes(go_read, said_write, console)
        become_host(spec, host, folders, keys, pipes, hierarchies=group.hierarchies)
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
    return pid


def _prepare(spec: LabSpec, host: HostSpec, layout: Layout) -> tuple[HostFolders, Group]:
    folders = make_host_folders(
        spec.files.boards / host.name,
        disk_mib=host.disk_mib,
        # A worker of an ordinary user tells the keeper there how busy it is.
        shared_mode=0o755 if host.user == "root" else 0o1777,
    )
    board = host.kind
    if board is not None:
        write_tree(sysfs(board, serial_number(spec.lab, host.name)), folders.sys)
        (folders.proc / "stat").write_bytes(stat_file(board.cpus, 0, 0))
        (folders.proc / "meminfo").write_bytes(meminfo(host.memory_mib * 1024, 0))
        config = packed_config(host.release.missing) if host.release else None
        if config is not None:
            (folders.proc / "config.gz").write_bytes(config)
    group = Group(layout, spec.lab, host.name, whole=host.systemd)
    group.make(cpu_cores=host.cpu_cores, memory_mib=host.memory_mib)
    return folders, group


def _settle(board: Board, folders: HostFolders) -> None:
    """Put the clocks back to what the board starts with in the power mode that is now set."""
    status = folders.layers / "root/upper/var/lib/nvpmodel/status"
    try:
        mode = int(status.read_text().split()[1])
    except (OSError, ValueError, IndexError):
        mode = board.start_mode
    for path, text in settings_at(board, mode).items():
        (folders.sys / path).write_text(text)


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


def _jtop_listens(pid: int) -> bool:
    """Return whether the board's jtop socket is there with its final mode."""
    try:
        mode = Path(f"/proc/{pid}/root/run/jtop.sock").stat().st_mode
    except OSError:
        return False
    return stat.S_IMODE(mode) == 0o660
