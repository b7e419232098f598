"""Processes: started so that they end with their parent, found again by what they carry, and ended."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path
from typing import Iterable, Mapping, NamedTuple, Sequence

__all__ = [
    "Process",
    "become_subreaper",
    "boot_id",
    "is_alive",
    "members",
    "send_signal",
    "spawn",
    "start_ticks",
]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Loaded once, before any fork: loading a library in a forked child is not safe.
_LIBC = ctypes.CDLL(None, use_errno=True)
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD, signal.SIGALRM)


class Process(NamedTuple):
    """A process, told apart from a later one with the same number.

    Attributes:
        pid: Its number.
        ticks: When it started, in clock ticks since boot.
        boot: The boot it belongs to.
    """

    pid: int
    ticks: int
    boot: str


def boot_id() -> str:
    """Return the kernel's name of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the state on, or None when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses can hold anything, parentheses and blanks too.
    return text[text.rindex(")") + 2 :].split()


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot, or None when it is gone."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def is_alive(process: Process) -> bool:
    """Tell whether that very process is there and is no zombie."""
    fields = _stat(process.pid)
    return bool(
        fields and fields[0] not in "ZX" and int(fields[19]) == process.ticks and process.boot == boot_id()
    )


def become_subreaper() -> None:
    """Have orphans among the descendants handed to this process, so that none is left a zombie."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def spawn(argv: Sequence[str], environment: Mapping[str, str], directory: str, output: int) -> int:
    """Start a program in a session of its own and return its number.

    It reads from /dev/null, writes to the descriptor ``output``, and gets SIGTERM when this process ends,
    however it ends. Only a process with a single thread may call this.

    Raises:
        OSError: The program could not be started.
    """
    parent = os.getpid()
    failure_end, report_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)  # the parent ended before the line above took hold
            signal.set_wakeup_fd(-1)
            for number in _HANDLED:
                signal.signal(number, signal.SIG_DFL)
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(directory)
            os.execvpe(argv[0], list(argv), dict(environment))
        except OSError as error:
            os.write(report_end, f"{error.errno or 0}:{argv[0]}: {error.strerror}".encode())
        finally:
            os._exit(127)
    os.close(report_end)
    with open(failure_end, "rb") as pipe:
        failure = pipe.read().decode()
    if failure:
        os.waitpid(pid, 0)
        code, _, message = failure.partition(":")
        raise OSError(int(code), message)
    return pid


def members(session: int, token: str, since_ticks: int) -> list[int]:
    """Return the processes of one service.

    Those are the processes of its session, and those that left the session but still carry ``token`` in the
    environment they were started with (as ``TESTBED_SERVICE``).

    Args:
        session: The service's session, or 0 where its number can be another's by now.
        token: What the service's processes carry.
        since_ticks: When the service's first process started: none of the others is older.
    """
    marker = f"TESTBED_SERVICE={token}".encode()
    found = []
    for entry in os.listdir("/proc"):  # noqa: PTH208  # a path object for every process costs too much
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        fields = _stat(int(entry))
        if not fields or fields[0] in "ZX" or int(fields[19]) < since_ticks:
            continue
        if (session and int(fields[3]) == session) or marker in _environment(entry):
            found.append(int(entry))
    return found


def _environment(pid: str) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []  # gone, or another user's: not one of ours


def send_signal(pids: Iterable[int], number: int) -> None:
    """Send a signal to processes; those that are gone already are passed over."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
