import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.config.inventory import Host, Inventory
from testbed.errors import CommandError, ConnectError
from testbed.hosts.fleet import Fleet
from testbed.hosts.steps import Command, Completed, Fetch, Put, Step
from testbed.hosts.transport import OnLine, Stream
from testbed.provision.code import PayloadCode, code_digest


class LocalHost:
    """A host whose commands really run, in a home of its own on this machine."""

    def __init__(self, name: str, home: Path) -> None:
        self.name = name
        self.home = home
        self.steps: list[Step] = []
        self.down = False

    def run(self, command: Command, *, on_line: OnLine | None = None) -> Completed:
        self._note(command)
        errors = self.home.with_name(f"{self.name}.stderr")
        with errors.open("w") as stderr:
            process = subprocess.Popen(
                ["sh", "-c", command.shell],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=self.home,
                env={"HOME": str(self.home), "PATH": os.environ["PATH"]},
            )
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin as stdin:
            stdin.write(command.stdin)
        lines = []
        with process.stdout as stdout:
            for line in stdout:
                lines.append(line.decode())
                if on_line:
                    on_line(lines[-1].rstrip("\n"))
        out, err = "".join(lines), errors.read_text()
        if process.wait():
            raise CommandError(self.name, command.shell, process.returncode, err or out)
        return Completed(command, 0, out, err, 0.0)

    def put(self, put: Put) -> None:
        self._note(put)
        assert isinstance(put.content, bytes)
        target = self.home / put.target.removeprefix("~/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(put.content)
        target.chmod(put.mode)

    def fetch(self, fetch: Fetch) -> None:
        raise AssertionError(f"provisioning fetches nothing: {fetch.line()}")

    def stream(self, command: Command) -> Stream:
        raise AssertionError(f"provisioning leaves nothing running: {command.line()}")

    def close(self) -> None:
        """There is nothing to close."""

    def changing_steps(self) -> list[str]:
        lines = [step.line() for step in self.steps if step.title != "ask for facts"]
        self.steps.clear()
        return lines

    def _note(self, step: Step) -> None:
        if self.down:
            raise ConnectError(self.name, "no answer")
        self.steps.append(step)


@pytest.fixture
def lab() -> Inventory:
    """Return a lab whose base station has what it needs and whose device is looked at as one without jtop."""
    python = {"manage": False, "interpreter": sys.executable}
    hosts = {"bs": {"role": "base_station", "address": "10.0.0.1", "python": python}}
    hosts |= {"dev": {"role": "device", "address": "10.0.0.2", "python": python}}
    return Inventory.model_validate({"lab": "test", "hosts": hosts})


@pytest.fixture
def code() -> PayloadCode:
    files = {"payloads/__init__.py": b"", "payloads/wire/frames.py": b"SIZE = 3\n"}
    return PayloadCode(code_digest(files), files)


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, LocalHost]:
    """Let every fleet reach local homes instead of hosts."""
    made: dict[str, LocalHost] = {}

    def connect(host: Host) -> LocalHost:
        if host.name not in made:
            (tmp_path / host.name).mkdir()
            made[host.name] = LocalHost(host.name, tmp_path / host.name)
        return made[host.name]

    monkeypatch.setattr("testbed.hosts.ssh.ssh_connect", lambda known_hosts, **options: connect)
    return made


@pytest.fixture
def open_fleet(local: dict[str, LocalHost]) -> Iterator[Callable[[Inventory], Fleet]]:
    fleets: list[Fleet] = []

    def open_fleet(lab: Inventory) -> Fleet:
        fleets.append(Fleet(lab))
        return fleets[-1]

    yield open_fleet
    for fleet in fleets:
        fleet.close()


@pytest.fixture
def good_facts() -> dict[str, Any]:
    """Return what distinguishes a device that is as it should be."""
    return {"program": "/usr/bin/jtop", "version": "7.2.2", "group": True, "member": True, "socket": True}
