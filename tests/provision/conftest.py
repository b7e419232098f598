import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from testbed.config.inventory import Host, Inventory
from testbed.errors import CommandError, ConnectError
from testbed.hosts.facts import Facts, parse_facts
from testbed.hosts.facts.asked import asked_of
from testbed.hosts.fake import Answer, FakeStream
from testbed.hosts.fleet import Fleet
from testbed.hosts.probes import main as probe_main
from testbed.hosts.steps import Command, Completed, Fetch, Put, Step
from testbed.hosts.transport import OnLine, Stream, Transport
from testbed.provision.aspect import Aspect, Change, Finding, Site
from testbed.provision.aspects.board import BoardKind
from testbed.provision.aspects.code import Code
from testbed.provision.aspects.folders import Folders
from testbed.provision.aspects.kernel import Kernel
from testbed.provision.code import PayloadCode, code_digest


class LocalHost:
    """A host whose commands really run, in a home of its own on this machine.

    Attributes:
        home: The home.
        steps: What was asked for.
        down: Whether it answers to nothing.
        refused: Who has the host, where somebody has.
        left_to_do: After how many steps it goes down.
    """

    def __init__(self, name: str, home: Path) -> None:
        self.name = name
        self.home = home
        self.steps: list[Step] = []
        self.down = False
        self.refused: dict[str, object] = {}
        self.left_to_do: int | None = None

    def run(self, command: Command, *, on_line: OnLine | None = None) -> Completed:
        assert not command.become, "this machine is no board"
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
        with suppress(BrokenPipeError):  # it may fail before it reads
            process.stdin.write(command.stdin)
        with suppress(BrokenPipeError):
            process.stdin.close()
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
        """Let the host be held; nothing else goes on running."""
        self._note(command)
        assert command.title == "hold", command.line()
        said: dict[str, object] = {"held": not self.refused}
        return FakeStream(self.name, Answer(json.dumps(said | {"refused": self.refused or None})))

    def close(self) -> None:
        """There is nothing to close."""

    def changing_steps(self) -> list[str]:
        lines = [step.line() for step in self.steps if step.title not in {"ask for facts", "hold"}]
        self.steps.clear()
        return lines

    def _note(self, step: Step) -> None:
        if self.down:
            raise ConnectError(self.name, "no answer")
        if self.left_to_do is not None and step.title not in {"ask for facts", "hold"}:
            self.left_to_do -= 1
            self.down = self.left_to_do < 0
            if self.down:
                raise ConnectError(self.name, "the connection was lost")
        self.steps.append(step)


@pytest.fixture
def lab() -> Inventory:
    """Return a lab whose base station has what it needs and whose device is looked at as one without jtop."""
    python = {"manage": False, "interpreter": sys.executable}
    hosts = {"bs": {"role": "base_station", "address": "10.0.0.1", "python": python}}
    hosts |= {"dev": {"role": "device", "address": "10.0.0.2", "python": python}}
    # Links shaped in the kernel would need root, and whoever runs the tests may be another.
    return Inventory.model_validate({"lab": "test", "network": {"shaping": "pacing"}, "hosts": hosts})


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


@dataclass(frozen=True)
class Mark:
    """An aspect for tests: a folder in ``~/.testbed``, once others are there."""

    item: str
    needs: str = "."
    reboots: bool = False

    def changes(self, host: Host, facts: Facts) -> Iterator[Change]:
        if self.item not in facts.folders and self.needs in facts.folders:
            make = Command(host.name, f'mkdir "$HOME/.testbed/{self.item}"', f"make {self.item}")
            yield Change(
                host.name,
                self.item,
                f"the {self.item}",
                "missing",
                "there",
                (make,),
                {"there": False},
                reboots=self.reboots,
            )

    def findings(self, host: Host, facts: Facts, changes: Sequence[Change]) -> Iterator[Finding]:
        yield from ()

    def undo(self, host: Host, facts: Facts, recorded: Mapping[str, Any]) -> Iterator[Step]:
        assert recorded == {"there": False}
        yield Command(host.name, f'rm -rf "$HOME/.testbed/{self.item}"', f"remove {self.item}")


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let testbed look after folders and payload code, and what else is named, and nothing else."""

    def only(*more: Aspect) -> None:
        def some(site: Site) -> tuple[Aspect, ...]:
            return (BoardKind(), Folders(), Code(site.code), Kernel(), *more)

        for module in ("plan", "undo"):
            monkeypatch.setattr(f"testbed.provision.{module}.aspects_of", some)

    only()
    return only


@pytest.fixture
def quick_facts(monkeypatch: pytest.MonkeyPatch, local: dict[str, LocalHost]) -> None:
    """Let the probe run in this process, where its Python is not what a test is about."""
    one_home = threading.Lock()  # the process has one; its hosts are side by side

    def gather(host: Host, transport: Transport, **options: object) -> Facts:
        transport.run(Command(host.name, "true", "ask for facts"))
        asked = asked_of(host, ()) | {"python": "/none"}
        with one_home, monkeypatch.context() as patch:
            patch.setenv("HOME", str(local[host.name].home))
            raw = probe_main.facts(asked)
        return parse_facts(host, [(0.0, json.dumps({"facts": raw}))])

    monkeypatch.setattr(probe_main, "tell_clock", lambda: None)
    monkeypatch.setattr("testbed.provision.survey.gather_facts", gather)


@pytest.fixture
def good_facts() -> dict[str, Any]:
    """Return what distinguishes a device that is as it should be."""
    return {"program": "/usr/bin/jtop", "version": "7.2.2", "group": True, "member": True, "socket": True}
