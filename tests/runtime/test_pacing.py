"""Sockets that keep the links' rates: real sockets, a real link daemon that only tells rates, and wide bands."""

from __future__ import annotations

import socket
import struct
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.station.pacing import LinkPacing
from payloads.wdmoe.bs.links import LinkControlError
from payloads.wdmoe.bs.spec import read_spec
from payloads.wire.client import Channel, DeviceLostError, Exchange, Request
from payloads.wire.connection import Plain
from payloads.wire.credentials import PlainKey
from payloads.wire.frames import HEADER_BYTES, Kind, pack_header
from payloads.wire.pacing import (
    SO_MAX_PACING_RATE,
    cut,
    payload_bytes_per_s,
    piece_bytes,
    send_paced,
)
from payloads.wire.server import Server, listen

DEVICES = ("big", "middle", "small")
MBIT = 400.0


def nothing(*_):
    """Neither progress nor check."""


@pytest.fixture
def lab(make_lab):
    return make_lab()


def rate_of(connection):
    """What the kernel was told, in bytes a second; None for no limit."""
    rate = struct.unpack("=Q", connection.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 8))[0]
    return None if rate == (1 << 64) - 1 else rate


@given(st.floats(0.01, 1e4))
def test_what_the_kernel_counts_is_the_payloads_part_of_the_frame_rate(mbit):
    rate = payload_bytes_per_s(mbit, 1448, 66)
    assert rate * 8 / 1e6 * 1514 / 1448 == pytest.approx(mbit, rel=1e-3)
    piece = piece_bytes(rate, 1448)
    assert piece % 1448 == 0
    assert piece == 1448 or piece / rate <= 250e-6


@given(st.lists(st.binary(max_size=9), max_size=5), st.integers(0, 50))
def test_a_cut_loses_nothing(buffers, size):
    head, rest = cut([memoryview(buffer) for buffer in buffers], size)
    whole = b"".join(buffers)
    assert b"".join(head) == whole[:size]
    assert b"".join(rest) == whole[size:]


@given(st.lists(st.binary(max_size=5000), max_size=6), st.integers(1, 3000))
def test_pieces_arrive_whole_and_in_order(buffers, piece):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        rest, got = send_paced(ours, buffers, piece), b""
        total = sum(map(len, buffers))
        while len(got) < total:
            got += theirs.recv(1 << 20)
            rest = send_paced(ours, rest, piece)
        assert got == b"".join(buffers)


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_text("33" * 32)
    return path


@pytest.fixture
def device(key):
    """A worker's server that answers with as many bytes as asked for, and its connections."""
    server = Server(listen("127.0.0.1", 0), PlainKey(key), answer, "device")
    stop = threading.Event()
    thread = threading.Thread(target=lambda: server.serve(stop.is_set, poll_s=0.01))
    thread.start()
    yield server
    stop.set()
    thread.join()
    server.close()


def answer(header, payload, _received_ns):
    count = int.from_bytes(payload[:4], "little")
    return [pack_header(Kind.RESULT, count, header.sequence), bytes(count)]


def ask(exchange, channel, out, back):
    number = channel.next_sequence()
    body = back.to_bytes(4, "little") + bytes(out - 4)
    request = Request(channel, number, [pack_header(Kind.DISPATCH, out, number), body])
    return exchange.ask([request], Kind.RESULT)[0]


@pytest.fixture
def exchange():
    loop = Exchange(stall_timeout_s=10)
    yield loop
    loop.close()


def test_both_ends_are_paced_before_the_next_answer(exchange, device, key):
    channel = Channel("orin", *device.address)
    channel.pace(40.0, 20.0)  # before there is a connection, as well as after
    for _ in range(2):
        exchange.connect(channel, PlainKey(key))
        before = channel.bytes_out
        told = ask(exchange, channel, 8, 5)
        assert told.bytes_out == HEADER_BYTES + 8
        assert channel.bytes_out - before == told.bytes_out + HEADER_BYTES + 8  # the pace, once
        (peer,) = device._peers.values()
        for connection, mbit in ((channel.connection.socket, 40.0), (peer.connection.socket, 20.0)):
            mss = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
            assert rate_of(connection) == pytest.approx(mbit * 1e6 / 8 * mss / (mss + 66), rel=5e-3)
        assert peer.connection._piece
        assert ask(exchange, channel, 8, 5).bytes_out + told.bytes_out + HEADER_BYTES + 8 == (
            channel.bytes_out - before
        )
        exchange.disconnect(channel)
        while device._peers:
            time.sleep(0.005)
    exchange.connect(channel, PlainKey(key))
    channel.pace(None, None)
    big = ask(exchange, channel, 1 << 20, 1 << 20)
    assert len(big.payload) == 1 << 20
    (peer,) = device._peers.values()
    assert rate_of(channel.connection.socket) is rate_of(peer.connection.socket) is None
    assert not peer.connection._piece


def test_a_channel_that_was_never_paced_is_left_to_the_kernel(exchange, device, key):
    channel = Channel("orin", *device.address)
    exchange.connect(channel, PlainKey(key))
    assert ask(exchange, channel, 8, 5).bytes_out == 8 + HEADER_BYTES
    assert rate_of(channel.connection.socket) is None
    assert channel.resent() == (0, 0)


