"""Run a command as root under Debian's stock kernel, as an ordinary process: no KVM, no image, no root on the host.

User-mode Linux (package user-mode-linux) is that kernel built as a program. It starts in two seconds with the
host's files as its root, read-only and under an overlay in memory: whatever the command writes is gone with it,
except in a folder named by ``--keep``. It has its own network, clock and process numbers, and one processor.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).resolve().parents[1]
MODULES = Path("/usr/lib/uml/modules")
#: What this script itself exits with, as timeout(1) and env(1) do; anything else is the command's own.
TIMED_OUT, FAILED = 124, 125
MEMORY_MB = 1024
_SHARED_MEMORY = Path("/dev/shm")
_POLL_S = 0.1
#: Ends the kernel's process group where this script was killed and could not: its end of the pipe closes then.
_GUARD = ("sh", "-c", 'read -r _; kill -9 "-$1"; rm -rf -- "$2"', "stock-kernel-guard")


def missing(memory_mb: int = MEMORY_MB) -> str | None:
    """Return why no stock kernel can be started here, or None."""
    if shutil.which("linux.uml") is None or not MODULES.is_dir():
        return "the stock kernel is not installed: apt-get install user-mode-linux (Debian and Ubuntu, amd64)"
    for tool, package in (("mount", "mount"), ("ip", "iproute2")):
        if shutil.which(tool) is None:
            return f"{tool} is not installed: apt-get install {package}"
    # Its memory is a file there. A container's /dev/shm is often of 64 MB, and the kernel would die of it.
    if _SHARED_MEMORY.is_dir() and (free := shutil.disk_usage(_SHARED_MEMORY).free >> 20) < memory_mb:
        return f"{_SHARED_MEMORY} has {free} MB free, and the stock kernel may take {memory_mb}: give --memory less"
    return None


def kernel_command(folder: Path, memory_mb: int, python: str) -> list[str]:
    """Return the command line of the kernel whose first process is ``stock_kernel_init.py``.

    Args:
        folder: The run's own folder on the host, holding ``job.json``.
        memory_mb: The most memory that the kernel and the command may take; it is taken as it is used.
        python: The interpreter, which must not lie in a folder that only a mount inside would show.
    """
    init = Path(__file__).with_name("stock_kernel_init.py")
    words = [
        "linux.uml",
        f"mem={memory_mb}M",
        "root=/dev/root",
        "rootfstype=hostfs",
        "ro",
        "quiet",
        "con=null",
        "con0=null,fd:1",
        f"umid=stock{secrets.token_hex(4)}",
        f"uml_dir={folder / 'uml'}",
        f"init={python}",
        "--",
        str(init),
        str(folder),
    ]
    if bad := [word for word in words if any(c.isspace() or c in "\"'" for c in word)]:
        raise ValueError(f"the kernel's command line cannot hold spaces or quotes: {bad[0]!r}")
    return words


def run(command: Sequence[str], *, timeout_s: float, memory_mb: int, keep: Path | None) -> int:
    """Run the command and return its exit code, or TIMED_OUT or FAILED with one line on stderr."""
    folder = Path(tempfile.mkdtemp(prefix="stock-kernel-"))
    try:
        return _run(command, folder, timeout_s, memory_mb, keep)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(command: Sequence[str], folder: Path, timeout_s: float, memory_mb: int, keep: Path | None) -> int:
    job = {
        "command": list(command),
        "environment": dict(os.environ),
        "directory": str(Path.cwd()),
        "keep": str(keep) if keep else None,
        "needed": [str(path) for path in (ROOT, sys.prefix, sys.base_prefix, Path.cwd())],
    }
    (folder / "job.json").write_text(json.dumps(job))
    for name in ("stdout", "stderr"):
        (folder / name).touch()
    # A link into the environment would do too, but the kernel starts what it is told before /proc is there.
    words = kernel_command(folder, memory_mb, str(Path(sys.executable).resolve()))
    deadline = time.monotonic() + timeout_s
    with (folder / "console").open("wb") as console, _Relay(folder) as relay:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            process_group=0,
            preexec_fn=_no_core,
        )
        guard = subprocess.Popen(
            [*_GUARD, str(process.pid), str(folder)], stdin=subprocess.PIPE, process_group=0
        )
        try:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    _say(f"the command did not end within {timeout_s:g} s: the stock kernel was stopped")
                    return TIMED_OUT
                relay.pass_on()
                time.sleep(_POLL_S)
        finally:
            guard.kill()
            guard.communicate()
            _end(process)
            relay.pass_on()
    try:
        return int((folder / "code").read_text())
    except (OSError, ValueError):
        lines = (folder / "console").read_text(errors="replace").strip().splitlines()
        _say("the stock kernel ended without running the command; the end of its console:")
        print("\n".join(lines[-25:]), file=sys.stderr)
        return FAILED


class _Relay:
    """Passes on what the command has written since the last call."""

    def __init__(self, folder: Path) -> None:
        self._pairs: list[tuple[IO[bytes], IO[bytes]]] = [
            ((folder / "stdout").open("rb"), sys.stdout.buffer),
            ((folder / "stderr").open("rb"), sys.stderr.buffer),
        ]

    def __enter__(self) -> _Relay:
        return self

    def __exit__(self, *_: object) -> None:
        for source, _target in self._pairs:
            source.close()

    def pass_on(self) -> None:
        for source, target in self._pairs:
            if data := source.read():
                target.write(data)
                target.flush()


def _no_core() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the kernel and the processes that it runs its own processes in: all are in its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _say(text: str) -> None:
    print(f"==> {text}", file=sys.stderr)


def _stop(number: int, _frame: object) -> NoReturn:
    # Through the finally clauses: the kernel is ended and the folder removed.
    raise SystemExit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/stock_kernel",
        description=(__doc__ or "").split("\n\n")[0],
        epilog=f"Exits with the command's code; {TIMED_OUT} after the timeout; {FAILED} where no kernel ran.",
    )
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="SECONDS", help="default: %(default)g"
    )
    parser.add_argument(
        "--memory", type=int, default=MEMORY_MB, metavar="MB", help="at most; default: %(default)s"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="what is written below FOLDER stays")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND...")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    if not command:
        parser.error("a command is needed, such as: python -m pytest tests/links")
    if given.keep is not None and not given.keep.is_dir():
        parser.error(f"--keep: {given.keep} is no folder")
    if reason := missing(given.memory):
        _say(reason)
        return FAILED
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    keep = given.keep.resolve() if given.keep else None
    return run(command, timeout_s=given.timeout, memory_mb=given.memory, keep=keep)


if __name__ == "__main__":
    sys.exit(main())
