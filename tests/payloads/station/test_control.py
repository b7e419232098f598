"""The base station's control socket outlives whatever a client sends and is waited for; lost devices come back."""

from __future__ import annotations

import json
import socket
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Sequence

import pytest

from payloads.station import bsctl
from payloads.station.control import Control
from payloads.station.devices import Devices, DeviceSpec
from payloads.wdmoe.bs.fleet import FleetSpec, mismatch
from payloads.wire.client import Answer, Channel, DeviceLostError, Exchange, Request
from payloads.wire.connection import Plain


def _ask(path: Path, line: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(line + b"\n")
        with connection.makefile("rb") as answer:
            return answer.readline()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own folder by a path that is short enough for a socket, wherever it lies."""
    monkeypatch.chdir(tmp_path)
    return Path()


@pytest.mark.parametrize("line", [b"[" * 60_000, b"{", b"3", b"\xff", b""])
def test_a_bad_request_leaves_the_control_socket_working(here: Path, line: bytes) -> None:
    control = Control(here / "bs.sock", lambda: {"model": "m"})
    try:
        assert _ask(control.path, line) == b""
        answer = json.loads(_ask(control.path, b'{"do": "status"}'))
        assert answer == {"result": {"model": "m", "doing": None}}
    finally:
        control.close()


class _Restarted(Exchange):
    """Every device has been restarted: what was connected before is dead, and noticed one at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: set[Channel] = set()

    def connect(self, channel: Channel, credentials: object, timeout_s: float = 5.0) -> None:
        self.disconnect(channel)
        channel.connection = Plain(socket.socket())
        self.alive.add(channel)

    def disconnect(self, channel: Channel) -> None:
        self.alive.discard(channel)
        if channel.connection is not None:
            channel.connection.close()
            channel.connection = None

    def ask(self, requests: Sequence[Request], kind: int, **_patience: object) -> list[Answer]:
        for request in requests:
            if request.channel not in self.alive:
                self.disconnect(request.channel)
                raise DeviceLostError(request.channel.name, "connection closed")
        text: Any = memoryview(b'{"manifest": "m", "dtype": "float32", "experts": [], "parameters": 0}')
        return [Answer(text, 0, 0, 0, 0, 0) for _ in requests]


def test_several_devices_that_were_restarted_are_all_connected_again(tmp_path: Path) -> None:
    exchange = _Restarted()
    devices = Devices(exchange, tmp_path / "key")
    names = ("a", "b", "c")
    fleet = FleetSpec(tuple(DeviceSpec(name, "127.0.0.1", 1) for name in names), ())
    devices.prepare(fleet.devices, partial(mismatch, fleet, "m", "float32"))
    exchange.alive.clear()
    devices.prepare(fleet.devices, partial(mismatch, fleet, "m", "float32"))
    assert {channel.name for channel in exchange.alive} == set(names)
    for channel in devices.channels.values():
        exchange.disconnect(channel)
    exchange.close()


def test_work_waits_for_a_base_station_that_is_started_again(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states, controls, path = ["running", "waiting", "running"], [], here / "bs.sock"

    class Services:
        def status(self) -> list[dict[str, str]]:
            return [{"name": "linkd", "state": "running"}, {"name": "base-station", "state": states.pop(0)}]

    def sleep(_seconds: float) -> None:
        if not states:
            controls.append(Control(path, lambda: {"model": "m"}))

    monkeypatch.setattr(bsctl, "services_here", Services)
    monkeypatch.setattr(bsctl, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    with bsctl._connected(path, bsctl.START_S) as connection:
        connection.sendall(b'{"do": "status"}\n')
        assert json.loads(connection.recv(1000))["result"]["model"] == "m"
    controls[0].close()
    # What is given up is not waited for, nor does anybody wait who wants to know what is now.
    states.append("failed")
    for wait_s in (bsctl.START_S, 0.0):
        with pytest.raises(FileNotFoundError):
            bsctl._connected(path, wait_s)
    assert states == []
    # Nor is one whose socket cannot be used for another reason.
    path.touch()
    with pytest.raises(NotADirectoryError):
        bsctl._connected(path / "bs.sock", bsctl.START_S)
