"""The data plane over TLS: messages, counts, paces, slow readers, and the files behind it. Real sockets on loopback."""

from __future__ import annotations

import argparse
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.wire.auth import AuthError
from payloads.wire.client import DeviceLostError
from payloads.wire.connection import Plain, Tls, message_bytes, record_bytes
from payloads.wire.credentials import TlsCertificate, add_credentials, credentials_of
from payloads.wire.frames import HEADER_BYTES, Kind, pack_header, pack_pace
from payloads.wire.sockets import Receiver
from payloads.wire.tls import CERTIFICATE_FILE, KEY_FILE
from tests.runtime import tls_fleet
from tests.runtime.tls_fleet import BS, NOW, ORIN, Fleet, connect, echoed, named, still_serves

exchange, fleet, start = tls_fleet.exchange, tls_fleet.fleet, tls_fleet.start


@given(st.integers(0, 10**9))
def test_records_say_how_long_their_message_is(size):
    assert message_bytes(record_bytes(size)) == size


@pytest.mark.parametrize("size", [0, 1, 16383 - HEADER_BYTES, 16384, 300_000, 3_000_000])
def test_messages_of_any_size_pass_and_are_counted_on_the_wire(start, exchange, fleet, size):
    channel = connect(exchange, start(), fleet.certificate(BS))
    data = os.urandom(size)
    before = channel.bytes_out, channel.bytes_back
    for pieces in ([data], [data[:7], data[7:20], b"", data[20:]]):
        answer = echoed(exchange, channel, *pieces)
        wire = record_bytes(size + HEADER_BYTES)
        assert (answer.bytes_out, answer.bytes_back) == (wire, wire)
    assert (channel.bytes_out - before[0], channel.bytes_back - before[1]) == (2 * wire, 2 * wire)
    assert before[0] > 0  # the handshake counts


def test_what_was_counted_stays_when_the_connection_goes(start, exchange, fleet):
    channel = connect(exchange, start(), fleet.certificate(BS))
    echoed(exchange, channel, b"abc")
    out, back = channel.bytes_out, channel.bytes_back
    exchange.disconnect(channel)
    assert (channel.bytes_out, channel.bytes_back) == (out, back)
    with pytest.raises(DeviceLostError):
        exchange.connect(channel, fleet.certificate(named(ORIN, "bs")))
    assert channel.bytes_out > out, "the failed handshake counts"


def test_paces_hold_over_tls(start, exchange, fleet):
    channel = connect(exchange, start(), fleet.certificate(BS))
    channel.pace(500.0, 400.0)
    prelude = len(pack_pace(400.0))
    out = channel.bytes_out
    assert echoed(exchange, channel, bytes(100_000)).bytes_out + prelude == channel.bytes_out - out
    assert channel.resent() == (0, 0) or None not in channel.resent()
    assert channel.connection._raw._piece


def shaken(ours: socket.socket, theirs: socket.socket, fleet: Fleet) -> tuple[Tls, Tls]:
    """Return both ends over a pair of sockets, after the handshake."""
    asking = Tls(ours, fleet.certificate(BS).files.context(server_side=False))
    answering = Tls(theirs, fleet.certificate(ORIN).files.context(server_side=True), server_side=True)
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


def test_a_trial_over_tls_says_the_same_and_counts_what_is_on_the_wire(make_lab):
    """A base station and three workers: the same text as without TLS, and every byte of a record explained."""
    texts, tables = {}, {}
    for tls in (False, True):
        lab = make_lab(tls=tls)
        station = lab.station()
        result, tables[tls], texts[tls] = lab.run(station)
        for channel, (out, back) in station._devices.traffic().items():
            mine = [row for row in tables[tls] if row["device"] == channel.name]
            control = result["control_bytes"][channel.name]
            assert control["out"] + sum(row["bytes_out"] for row in mine) == out
            assert control["back"] + sum(row["bytes_back"] for row in mine) == back
    assert texts[True] == texts[False]
    for plain, secured in zip(tables[False], tables[True], strict=True):
        for side in ("bytes_out", "bytes_back"):
            assert secured[side] == record_bytes(plain[side])


# The files.


def test_a_program_has_one_mode_and_says_what_is_missing(fleet, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    add_credentials(parser)
    folder = fleet.certificate(ORIN).files.folder
    assert isinstance(credentials_of(parser.parse_args(["--tls", str(folder)])), TlsCertificate)
    for wrong in ([], ["--tls", str(folder), "--key-file", str(tmp_path / "key")]):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args(wrong)
        assert ended.value.code == 2
    with pytest.raises(AuthError, match=r"authority\.pem: No such file or directory; deploy makes it"):
        credentials_of(parser.parse_args(["--tls", str(tmp_path)]))
    with pytest.raises(AuthError, match="cannot read the key file"):
        credentials_of(parser.parse_args(["--key-file", str(tmp_path / "key")]))


def test_a_new_deploy_is_noticed_without_a_restart(start, exchange, fleet):
    device = fleet.certificate(ORIN)
    port = start(device)
    still_serves(exchange, port, fleet)
    other = Fleet(fleet.folder)
    for name, content in other.authority.files(ORIN, NOW).items():
        (device.files.folder / name).write_bytes(content)
    with pytest.raises(DeviceLostError):
        connect(exchange, port, fleet.certificate(BS))
    still_serves(exchange, port, other)


def test_what_is_wrong_with_the_files_is_said(fleet):
    certificate = fleet.certificate(ORIN)
    folder = certificate.files.folder
    certificate.check()
    (folder / KEY_FILE).chmod(0o640)
    with pytest.raises(AuthError, match=r"key\.pem can be read by others: chmod 600 it"):
        certificate.check()
    (folder / KEY_FILE).chmod(0o600)
    (folder / KEY_FILE).write_bytes(fleet.authority.files(ORIN, NOW)[KEY_FILE])
    with pytest.raises(AuthError, match=r"are damaged: .*; deploy again"):
        certificate.check()
    (folder / CERTIFICATE_FILE).unlink()
    with pytest.raises(
        AuthError, match=r"cannot read .*certificate\.pem: No such file or directory; deploy makes it"
    ):
        certificate.check()


def test_a_missing_file_is_said_and_the_server_goes_on(start, exchange, fleet, capsys):
    certificate = fleet.certificate(ORIN)
    port = start(certificate)
    (certificate.files.folder / KEY_FILE).rename(certificate.files.folder / "away")
    with pytest.raises(DeviceLostError):
        connect(exchange, port, fleet.certificate(BS))
    (certificate.files.folder / "away").rename(certificate.files.folder / KEY_FILE)
    still_serves(exchange, port, fleet)
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