def test_a_broken_pace_closes_that_connection_alone(exchange, device, key):
    channel = Channel("orin", *device.address)
    exchange.connect(channel, PlainKey(key))
    channel.connection.send([pack_header(Kind.PACE, 3, 0) + b"abc"])
    with pytest.raises(DeviceLostError, match="connection closed"):
        ask(exchange, channel, 8, 5)
    exchange.connect(channel, PlainKey(key))
    assert len(ask(exchange, channel, 8, 5).payload) == 5


def test_a_connection_that_is_gone_leaves_no_other_at_the_rates_of_before():
    class Link:
        def __init__(self, name, gone):
            self.name, self.gone, self.told = name, gone, []

        def pace(self, down_mbit, up_mbit):
            if self.gone:
                raise DeviceLostError(self.name, "its connection cannot be paced")
            self.told.append((down_mbit, up_mbit))

    class Feed:
        version, rates = 1, {}

        def follow(self):
            pass

    feed, channels = Feed(), {"one": Link("one", True), "two": Link("two", False)}
    pacing = LinkPacing(feed, None, channels)
    feed.version, feed.rates = 2, {"one": (5.0, 6.0), "two": (7.0, 8.0)}
    with pytest.raises(DeviceLostError, match="device one lost"):
        pacing.follow()
    assert channels["two"].told == [(7.0, 8.0)]
    pacing.follow()  # told once


def test_what_is_followed_is_called_and_does_not_hide_a_silent_device(device, key):
    """Events of the links come while answers are awaited; a device that hangs is given up all the same."""
    exchange = Exchange(stall_timeout_s=30)
    with listen("127.0.0.1", 0) as silent_listener:
        channel = Channel("orin", *device.address)
        exchange.connect(channel, PlainKey(key))
        ours, theirs = socket.socketpair()
        calls = []

        def heard():
            calls.append(ours.recv(1))

        exchange.follow(ours.fileno(), heard)
        theirs.send(b"a")
        ask(exchange, channel, 8, 5)
        deadline = time.monotonic() + 20
        while not calls:
            ask(exchange, channel, 8, 5)
            assert time.monotonic() < deadline
        channel.connection.close()
        channel.connection = Plain(socket.create_connection(silent_listener.getsockname()))
        exchange._epoll.register(channel.connection.fileno(), 1)
        chatter = threading.Event()

        def talk():
            while not chatter.wait(0.02):
                theirs.send(b"b")

        thread = threading.Thread(target=talk)
        thread.start()
        exchange.stall_timeout_s = 1.0
        try:
            with pytest.raises(DeviceLostError, match=r"no answer within 1 s"):
                ask(exchange, channel, 8, 5)
        finally:
            chatter.set()
            thread.join()
        assert len(calls) > 3
        exchange.unfollow(ours.fileno())
        ours.close()
        theirs.close()
        exchange.close()


def paces(station, lab):
    """The rates of both ends of each device's connection, in Mbit/s."""
    result = {}
    for name in DEVICES:
        (peer,) = lab.workers[name].server._peers.values()
        ends = []
        for connection in (station._devices.channels[name].connection.socket, peer.connection.socket):
            mss = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
            rate = rate_of(connection)
            # A whole number of Mbit/s: the segments of the loopback grow with the window after the rate was set.
            ends.append(None if rate is None else round(rate * 8 / 1e6 * (mss + 66) / mss))
        result[name] = tuple(ends)
    return result


def test_a_trial_follows_the_links_and_lets_go_of_them(lab, linkd):
    linkd.set(300.0, uplink_mbit=150.0)
    station = lab.station(links=linkd.socket, pacing=True)
    seen = []
    path = lab.write_spec()

    def progress(done, of, what):
        if done == 1:
            seen.append(paces(station, lab))
            linkd.ask("rerate", rates={"small": {"downlink_mbit": 80.0}})
        if done == 2:
            seen.append(paces(station, lab))

    result = station.trial(read_spec(path), "t001", progress, nothing)
    assert seen[0] == dict.fromkeys(DEVICES, (300.0, 150.0))
    assert seen[1] == {**seen[0], "small": (80.0, 150.0)}
    assert station._dispatcher.pacing is None
    assert all(ends[0] is None for ends in paces(station, lab).values())
    assert set(result["retransmitted_bytes"]) == set(DEVICES)
    assert all(counts == {"out": 0, "back": 0} for counts in result["retransmitted_bytes"].values())
    # The worker is told with the next request.
    station.ping()
    assert paces(station, lab) == dict.fromkeys(DEVICES, (None, None))
    # The quality pass is paced as the links are, too.
    station.quality(read_spec(path), "top-1", None, nothing, nothing)


def test_bandwidth_is_allocated_to_paced_sockets_too(lab, linkd):
    linkd.set(MBIT)
    station = lab.station(links=linkd.socket, pacing=True)
    plain = lab.run(station)[2]
    result, _, texts = lab.run(station, {"kind": "proportional"})
    assert texts == plain
    assert result["bandwidth"]["allocations"] > 5


def test_a_trial_without_the_daemon_that_it_follows_fails_with_one_line(lab, linkd):
    linkd.set(MBIT)
    station = lab.station(links=linkd.socket, pacing=True)
    path = lab.write_spec()

    def stop_linkd(done, of, what):
        if done == 1:
            linkd.stop()

    with pytest.raises(LinkControlError, match="the links can no longer be followed: linkd went away"):
        station.trial(read_spec(path), "t001", stop_linkd, nothing)
    with pytest.raises(LinkControlError, match=r"the links cannot be followed: linkd at .*linkd\.sock: "):
        station.trial(read_spec(path), "t001", nothing, nothing)
    assert station._dispatcher.pacing is None
