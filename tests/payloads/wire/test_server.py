"""The worker's server against clients that do not behave: real sockets on loopback."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest

from payloads.wire import auth, frames, server
from payloads.wire.client import Channel, DeviceLostError, DeviceRefusedError, Exchange, Request
from payloads.wire.credentials import PlainKey
from payloads.wire.frames import Kind, pack_header, pack_ping
from payloads.wire.header import HEADER, MAGIC
from payloads.wire.server import Server, listen, parse_listen


@pytest.fixture
def keys(tmp_path):
    for name, byte in (("right", "11"), ("wrong", "22")):
        (tmp_path / name).write_text(byte * 32)
        (tmp_path / name).chmod(0o600)
    return tmp_path


@pytest.fixture
def start(keys, serve):
    """A function that starts a server; its handler echoes dispatches and refuses descriptions."""

    def echo(header, payload, received_ns):
        if header.kind == Kind.DESCRIBE:
            return [frames.pack_error("no such thing", header.sequence)]
        if header.kind != Kind.DISPATCH:
            raise frames.FrameError("unexpected kind")
        return [pack_header(Kind.RESULT, len(payload), header.sequence), bytes(payload)]

    def begin(handler=echo, key="right"):
        return serve(Server(listen("127.0.0.1", 0), PlainKey(keys / key), handler, "test"))

    return begin


@pytest.fixture
def exchange():
    loop = Exchange(stall_timeout_s=10)
    yield loop
    loop.close()


def ask(exchange, channel, kind, payload=b"", expect=None):
    sequence = channel.next_sequence()
    request = Request(channel, sequence, [pack_header(kind, len(payload), sequence), payload])
    return exchange.ask([request], expect or kind)[0]


def connect(exchange, port, key):
    channel = Channel("orin", "127.0.0.1", port)
    exchange.connect(channel, PlainKey(key), timeout_s=5)
    return channel


OPENED: list[socket.socket] = []


@pytest.fixture(autouse=True)
def close_sockets():
    yield
    while OPENED:
        OPENED.pop().close()


def raw(port):
    OPENED.append(socket.create_connection(("127.0.0.1", port), 5))
    return OPENED[-1]


def whole(connection, size):
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        assert part, "closed too early"
        data += part
    return data


def authenticated(port, key):
    connection = raw(port)
    nonce = auth.new_nonce()
    connection.sendall(auth.pack_hello(nonce))
    secrets = auth.unpack_challenge(auth.read_key(key), nonce, whole(connection, auth.CHALLENGE_BYTES))
    connection.sendall(auth.pack_proof(secrets))
    assert whole(connection, len(auth.WELCOME)) == auth.WELCOME
    return connection


def closed(connection):
    try:
        return connection.recv(1000) == b""
    except ConnectionResetError:
        return True


def still_serves(exchange, port, keys):
    channel = connect(exchange, port, keys / "right")
    assert bytes(ask(exchange, channel, Kind.DISPATCH, b"abc", Kind.RESULT).payload) == b"abc"
    exchange.disconnect(channel)


def test_a_client_refuses_a_server_without_the_key(start, exchange, keys):
    with pytest.raises(DeviceLostError, match=r"device orin lost: .*does not hold this deploy's key"):
        connect(exchange, start(key="wrong"), keys / "right")


def test_a_server_refuses_a_client_without_the_key(start, exchange, keys, capsys):
    port = start()
    connection = raw(port)
    connection.sendall(auth.pack_hello(auth.new_nonce()))
    challenge = whole(connection, auth.CHALLENGE_BYTES)
    assert len(challenge) == auth.CHALLENGE_BYTES
    # A guess, and the server's own proof sent back to it.
    connection.sendall(challenge[-auth.PROOF_BYTES :])
    assert closed(connection)
    assert "refused: it does not hold this deploy's key" in capsys.readouterr().err
    still_serves(exchange, port, keys)


def test_nothing_is_handled_before_the_proof(start, exchange, keys, monkeypatch):
    monkeypatch.setattr(server, "HANDSHAKE_TIMEOUT_S", 0.3)
    seen = []
    port = start(lambda *frame: seen.append(frame) or [])
    for data in (
        pack_header(Kind.DISPATCH, 3, 1) + b"abc",
        os.urandom(400),
        auth.pack_hello(auth.new_nonce()) + pack_header(Kind.DISPATCH, 0, 1) + bytes(100),
    ):
        connection = raw(port)
        connection.sendall(data)
        while not closed(connection):
            pass
        connection.close()
    assert not seen


def test_a_client_of_another_version_is_told(start, exchange, keys):
    port = start()
    connection = raw(port)
    hello = bytearray(auth.pack_hello(auth.new_nonce()))
    hello[8] = 9
    connection.sendall(hello)
    challenge = whole(connection, auth.CHALLENGE_BYTES)
    assert challenge[8] == frames.PROTOCOL_VERSION
    assert closed(connection)
    notice = auth.pack_version_notice()
    with pytest.raises(auth.AuthError, match="does not hold"):
        auth.unpack_challenge(bytes(32), bytes(32), notice)
    with pytest.raises(auth.AuthError, match="version 9"):
        auth.unpack_hello(bytes(hello))


@pytest.mark.unhurried
def test_a_silent_client_is_put_out_and_holds_up_nobody(start, exchange, keys, monkeypatch, capsys):
    # The one that behaves has to make it on a busy machine.
    monkeypatch.setattr(server, "HANDSHAKE_TIMEOUT_S", 3.0)
    port = start()
    silent, slow = raw(port), raw(port)
    slow.sendall(auth.pack_hello(auth.new_nonce())[:10])
    still_serves(exchange, port, keys)
    assert closed(silent)
    assert closed(slow)
    assert capsys.readouterr().err.count("no handshake in time") == 2


def test_however_many_say_nothing_the_base_station_comes_in(start, exchange, keys, monkeypatch, capsys):
    monkeypatch.setattr(server, "MAX_STRANGERS", 4)
    monkeypatch.setattr(server, "HANDSHAKE_TIMEOUT_S", 600.0)  # none of them goes by itself
    port = start()

    def elsewhere():
        OPENED.append(socket.create_connection(("127.0.0.1", port), 5, source_address=("127.0.0.2", 0)))
        return OPENED[-1]

    slow = elsewhere()
    nonce = auth.new_nonce()
    slow.sendall(auth.pack_hello(nonce))
    challenge = whole(slow, auth.CHALLENGE_BYTES)
    silent = [raw(port) for _ in range(6)]
    for first in silent[:3]:
        assert closed(first)
    # One from the crowd's own address, which may be a NAT's, comes in; and so does one that began before the crowd.
    still_serves(exchange, port, keys)
    slow.sendall(auth.pack_proof(auth.unpack_challenge(auth.read_key(keys / "right"), nonce, challenge)))
    assert whole(slow, len(auth.WELCOME)) == auth.WELCOME
    assert closed(silent[3])
    silent[4].setblocking(False)
    with pytest.raises(BlockingIOError):  # there was room for it
        silent[4].recv(1)
    assert capsys.readouterr().err.count("refused: too many connections") == 4


@pytest.mark.parametrize(
    "garbage",
    [
        os.urandom(64),
        HEADER.pack(MAGIC, frames.PROTOCOL_VERSION, 99, 0, 1),
        HEADER.pack(MAGIC, frames.PROTOCOL_VERSION, Kind.DISPATCH, 2**31, 1),
        pack_header(Kind.PING, 3, 1) + b"abc",
        pack_header(Kind.RESULT, 3, 1) + b"abc",
    ],
    ids=["noise", "unknown kind", "too long", "wrong ping", "not for a worker"],
)
def test_a_broken_frame_closes_that_connection_alone(start, exchange, keys, capsys, garbage):
    port = start()
    connection = authenticated(port, keys / "right")
    connection.sendall(garbage)
    while not closed(connection):
        pass
    lines = [line for line in capsys.readouterr().err.splitlines() if " closed: " in line]
    assert len(lines) == 1
    still_serves(exchange, port, keys)


def test_a_truncated_frame_waits_and_then_goes_with_its_connection(start, exchange, keys):
    port = start()
    connection = authenticated(port, keys / "right")
    connection.sendall(pack_header(Kind.DISPATCH, 100, 1) + b"half")
    still_serves(exchange, port, keys)
    connection.close()
    still_serves(exchange, port, keys)


def test_frames_in_small_pieces_and_several_at_once(start, keys):
    connection = authenticated(start(), keys / "right")
    frame = pack_header(Kind.DISPATCH, 3, 5) + b"abc"
    for byte in frame:
        connection.sendall(bytes([byte]))
    answer = pack_header(Kind.RESULT, 3, 5) + b"abc"
    assert whole(connection, len(answer)) == answer
    connection.sendall(frame * 3)
    assert whole(connection, 3 * len(answer)) == answer * 3
    connection.close()


def test_large_frames_to_several_devices_at_once(start, exchange, keys):
    channels = [connect(exchange, start(), keys / "right") for _ in range(3)]
    data = os.urandom(5_000_000)
    for _ in range(2):
        requests = []
        for channel in channels:
            sequence = channel.next_sequence()
            requests.append(
                Request(channel, sequence, [pack_header(Kind.DISPATCH, len(data), sequence), data])
            )
        answers = exchange.ask(requests, Kind.RESULT)
        for answer in answers:
            assert bytes(answer.payload) == data
            assert answer.bytes_out == answer.bytes_back == len(data) + frames.HEADER_BYTES
            assert answer.sent_ns <= answer.first_ns <= answer.done_ns


def test_an_error_frame_reaches_the_caller_and_keeps_the_connection(start, exchange, keys):
    channel = connect(exchange, start(), keys / "right")
    with pytest.raises(DeviceRefusedError, match="device orin: no such thing"):
        ask(exchange, channel, Kind.DESCRIBE, b"", Kind.DESCRIPTION)
    assert bytes(ask(exchange, channel, Kind.DISPATCH, b"x", Kind.RESULT).payload) == b"x"


def test_a_device_that_goes_away_or_hangs_is_lost(start, exchange, keys):
    port = start(lambda *_: (_ for _ in ()).throw(frames.FrameError("no")))
    channel = connect(exchange, port, keys / "right")
    with pytest.raises(DeviceLostError, match="device orin lost: connection closed"):
        ask(exchange, channel, Kind.DISPATCH, b"x", Kind.RESULT)
    assert not channel.connected
    with pytest.raises(DeviceLostError, match="not connected"):
        ask(exchange, channel, Kind.DISPATCH, b"x", Kind.RESULT)
    exchange.stall_timeout_s = 0.1
    hanging = connect(exchange, start(lambda *_: time.sleep(0.5) or []), keys / "right")
    with pytest.raises(DeviceLostError, match=r"no answer within 0\.1 s"):
        ask(exchange, hanging, Kind.DISPATCH, b"x", Kind.RESULT)


def test_an_answer_to_something_else_is_not_taken(start, exchange, keys):
    channel = connect(
        exchange, start(lambda h, p, _: [pack_header(Kind.RESULT, 0, h.sequence + 1)]), keys / "right"
    )
    with pytest.raises(DeviceLostError, match="not asked"):
        ask(exchange, channel, Kind.DISPATCH, b"x", Kind.RESULT)


def test_nobody_there(exchange, keys):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(DeviceLostError, match=r"cannot connect to 127\.0\.0\.1:\d+: Connection refused"):
        connect(exchange, port, keys / "right")


def test_a_key_file_that_others_may_read_is_refused(keys):
    (keys / "right").chmod(0o644)
    with pytest.raises(auth.AuthError, match="chmod 600"):
        auth.read_key(keys / "right")
    (keys / "wrong").write_text("abcd")
    with pytest.raises(auth.AuthError, match="2 bytes instead of 32"):
        auth.read_key(keys / "wrong")


@pytest.mark.parametrize("text", ["7070", ":7070", "a:b", "a:99999", ""])
def test_a_listen_address_needs_both_parts(text):
    with pytest.raises(ValueError, match="ADDRESS:PORT"):
        parse_listen(text)
    assert parse_listen("0.0.0.0:7070") == ("0.0.0.0", 7070)


def test_a_peer_that_never_rests_keeps_nobody_else_waiting(start, exchange, keys):
    port = start()
    busy, done = connect(exchange, port, keys / "right"), threading.Event()
    asked = []

    def chatter():
        while not done.is_set() and len(asked) < 100_000:
            asked.append(len(ask(exchange, busy, Kind.DISPATCH, b"abc", Kind.RESULT).payload))

    thread = threading.Thread(target=chatter)
    thread.start()
    try:
        while not asked and thread.is_alive():
            time.sleep(0.001)
        other = Exchange(stall_timeout_s=10)
        still_serves(other, port, keys)  # a handshake, and a question, in between
        other.close()
    finally:
        done.set()
        thread.join()
    assert asked
    assert set(asked) == {3}


class Asker:
    """A connection on which pings come one after the other; tells whether somebody waited for each."""

    def __init__(self, pings):
        self.pings = pings
        self.waited = []

    def fileno(self):
        return 0

    def retransmitted_bytes(self):
        return 0

    def pending(self):
        return 0

    def send(self, buffers):
        return []

    def recv_into(self, view, waited=False):
        if len(self.waited) == self.pings:
            raise BlockingIOError
        self.waited.append(waited)
        ping = pack_ping(1, len(self.waited))
        view[: len(ping)] = ping
        return len(ping)

    def wait_into(self, view):
        return self.recv_into(view, waited=True)


def test_the_server_stays_with_its_only_peer_and_with_no_other(start, keys):
    one = Server(listen("127.0.0.1", 0), PlainKey(keys / "right"), lambda *_: [], "test")
    try:
        only = Asker(3)
        one._peers[0] = server._Peer(only, "only")
        one._serve_peer(0, one._peers[0])
        assert only.waited == [False, True, True], "epoll had told of the first"
        first = Asker(3)
        one._peers = {0: server._Peer(first, "first"), 1: server._Peer(Asker(0), "second")}
        one._serve_peer(0, one._peers[0])
        assert first.waited == [False], "the others come by epoll, as those of the second do"
    finally:
        one._peers.clear()
        one.close()


def test_the_server_looks_around_after_a_moment_with_its_only_peer(start, keys, monkeypatch):
    monkeypatch.setattr(server, "_STAY_NS", 0)
    one = Server(listen("127.0.0.1", 0), PlainKey(keys / "right"), lambda *_: [], "test")
    try:
        only = Asker(3)
        one._peers[0] = server._Peer(only, "only")
        one._serve_peer(0, one._peers[0])
        assert only.waited == [False]
    finally:
        one._peers.clear()
        one.close()
