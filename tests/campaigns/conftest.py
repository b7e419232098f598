"""A scripted lab: the real planner and runner over transports that answer from a script."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from testbed.config.inventory import Inventory, load_inventory
from testbed.hosts.fake import Answer, FakeTransport
from testbed.hosts.fleet import Fleet

INVENTORY = """
lab: two
hosts:
  bs: {role: base_station, address: 10.0.0.1, python: {manage: false}}
  left: {role: device, address: 10.0.0.2, board: jetson-orin-nano-8gb, python: {manage: false}}
  right: {role: device, address: 10.0.0.3, board: jetson-orin-nx-16gb, python: {manage: false}}
"""


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    """A lab of a base station and two devices."""
    path = tmp_path / "two.yaml"
    path.write_text(INVENTORY)
    return load_inventory(path)


@pytest.fixture
def records() -> Callable[[str, float], dict[str, bytes]]:
    """Make the files that the base station writes for one trial of one request and two tokens."""

    def make(trial: str, t_s: float) -> dict[str, bytes]:
        request = {"trial": trial, "request": "p1", "warmup": False, "prompt_tokens": 3, "output_tokens": 2}
        request |= {"t_start_s": t_s, "ttft_ms": 9.0, "e2el_ms": 12.0, "text": "so it was"}
        clock = {"t_s": t_s, "device": "left", "offset_s": 5.0, "rtt_ms": 0.2}
        return {
            "requests.jsonl": json.dumps(request).encode() + b"\n",
            "clocks.jsonl": json.dumps(clock).encode() + b"\n",
        }

    return make


@pytest.fixture
def script(inventory: Inventory) -> dict[str, list[tuple[str, object]]]:
    """What each host of the lab answers; a test adds to it before it opens the fleet."""
    return {name: [("services hold", Answer('{"held": true}', times=None))] for name in inventory.hosts}


@pytest.fixture
def transports() -> dict[str, list[FakeTransport]]:
    """Every transport that was made, by host."""
    return {}


@pytest.fixture
def open_fleet(inventory, script, transports) -> Callable[[], Fleet]:
    """Return what makes the connections of the lab."""

    def connect(host) -> FakeTransport:
        transport = FakeTransport(host.name, script[host.name])
        transports.setdefault(host.name, []).append(transport)
        return transport

    return lambda: Fleet(inventory, connect=connect)
