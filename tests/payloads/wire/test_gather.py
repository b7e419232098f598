"""Answers that do not come: what an exchange makes of devices that are late, gone, or speak unasked."""

from __future__ import annotations

import threading
import time

import pytest

from payloads.wire import frames
from payloads.wire.client import (
    Answer,
    Channel,
    DeviceLateError,
    DeviceLostError,
    DeviceRefusedError,
    Exchange,
    Patience,
    Request,
)
from payloads.wire.credentials import PlainKey
from payloads.wire.frames import Kind
from payloads.wire.server import Server, listen


class Far:
    """A device whose behaviour is a function of the frame."""

    def __init__(self, name, credentials, handler):
        self.stopped = threading.Event()
        self.server = Server(listen("127.0.0.1", 0), credentials, handler, name)
        self.channel = Channel(name, *self.server.address)
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        try:
            self.server.serve(self.stopped.is_set, poll_s=0.01)
        finally:
            self.server.close()

    def stop(self):
        self.stopped.set()
        self.thread.join()


@pytest.fixture
def credentials(tmp_path):
    (tmp_path / "key").write_text("ab" * 32)
    (tmp_path / "key").chmod(0o600)
    return PlainKey(tmp_path / "key")


@pytest.fixture
def make(credentials):
    """Connects devices that behave as is said to one exchange."""
    fars, exchanges = [], []

    def connected(**handlers):
        exchanges.append(Exchange())
        for name, handler in handlers.items():
            fars.append(Far(name, credentials, handler))
            exchanges[-1].connect(fars[-1].channel, credentials)
        return exchanges[-1], {far.channel.name: far for far in fars}

    yield connected
    for exchange in exchanges:
        exchange.close()
    for far in fars:
        far.stop()


def echo(header, payload, received_ns):
    return [frames.pack_header(Kind.RESULT, len(payload), header.sequence), bytes(payload)]


def requests(fars, *names, data=b"hello"):
    made = []
    for name in names:
        channel = fars[name].channel
        number = channel.next_sequence()
        made.append(Request(channel, number, [frames.pack_header(Kind.DISPATCH, len(data), number), data]))
    return made


def stopping(release):
    def handler(header, payload, received_ns):
        release.wait(10)
        return echo(header, payload, received_ns)

    return handler


def test_others_are_awaited_when_some_are_late_gone_or_refuse(make):
    release = threading.Event()

    def leave(header, payload, received_ns):
        raise frames.FrameError("no")

    def refuse(header, payload, received_ns):
        return [frames.pack_error("no memory", header.sequence)]

    def slow(header, payload, received_ns):
        time.sleep(0.15)
        return echo(header, payload, received_ns)

    exchange, fars = make(good=echo, slow=slow, late=stopping(release), gone=leave, sorry=refuse, fast=echo)
    asked = ("late", "gone", "good", "sorry", "slow")
    asks = []

    def deadlines_s():
        asks.append(1)
        return [0.1, 10, 10, 10, 10]

    try:
        outcomes = exchange.gather(requests(fars, *asked), Kind.RESULT, patience=Patience(0.1, deadlines_s))
    finally:
        release.set()
    assert [type(outcome) for outcome in outcomes] == [
        DeviceLateError,
        DeviceLostError,
        Answer,
        DeviceRefusedError,
        Answer,
    ]
    assert str(outcomes[0]) == "device late lost: no answer within 0.1 s"
    assert bytes(outcomes[2].payload) == bytes(outcomes[4].payload) == b"hello"
    assert asks == [1]
    assert {name for name, far in fars.items() if not far.channel.connected} == {"late", "gone"}
    # Who answers before the floor costs no thought about deadlines.
    (answer,) = exchange.gather(requests(fars, "fast"), Kind.RESULT, patience=Patience(5, deadlines_s))
    assert bytes(answer.payload) == b"hello"
    assert asks == [1]
    # What is not connected is lost at once.
    (lost,) = exchange.gather(requests(fars, "gone"), Kind.RESULT)
    assert str(lost) == "device gone lost: not connected"


def test_a_device_that_leaves_unasked_is_told_of_and_disturbs_nobody(make):
    exchange, fars = make(one=echo, two=echo)
    fars["two"].stop()
    (answer,) = exchange.gather(requests(fars, "one"), Kind.RESULT)
    assert bytes(answer.payload) == b"hello"
    while not exchange.gone:  # its end may come with the next answer
        exchange.gather(requests(fars, "one"), Kind.RESULT)
    assert [str(error) for error in exchange.gone] == ["device two lost: connection closed"]
    assert not fars["two"].channel.connected


def test_what_comes_unasked_does_not_touch_an_answer_that_is_still_to_be_taken(make):
    def until(what):
        deadline = time.monotonic() + 10
        while not what():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def babble(header, payload, received_ns):
        until(lambda: early.channel._receiver.whole)  # its answer is there
        (peer,) = early.server._peers.values()
        peer.connection.send([b"\xff" * 64])
        until(lambda: exchange.gone)
        return echo(header, payload, received_ns)

    exchange, fars = make(early=echo, slow=babble)
    early = fars["early"]
    first, second = exchange.gather(requests(fars, "early", "slow"), Kind.RESULT)
    assert bytes(first.payload) == bytes(second.payload) == b"hello"
    assert str(exchange.gone[0]) == "device early lost: it sent something that was not asked for"
    assert not early.channel.connected


def test_a_request_that_is_not_even_taken_is_late_too(make, credentials):
    release, heard = threading.Event(), threading.Event()

    def busy(header, payload, received_ns):
        heard.set()
        release.wait(10)
        return echo(header, payload, received_ns)

    exchange, fars = make(busy=busy, good=echo)
    # It computes for somebody else meanwhile: its kernel takes what fits, and no more.
    other, second = Exchange(), Channel("busy", *fars["busy"].server.address)
    other.connect(second, credentials)
    number = second.next_sequence()
    asked = [Request(second, number, [frames.pack_header(Kind.DISPATCH, 0, number)])]
    asking = threading.Thread(target=other.gather, args=(asked, Kind.RESULT))
    asking.start()
    try:
        assert heard.wait(10)
        data = bytes(40_000_000)
        late, good = exchange.gather(
            requests(fars, "busy", "good", data=data), Kind.RESULT, patience=Patience(0.3, lambda: [0.3, 30])
        )
    finally:
        release.set()
    asking.join()
    other.close()
    assert isinstance(late, DeviceLateError)
    assert len(good.payload) == len(data)


def test_a_connection_is_handed_over_with_its_counts(make, credentials):
    exchange, fars = make(one=echo)
    channel = fars["one"].channel
    exchange.disconnect(channel)
    out = channel.bytes_out
    other = Exchange()
    scratch = Channel("one", *fars["one"].server.address)
    other.connect(scratch, credentials)
    spent = scratch.bytes_out
    other.hand_over(scratch, exchange, channel)
    other.close()
    assert not scratch.connected
    assert channel.bytes_out == out + spent > out
    (answer,) = exchange.gather(requests(fars, "one"), Kind.RESULT)
    assert bytes(answer.payload) == b"hello"
    with pytest.raises(DeviceLostError, match="not connected"):
        other.hand_over(scratch, exchange, channel)
    assert channel.connected
