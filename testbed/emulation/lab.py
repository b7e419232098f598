"""Bring an emulated lab up, look at it, end it. This is what the command line calls."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.emulation import cgroups, cleanup
from testbed.emulation.keys import lab_keys
from testbed.emulation.power import LoadStep
from testbed.emulation.preflight import PROGRAM_PATH, require_programs
from testbed.emulation.spec import STATE_ROOT, HostSpec, LabFiles, LabSpec
from testbed.errors import InputError, RefusedError, TestbedError

__all__ = [
    "Removed",
    "State",
    "down",
    "load",
    "running_state",
    "shell_command",
    "state_of",
    "status",
    "up",
]

_END_TIMEOUT_S = 15.0
_KILL_AFTER_S = 5.0


@dataclass(frozen=True)
class State:
    """What is known of a lab from its files.

    Attributes:
        files: Where they are.
        data: The content of ``lab.json``, empty where there is none.
        running: Whether its keeper lives.
    """

    files: LabFiles
    data: dict[str, Any]
    running: bool

    @property
    def groups(self) -> list[Path]:
        """The folders of its control groups."""
        return [Path(path) for path in self.data.get("groups", [])]


@dataclass(frozen=True)
class Removed:
    """What :func:`down` has removed.

    Attributes:
        lab: The lab's name.
        hosts: Its hosts.
        processes: How many processes ended.
        control_groups: How many control groups were removed.
    """

    lab: str
    hosts: tuple[str, ...]
    processes: int
    control_groups: int


def state_of(lab: str) -> State | None:
    """Return what is known of a lab, or None where nothing of it is there."""
    files = LabFiles(STATE_ROOT / lab)
    if not files.root.is_dir():
        return None
    try:
        data = json.loads(files.state.read_text())
    except (OSError, ValueError):
        data = {}
    running = "pid" in data and cleanup.start_ticks(data["pid"]) == data["start_ticks"]
    return State(files, data, running)


def running_state(lab: str) -> State:
    """Return what is known of a lab that is up.

    Raises:
        TestbedError: It is not.
    """
    state = state_of(lab)
    if state is None or not state.running:
        raise TestbedError(f"the lab {lab} is not up", hint="`testbed emulate up` with this inventory")
    return state


@contextlib.contextmanager
def _locked(lab: str) -> Iterator[None]:
    """Let one command at a time change a lab."""
    STATE_ROOT.parent.mkdir(mode=0o755, exist_ok=True)
    STATE_ROOT.mkdir(mode=0o700, exist_ok=True)
    path = STATE_ROOT / f".{lab}.lock"
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Who held the lock before has removed the file; then this lock is on nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                break
        os.close(descriptor)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def up(spec: LabSpec, tell: Callable[[dict[str, Any]], None] = lambda event: None) -> bool:
    """Bring a lab up.

    Args:
        spec: The lab.
        tell: Called with every event while it starts.

    Returns:
        Whether it was started; False where it ran already.

    Raises:
        RefusedError: It runs already, from an inventory that says something else.
        TestbedError: It did not start; then nothing of it is left.
    """
    require_programs(spec)
    with _locked(spec.lab):
        state = state_of(spec.lab)
        if state is not None and state.running:
            if state.data["digest"] != spec.digest():
                raise RefusedError(
                    f"the lab {spec.lab} is up, from an inventory that said something else",
                    hint="run `testbed emulate down` first",
                )
            return False
        if state is not None:
            tell({"event": "stale"})
            _clean_stale(state, spec.lab)
        _start(spec, tell)
        return True


def _start(spec: LabSpec, tell: Callable[[dict[str, Any]], None]) -> None:
    lifeline_read, lifeline_write = os.pipe2(os.O_CLOEXEC)
    report_read, report_write = os.pipe2(os.O_CLOEXEC)
    failure: str | None = "interrupted"
    try:
        said = _start_keeper(spec, lifeline_read, report_write)
        failure = _follow(report_read, tell)
        if failure is None:
            os.write(lifeline_write, b"k")
            return
    finally:
        # Without the byte before it, the end of the lifeline is the end of the lab.
        for descriptor in (lifeline_write, report_read):
            os.close(descriptor)
        if failure is not None:
            _wait_until_gone(spec.files, _END_TIMEOUT_S)
    raise TestbedError(f"the lab {spec.lab} did not start: {failure or said or 'no message'}")


def _start_keeper(spec: LabSpec, lifeline: int, report: int) -> str:
    """Start the keeper and the reaper, which both live on; return what went wrong before there were two."""
    path = os.pathsep.join([PROGRAM_PATH, os.environ.get("PATH", "")])
    try:
        with subprocess.Popen(
            [sys.executable, "-S", "-m", "testbed.emulation.keeper", str(lifeline), str(report)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=(lifeline, report),
            start_new_session=True,
            cwd="/",
            env={"PATH": path, "PYTHONPATH": str(Path(__file__).absolute().parents[2]), "LANG": "C.UTF-8"},
        ) as starter:
            said = starter.communicate(json.dumps({"spec": spec.to_json(), "keys": lab_keys(spec)}))[1]
    finally:
        os.close(lifeline)
        os.close(report)
    return said.strip().rpartition("\n")[2] if starter.returncode != 0 else ""


def _follow(report: int, tell: Callable[[dict[str, Any]], None]) -> str | None:
    """Pass the keeper's events on until it is ready; return why it is not, or None."""
    with os.fdopen(os.dup(report), "r") as lines:
        for line in lines:
            event = json.loads(line)
            tell(event)
            if event["event"] == "ready":
                return None
            if event["event"] == "error":
                return str(event["message"])
    return ""


