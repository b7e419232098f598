"""The data plane over TLS: messages, counts, paces, slow readers, and the files behind it. Real sockets on loopback."""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.wire.auth import AuthError
from payloads.wire.client import DeviceLostError
from payloads.wire.connection import Plain, Tls, message_bytes, record_bytes
from payloads.wire.credentials import TlsCertificate, add_credentials, credentials_of
from payloads.wire.frames import HEADER_BYTES, Kind, pack_header, pack_pace
from payloads.wire.server import Server, listen
from payloads.wire.sockets import Receiver
from payloads.wire.tls import KEY_FILE
from tests.payloads.wire import echo
from tests.payloads.wire.echo import connect, echoed

ROOT = Path(__file__).parents[3]
exchange = echo.exchange

#: Makes the folders that a deploy leaves on hosts; the device code makes no certificates, so the controller does.
MAKE = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from testbed.config.inventory import Host
from testbed.hosts.authority import new_authority

now = datetime.now(UTC)
authority = new_authority("rack", now)
for folder, name, role in (("bs", "bs", "base_station"), ("orin", "orin", "device"), ("impostor", "bs", "device")):
    place = Path(sys.argv[1]) / folder
    place.mkdir()
    for file, content in authority.files(Host(name=name, role=role, address="127.0.0.1"), now).items():
        (place / file).write_bytes(content)
        (place / file).chmod(0o600)
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TlsCertificate]:
    """What hosts of one authority prove themselves with: bs, orin, and one that is a device by the name of bs."""
    folder = tmp_path_factory.mktemp("fleet")
    # Under the Python of a board, that of the project is named.
    python = os.environ.get("TESTBED_CONTROLLER_PYTHON", sys.executable)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    subprocess.run([python, "-c", MAKE, str(folder)], cwd=ROOT, env=environment, check=True)
    return lambda name: TlsCertificate(folder / name)


@pytest.fixture
def start(
    fleet: Callable[[str], TlsCertificate], serve: Callable[[Server], int]
) -> Callable[[TlsCertificate], int]:
    """Start a server that echoes; return its port."""
    return lambda mine: serve(Server(listen("127.0.0.1", 0), mine, echo.handle, "test"))


@given(st.integers(0, 10**9))
def test_records_say_how_long_their_message_is(size):
    assert message_bytes(record_bytes(size)) == size


@pytest.mark.parametrize("size", [0, 1, 16383 - HEADER_BYTES, 16384, 300_000, 3_000_000])
def test_messages_of_any_size_pass_and_are_counted_on_the_wire(start, exchange, fleet, size):
    channel = connect(exchange, start(fleet("orin")), fleet("bs"))
    data = os.urandom(size)
    before = channel.bytes_out, channel.bytes_back
    for pieces in ([data], [data[:7], data[7:20], b"", data[20:]]):
        answer = echoed(exchange, channel, *pieces)
        wire = record_bytes(size + HEADER_BYTES)
        assert (answer.bytes_out, answer.bytes_back) == (wire, wire)
    assert (channel.bytes_out - before[0], channel.bytes_back - before[1]) == (2 * wire, 2 * wire)
    assert before[0] > 0  # the handshake counts


def test_what_was_counted_stays_when_the_connection_goes(start, exchange, fleet):
    channel = connect(exchange, start(fleet("orin")), fleet("bs"))
    echoed(exchange, channel, b"abc")
    out, back = channel.bytes_out, channel.bytes_back
    exchange.disconnect(channel)
    assert (channel.bytes_out, channel.bytes_back) == (out, back)
    with pytest.raises(DeviceLostError):
        exchange.connect(channel, fleet("impostor"))
    assert channel.bytes_out > out, "the failed handshake counts"


def test_paces_hold_over_tls(start, exchange, fleet):
    channel = connect(exchange, start(fleet("orin")), fleet("bs"))
    channel.pace(500.0, 400.0)
    prelude = len(pack_pace(400.0))
    out = channel.bytes_out
    assert echoed(exchange, channel, bytes(100_000)).bytes_out + prelude == channel.bytes_out - out
    assert channel.resent() == (0, 0) or None not in channel.resent()
    assert channel.connection._raw._piece


