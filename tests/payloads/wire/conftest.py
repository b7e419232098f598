"""Servers of the data plane in threads of this process."""

from __future__ import annotations

import threading
from typing import Callable, Iterator

import pytest

from payloads.wire.server import Server


@pytest.fixture
def serve() -> Iterator[Callable[[Server], int]]:
    """Run servers in threads until the test ends; given one, return its port."""
    running = []

    def begin(one: Server) -> int:
        stop = threading.Event()
        thread = threading.Thread(target=lambda: one.serve(stop.is_set, poll_s=0.02))
        thread.start()
        running.append((one, stop, thread))
        return one.address[1]

    yield begin
    for one, stop, thread in running:
        stop.set()
        thread.join()
        one.close()
