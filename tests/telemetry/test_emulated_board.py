"""Services and loggers on an emulated board: over real SSH, with the genuine jtop service."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.emulation import lab as lab_module
from testbed.emulation.power import LoadStep, energy_mj
from testbed.emulation.settings import load_lab
from testbed.telemetry.energy import Energy, energy_joules

pytestmark = [pytest.mark.emulated, pytest.mark.alone]

ROOT = Path(__file__).parents[2]
INVENTORY = """
lab: {name}
known_hosts: /run/testbed/labs/{name}/known_hosts
defaults:
  key_file: /run/testbed/labs/{name}/id_ed25519
  gateway: nsenter --net=/run/testbed/labs/{name}/net nc {{address}} {{port}}
  python: {{interpreter: /opt/testbed/python, manage: false}}
hosts:
  bs: {{role: base_station, address: 10.86.0.1}}
  agx: {{role: device, address: 10.86.0.2, board: jetson-agx-orin-64gb}}
emulation:
  network: 10.86.0.0/24
"""
PYTHON = 'PYTHONPATH="$HOME/.testbed/current" exec /opt/testbed/python -m payloads'
JTOP_HZ = 5


class Board:
    """One emulated board with the payload code on it."""

    def __init__(self, inventory: Path) -> None:
        self.spec = load_lab(inventory)

    def line(self, script: str) -> list[str]:
        return lab_module.shell_command(self.spec, "agx", ["sh", "-c", script])

    def run(self, script: str, *, sent: bytes = b"") -> str:
        done = subprocess.run(self.line(script), input=sent, capture_output=True, timeout=90, check=True)
        return done.stdout.decode()

    def services(self, *arguments: str) -> str:
        return self.run(f"{PYTHON}.services {' '.join(arguments)}")

    def rows(self, name: str) -> list[list[str]]:
        return [line.split(",") for line in self.run(f"cat .testbed/runs/r/{name}").splitlines()[1:]]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    if os.geteuid() != 0:
        pytest.skip("an emulated lab needs root")
    name = f"logs-{os.getpid()}"
    inventory = tmp_path_factory.mktemp("lab") / "board.yaml"
    inventory.write_text(INVENTORY.format(name=name))
    made = Board(inventory)
    lab_module.up(made.spec)
    try:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for folder in ("", "services", "boardlog"):
                for path in (ROOT / "payloads" / folder).glob("*.py"):
                    archive.add(path, path.relative_to(ROOT))
        unpack = "mkdir -p .testbed/code/1 && tar -xz -C .testbed/code/1 && ln -sfn code/1 .testbed/current"
        made.run(unpack, sent=packed.getvalue())
        yield made
    finally:
        lab_module.down(name)


@pytest.fixture
def loggers(board: Board) -> Iterator[None]:
    """Both loggers, held by a lease that this test owns."""
    holder = subprocess.Popen(
        board.line(f"{PYTHON}.services hold --ttl 60"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin
    assert holder.stdout
    try:
        assert json.loads(holder.stdout.readline())["held"] is True
        logger = "/opt/testbed/python -m payloads.boardlog"
        out = "'~/.testbed/runs/r"
        board.services(f"start powerlog --restart -- {logger} power --hz 20 --out {out}/power.csv'")
        board.services(f"start jtoplog --restart -- {logger} jtop --hz {JTOP_HZ} --out {out}/jtop.csv'")
        yield
    finally:
        holder.kill()  # as when a controller is killed
        holder.communicate()
    deadline = time.monotonic() + 30
    while '"running"' in board.services("status", "--json"):
        assert time.monotonic() < deadline, "services outlived the connection of their lease"
        time.sleep(0.1)
    board.run("rm -r .testbed/runs")


def test_the_energy_of_a_scripted_load_is_that_of_the_power_model(board, loggers):
    kind = next(host.kind for host in board.spec.hosts if host.name == "agx")
    # It ends at rest: what jtop reports is a moment old, which tells where the power at both ends differs.
    steps = [LoadStep(1.5, 0.2), LoadStep(2.0, 1.0), LoadStep(1.0, 0.5), LoadStep(3.0, 0.0)]
    seconds = sum(step.seconds for step in steps)

    def measure() -> dict[tuple[str, str], tuple[Energy, float]]:
        begun = lab_module.load(board.spec, "agx", steps)
        time.sleep(seconds + 1.0)
        start_s = begun["start_mono_ns"] / 1e9
        found = {}
        for source, name in (("sysfs", "power.csv"), ("jtop", "jtop.csv")):
            rows = board.rows(name)
            for rail in kind.live_rails:
                key = rail.label if source == "sysfs" else f"power_{rail.label}_mw"
                mine = [row for row in rows if row[1] == key]
                times, power = [int(row[0]) / 1e9 for row in mine], [float(row[2]) for row in mine]
                exact = energy_mj(rail.power, steps, level=begun["level"], tau_s=kind.tau_s) / 1000
                found[source, rail.label] = energy_joules(times, power, start_s, start_s + seconds), exact
        return found

    time.sleep(1.0)
    # A machine too busy for jtop to keep its beat leaves holes, and says so: then it gets another chance.
    for _ in range(5):
        found = measure()
        if not any(energy.error for energy, _ in found.values()):
            break
    for place, (energy, exact) in found.items():
        assert energy.checked().joules == pytest.approx(exact, rel=0.01), place


def test_the_rails_of_a_board_and_their_total(board):
    shown = json.loads(board.run(f"{PYTHON}.boardlog rails --json"))
    kind = next(host.kind for host in board.spec.hosts if host.name == "agx")
    assert shown["total_rule"] == kind.total_rule
    assert shown["rails"] == [rail.label for rail in kind.live_rails]


def test_the_jtop_logger_outlives_the_jtop_service(board, loggers):
    keys = {row[1] for row in board.rows("jtop.csv")}
    assert {"power_total_mw", "gpu_load_percent", "cpu_load_percent", "ram_used_mb", "temp_cpu_c"} <= keys
    board.run("pkill -9 -f 'jtop --forc[e]'")
    killed_ns = time.monotonic_ns()
    deadline = time.monotonic() + 60
    # Later than anything that was still under way: the service is back, and so is its client.
    while int(board.rows("jtop.csv")[-1][0]) < killed_ns + 2_000_000_000:
        assert time.monotonic() < deadline, board.services("logs", "jtoplog")
        time.sleep(0.5)
    assert "jtop" in board.services("logs", "jtoplog")
