"""Emulated labs for tests: one for the whole session, and small ones that a test may break."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from testbed.emulation import lab as lab_module
from testbed.emulation.settings import load_lab
from testbed.emulation.spec import LabSpec

REPOSITORY = Path(__file__).parents[2]

SMALL = """
lab: {name}
known_hosts: /run/testbed/labs/{name}/known_hosts
defaults:
  key_file: /run/testbed/labs/{name}/id_ed25519
  gateway: nsenter --net=/run/testbed/labs/{name}/net nc {{address}} {{port}}
  python: {{interpreter: /opt/testbed/python, manage: false}}
hosts:
  bs: {{role: base_station, address: 10.{subnet}.0.1}}
  nano: {{role: device, address: 10.{subnet}.0.2, board: jetson-orin-nano-8gb}}
emulation:
  network: 10.{subnet}.0.0/24
  jtop: false
  hosts:
    nano: {{cpu_cores: 0.5, memory_mib: 256}}
"""


@dataclass
class Lab:
    """A lab under test.

    Attributes:
        inventory: Its inventory file.
        spec: What it is to be.
    """

    inventory: Path
    spec: LabSpec

    @property
    def name(self) -> str:
        return self.spec.lab

    def cli(self, verb: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `testbed emulate VERB` on this lab."""
        line = [*cli_line(verb), "--inventory", str(self.inventory), *arguments]
        return subprocess.run(line, capture_output=True, text=True, timeout=300, check=check, cwd=REPOSITORY)

    def command(self, host: str, *argv: str, user: str | None = None) -> list[str]:
        """Return the command line that runs a command on a host, over SSH through the gateway."""
        return lab_module.shell_command(self.spec, host, argv, user=user)

    def run(
        self, host: str, *argv: str, check: bool = True, text: str = "", user: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host."""
        line = self.command(host, *argv, user=user)
        return subprocess.run(line, input=text, capture_output=True, text=True, timeout=300, check=check)

    def state(self) -> dict[str, Any]:
        """Return what the lab's keeper wrote about itself."""
        return json.loads(self.spec.files.state.read_text())


def cli_line(verb: str) -> list[str]:
    return [sys.executable, "-c", "from testbed.cli.main import run; run()", "emulate", verb]


def need_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("an emulated lab needs root")


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The fleet of inventory/emulated.yaml under a name and a network of its own, up for the whole session."""
    need_root()
    name = f"test-{os.getpid()}"
    text = (REPOSITORY / "inventory/emulated.yaml").read_text()
    inventory = tmp_path_factory.mktemp("lab") / "emulated.yaml"
    inventory.write_text(text.replace("quickstart", name).replace("10.83.", "10.84."))
    found = Lab(inventory, load_lab(inventory))
    lab_module.up(found.spec)
    try:
        yield found
    finally:
        lab_module.down(name)


@pytest.fixture
def small_lab(tmp_path: Path) -> Iterator[Callable[[], Lab]]:
    """Make small labs (a base station and one board without jtop), not up yet; whatever is left of them is ended."""
    need_root()
    made: list[Lab] = []

    def make() -> Lab:
        name = f"small{len(made)}-{os.getpid()}"
        inventory = tmp_path / f"{name}.yaml"
        inventory.write_text(SMALL.format(name=name, subnet=90 + len(made)))
        made.append(Lab(inventory, load_lab(inventory)))
        return made[-1]

    yield make
    for lab in made:
        lab_module.down(lab.name)


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., Any]:
    """Call something until it returns something true."""

    def wait(what: Callable[[], Any], *, timeout_s: float = 120.0) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (found := what()):
            assert time.monotonic() < deadline, f"{what} stayed false"
            time.sleep(0.02)
        return found

    return wait


@pytest.fixture(scope="session")
def emulate_line() -> Callable[[str], Sequence[str]]:
    """Return the command line of `testbed emulate VERB`."""
    return cli_line