def _wait_until_gone(files: LabFiles, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while files.root.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not files.root.exists()


def _clean_stale(state: State, lab: str) -> int:
    """Remove what a dead keeper has left, once its reaper had its time."""
    if _wait_until_gone(state.files, _KILL_AFTER_S):
        return 0
    groups = set(state.groups) | set(cgroups.lab_folders(cgroups.find_layout(), lab))
    try:
        return cleanup.clean(state.files.root, sorted(groups))
    except OSError as error:
        raise TestbedError(f"the lab {lab} cannot be removed whole: {error}") from error


def down(lab: str) -> Removed | None:
    """End a lab and see to it that nothing is left.

    Args:
        lab: Its name.

    Returns:
        What was removed, or None where there was nothing.

    Raises:
        TestbedError: Something of it is still there.
    """
    if not STATE_ROOT.is_dir():
        return None
    with _locked(lab):
        state = state_of(lab)
        if state is None:
            return None
        hosts = tuple(state.data.get("hosts", {}))
        if not state.running:
            return Removed(lab, hosts, 0, _clean_stale(state, lab))
        processes = {pid for group in state.groups for pid in cgroups.processes_in(group)}
        groups = sum(1 for group in state.groups for path in group.rglob("*") if path.is_dir())
        _end_keeper(state)
        if not _wait_until_gone(state.files, _END_TIMEOUT_S):
            _clean_stale(state, lab)
        # One more for the keeper and one for the reaper; the lab's own folders of groups count too.
        return Removed(lab, hosts, len(processes) + 2, groups + len(state.groups))


def _end_keeper(state: State) -> None:
    pid = state.data["pid"]
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # The number may be another process's since the state was read; from here on it cannot change hands.
        if cleanup.start_ticks(pid) != state.data["start_ticks"]:
            return
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        if not select.select([descriptor], [], [], _KILL_AFTER_S)[0]:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            select.select([descriptor], [], [], _KILL_AFTER_S)
    finally:
        os.close(descriptor)


def _ask(files: LabFiles, request: dict[str, Any]) -> dict[str, Any]:
    """Put one request to a lab's keeper.

    Raises:
        TestbedError: It does not answer, or answers with an error.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(30)
            connection.connect(str(files.control))
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("r") as lines:
                answer: dict[str, Any] = json.loads(lines.readline())
    except (OSError, ValueError) as error:
        raise TestbedError(f"the lab's keeper does not answer: {error}") from error
    if "error" in answer:
        raise TestbedError(answer["error"])
    return answer


def _told(host: HostSpec) -> dict[str, Any]:
    """Return what the inventory says of a host, and the Python that follows from it."""
    release, python = host.release, host.python
    return {
        "name": host.name,
        "address": host.address,
        "board": host.board or None,
        "user": host.user,
        "sudo": host.sudo if host.user != "root" else None,
        "l4t": host.kind.l4t if host.kind else None,
        "jetpack": host.kind.jetpack if host.kind else None,
        "systemd": host.systemd,
        "clock_offset_s": host.clock_offset_s,
        "python": python.version if python else None,
        "python_missing": release.python if release and python is None else None,
    }


def status(spec: LabSpec) -> dict[str, Any]:
    """Return how a lab is: ``state`` (``up``, ``starting``, ``stale`` or ``down``) and its hosts."""
    state = state_of(spec.lab)
    hosts = [_told(host) for host in spec.hosts]
    if state is None or not state.running:
        name = "down" if state is None else "stale"
        return {"lab": spec.lab, "state": name, "hosts": [host | {"state": "down"} for host in hosts]}
    answer = _ask(state.files, {"do": "status"})
    told = {host["name"]: host for host in answer.pop("hosts")}
    return {
        "lab": spec.lab,
        "state": state.data["state"],
        "keeper_pid": state.data["pid"],
        **answer,
        "limits_missing": state.data["limits"],
        "hosts": [host | told.get(host["name"], {"state": "down"}) for host in hosts],
    }


def load(spec: LabSpec, host: str, script: Sequence[LoadStep]) -> dict[str, Any]:
    """Let a board follow a load script from now on.

    Args:
        spec: The lab.
        host: The board.
        script: The load; afterwards the board follows its measured load again.

    Returns:
        ``start_mono_ns`` of the monotonic clock and ``level``, the lagged load at that moment.

    Raises:
        InputError: The lab has no such host.
        TestbedError: It is not up, or the host is no board.
    """
    _named(spec, host)
    state = running_state(spec.lab)
    steps = [[step.seconds, step.load] for step in script]
    return _ask(state.files, {"do": "load", "host": host, "script": steps})


def shell_command(
    spec: LabSpec, host: str, command: Sequence[str] = (), *, user: str | None = None
) -> list[str]:
    """Return the ``ssh`` command line that leads to a host, or runs a command there.

    Args:
        spec: The lab.
        host: The host's name.
        command: The command; a shell if left out.
        user: Who logs in: the host's user if left out, or root, whom the lab's key lets in everywhere.

    Raises:
        InputError: The lab has no such host.
    """
    found, files = _named(spec, host), spec.files
    options = {
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": str(files.known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "LogLevel": "ERROR",
        # netcat does not pass the end of a connection on, so a host that is gone would not be noticed.
        "ServerAliveInterval": "5",
        "ConnectTimeout": "60",
        "ProxyCommand": f"nsenter --net={files.net} nc %h %p",
    }
    line = ["ssh", "-F", "/dev/null", "-i", str(files.key), "-p", str(found.port)]
    for key, value in options.items():
        line += ["-o", f"{key}={value}"]
    line.append(f"{user or found.user}@{found.address}")
    return [*line, shlex.join(command)] if command else line


def _named(spec: LabSpec, host: str) -> HostSpec:
    found = next((entry for entry in spec.hosts if entry.name == host), None)
    if found is None:
        names = ", ".join(entry.name for entry in spec.hosts)
        raise InputError(f"the lab {spec.lab} has no host {host}; its hosts are {names}")
    return found
