"""A rack of two receivers for the tests that need one."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from payloads.semcast import hearing
from payloads.semcast.multicast import Collector, Group
from tests.ports import kept_port
from tests.semcast.semcast_rack import SCHEMES, USERS, Rack, random_network


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def rack(tmp_path: Path, one_thread: None, request: pytest.FixtureRequest) -> Iterator[Rack]:
    """Both receivers running; TLS where the test asks for it."""
    made = Rack(
        tmp_path,
        getattr(request, "param", "plain") == "tls",
        {name: random_network(name) for name in SCHEMES},
    )
    try:
        for name in USERS:
            made.start(name)
        yield made
    finally:
        made.close()


@pytest.fixture
def group() -> Iterator[Group]:
    with kept_port(socket.SOCK_DGRAM) as keeper:
        yield Group("239.83.0.1", keeper.getsockname()[1])


@pytest.fixture
def lossy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lose every other piece that comes by multicast, and do not wait for it."""
    take, gather = Collector._take, Collector.gather

    def lose(self: Collector, piece) -> None:
        if piece.place % 2 == 0:
            take(self, piece)

    def gather_the_others(self: Collector, frame: int, size: int, until_s: float) -> list[int]:
        lacking, deadline_s = gather(self, frame, size, until_s), time.monotonic() + 30
        while any(place % 2 == 0 for place in lacking):  # a busy machine brings them late
            assert time.monotonic() < deadline_s
            time.sleep(0.005)
            _, lacking, _ = self.taken()
        return lacking

    monkeypatch.setattr(Collector, "_take", lose)
    monkeypatch.setattr(Collector, "gather", gather_the_others)
    monkeypatch.setattr(hearing, "GRACE_S", 0.02)
