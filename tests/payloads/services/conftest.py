"""A host's services in a folder of their own, run as the commands that a controller would run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

ROOT = Path(__file__).parents[3]


class Host:
    """One host's services: ``python -m payloads.services`` with its folder in ``home``."""

    def __init__(self, home: Path) -> None:
        self.home = home
        # Not the project's folder: `python -m` looks there first, and would find other code than a board's.
        self.folder = home.parent
        self.environment = dict(os.environ, PYTHONPATH=str(ROOT), TESTBED_HOME=str(home))
        self.environment.pop("TESTBED_SERVICES", None)
        self.command = [sys.executable, "-m", "payloads.services"]
        self.holders: list[subprocess.Popen[str]] = []

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command, *arguments],
            env=dict(self.environment, **environment),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def start(
        self, name: str, script: str, *options: str, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return self.run("start", name, *options, "--", "sh", "-c", script, **environment)

    def begin(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Begin a command that goes on, with pipes to it."""
        process = subprocess.Popen(
            [*self.command, *arguments],
            env=dict(self.environment, **environment),
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.holders.append(process)
        return process

    def hold(self, *options: str) -> subprocess.Popen[str]:
        """Take the lease and return its holder once it holds; on a busy machine, commands take long."""
        holder = self.begin("hold", "--ttl", "60", *options)
        assert holder.stdout
        assert json.loads(holder.stdout.readline())["held"] is True
        return holder

    def service(self, name: str) -> dict[str, Any]:
        return {each["name"]: each for each in json.loads(self.run("status", "--json").stdout)["services"]}[
            name
        ]

    def state(self, name: str) -> str:
        """The recorded state, without the cost of a command."""
        return str(json.loads((self.home / "services" / name / "state.json").read_text())["state"])

    def pid(self, name: str) -> int:
        return int((self.home / "services" / name / "pid").read_text())

    def supervisor(self) -> int:
        return int(json.loads((self.home / "services" / "supervisor.json").read_text())["pid"])

    def close(self) -> None:
        for holder in self.holders:
            holder.kill()
            holder.wait()
            for stream in (holder.stdin, holder.stdout, holder.stderr):
                if stream and not stream.closed:
                    # What was never sent is of no interest to a process that is gone.
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
        self.run("stop", "--all")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path / "home")
    yield made
    made.close()
    shutil.rmtree(made.home, ignore_errors=True)


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Wait, generously, until something holds."""

    def wait(holds: Callable[[], object], limit_s: float = 40.0) -> None:
        deadline = time.monotonic() + limit_s
        while not holds():
            assert time.monotonic() < deadline, "it never came to hold"
            time.sleep(0.05)

    return wait


@pytest.fixture
def gone() -> Callable[[int], bool]:
    """Tell whether a process is no more; a zombie that its new parent has yet to collect is no more too."""

    def check(pid: int) -> bool:
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True
        return text[text.rindex(")") + 2] in "ZX"

    return check


@pytest.fixture
def kill9() -> Callable[[int], None]:
    return lambda pid: os.kill(pid, signal.SIGKILL)
