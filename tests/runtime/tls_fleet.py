"""What the tests of TLS share: a fleet's certificates, a server that echoes, and what asks it."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from payloads.wire.client import Exchange
from payloads.wire.credentials import Credentials, TlsCertificate
from payloads.wire.server import Server, listen
from payloads.wire.tls import AUTHORITY_FILE
from testbed.config.inventory import Host
from testbed.hosts.authority import Authority, new_authority
from tests.payloads.wire import echo
from tests.payloads.wire.echo import connect, echoed

NOW = datetime.now(UTC)
BS = Host(name="bs", role="base_station", address="127.0.0.1")
ORIN = Host(name="orin", role="device", address="127.0.0.1")

exchange = echo.exchange


class Fleet:
    """Folders with certificates of an authority, as deploys leave them on hosts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = new_authority("rack", NOW)

    def certificate(self, host: Host, *, now: datetime = NOW, by: Authority | None = None) -> TlsCertificate:
        """Return what a host proves itself with."""
        place = self.folder / os.urandom(4).hex()
        place.mkdir()
        for name, content in (by or self.authority).files(host, now).items():
            (place / name).write_bytes(content)
            (place / name).chmod(0o600)
        return TlsCertificate(place)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet(tmp_path_factory.mktemp("fleet"))


@pytest.fixture
def start(fleet: Fleet, serve: Callable[[Server], int]) -> Callable[..., int]:
    """Start a server that echoes; return its port."""

    def begin(credentials: Credentials | None = None) -> int:
        return serve(
            Server(listen("127.0.0.1", 0), credentials or fleet.certificate(ORIN), echo.handle, "test")
        )

    return begin


def still_serves(exchange: Exchange, port: int, fleet: Fleet) -> None:
    channel = connect(exchange, port, fleet.certificate(BS))
    echoed(exchange, channel, b"abc")
    exchange.disconnect(channel)


def gone(connection: socket.socket) -> bool:
    """Whether the other end closes; what it says before does not matter."""
    connection.settimeout(10)
    try:
        while connection.recv(1 << 16):
            pass
    except (ConnectionError, ssl.SSLError):
        pass
    return True


def named(host: Host, name: str) -> Host:
    return host.model_copy(update={"name": name})


def mixed(fleet: Fleet, stranger: TlsCertificate) -> TlsCertificate:
    """Let a stranger believe in this fleet's authority, so that only the other end can refuse."""
    (stranger.files.folder / AUTHORITY_FILE).write_bytes(
        (fleet.certificate(BS).files.folder / AUTHORITY_FILE).read_bytes()
    )
    return stranger
