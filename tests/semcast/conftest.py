"""A rack of two receivers for the tests that need one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from payloads.semcast import hearing
from payloads.semcast.multicast import Collector, Group
from tests.semcast.semcast_rack import SCHEMES, USERS, Rack, free_port, random_network


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
def group() -> Group:
    return Group("239.83.0.1", free_port())


@pytest.fixture
def lossy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lose every other piece that comes by multicast, and do not wait for it."""
    take = Collector._take

    def lose(self: Collector, piece) -> None:
        if piece.place % 2 == 0:
            take(self, piece)

    monkeypatch.setattr(Collector, "_take", lose)
    monkeypatch.setattr(hearing, "GRACE_S", 0.02)
