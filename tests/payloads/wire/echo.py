"""A server that echoes, and what asks it."""

from __future__ import annotations

from typing import Iterator

import pytest

from payloads.wire.client import Answer, Channel, Exchange, Request
from payloads.wire.credentials import Credentials
from payloads.wire.frames import FrameError, Kind, pack_header


def handle(header, payload, received_ns):
    if header.kind != Kind.DISPATCH:
        raise FrameError("unexpected kind")
    return [pack_header(Kind.RESULT, len(payload), header.sequence), bytes(payload)]


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    loop = Exchange(stall_timeout_s=10)
    yield loop
    loop.close()


def connect(exchange: Exchange, port: int, credentials: Credentials, name: str = "orin") -> Channel:
    channel = Channel(name, "127.0.0.1", port)
    exchange.connect(channel, credentials, timeout_s=5)
    return channel


def echoed(exchange: Exchange, channel: Channel, *pieces: bytes) -> Answer:
    """Send one dispatch in pieces, and make sure that it comes back."""
    sequence, data = channel.next_sequence(), b"".join(pieces)
    request = Request(channel, sequence, [pack_header(Kind.DISPATCH, len(data), sequence), *pieces])
    (answer,) = exchange.ask([request], Kind.RESULT)
    assert bytes(answer.payload) == data
    return answer