def shaken(
    ours: socket.socket, theirs: socket.socket, fleet: Callable[[str], TlsCertificate]
) -> tuple[Tls, Tls]:
    """Return both ends over a pair of sockets, after the handshake."""
    asking = Tls(ours, fleet("bs").files.context(server_side=False))
    answering = Tls(theirs, fleet("orin").files.context(server_side=True), server_side=True)
    done = [False, False]
    for _ in range(20):
        done = [done[0] or asking.handshake(), done[1] or answering.handshake()]
    assert all(done)
    return asking, answering


def test_a_frame_that_came_with_the_last_one_is_not_waited_for(fleet):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for one in (ours, theirs):
            one.setblocking(False)
        asking, answering = shaken(ours, theirs, fleet)
        receiver = Receiver()
        first = pack_header(Kind.DISPATCH, len(receiver._buffer) - HEADER_BYTES, 1)  # it fills the buffer
        asking.send([first, bytes(len(receiver._buffer) - HEADER_BYTES), pack_header(Kind.DESCRIBE, 0, 2)])
        header = None
        while header is None:
            header = receiver.receive(answering)
        assert (header.sequence, receiver.left_bytes) == (1, 0)
        header = receiver.receive(answering, waits=True)
        assert header is not None
        assert header.sequence == 2


def test_a_slow_reader_gets_everything_and_little_waits_encrypted(fleet):
    """Both ends over a socket pair whose kernel takes almost nothing at once."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for one in (ours, theirs):
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        asking, answering = shaken(ours, theirs, fleet)
        data = os.urandom(1_500_000)
        rest, got, calls = asking.send([data[:10], data[10:]]), bytearray(), 0
        view = memoryview(bytearray(5000))
        while rest or len(got) < len(data):
            calls += 1
            assert calls < 100_000
            assert sum(map(len, asking._unsent)) <= record_bytes(1 << 18)
            try:
                got += view[: answering.recv_into(view)]
            except BlockingIOError:
                rest = asking.send(rest) if rest else rest
        assert bytes(got) == data
        assert not answering.pending()
        assert calls > 100
        with pytest.raises(BlockingIOError):
            answering.recv_into(view)
        ours.close()
        assert answering.recv_into(view) == 0


def test_a_program_has_one_mode_and_says_what_is_missing(fleet, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    add_credentials(parser)
    folder = fleet("orin").files.folder
    assert isinstance(credentials_of(parser.parse_args(["--tls", str(folder)])), TlsCertificate)
    for wrong in ([], ["--tls", str(folder), "--key-file", str(tmp_path / "key")]):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args(wrong)
        assert ended.value.code == 2
    with pytest.raises(AuthError, match=r"authority\.pem: No such file or directory; deploy makes it"):
        credentials_of(parser.parse_args(["--tls", str(tmp_path)]))
    with pytest.raises(AuthError, match="cannot read the key file"):
        credentials_of(parser.parse_args(["--key-file", str(tmp_path / "key")]))


def test_a_missing_file_is_said_and_the_server_goes_on(start, exchange, fleet, tmp_path, capsys):
    folder = tmp_path / "moved"
    shutil.copytree(str(fleet("orin").files.folder), str(folder))
    port = start(TlsCertificate(folder))
    (folder / KEY_FILE).rename(folder / "away")
    with pytest.raises(DeviceLostError):
        connect(exchange, port, fleet("bs"))
    (folder / "away").rename(folder / KEY_FILE)
    echoed(exchange, connect(exchange, port, fleet("bs")), b"abc")
    assert "key.pem: No such file" in capsys.readouterr().err


def test_both_modes_hand_over_plain_sockets_alike():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = Plain(ours)
        theirs.sendall(b"abc")
        view = memoryview(bytearray(8))
        assert connection.recv_into(view) == 3
        assert connection.send([b"d", b"ef"]) == []
        assert (connection.wire_out, connection.wire_back, connection.pending()) == (3, 3, 0)
