"""Frames that nobody meant to send: a peer may say what it likes, and costs its own connection at most."""

from __future__ import annotations

import gc
import random
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from payloads.board.pace import Pace
from payloads.station.devices import DeviceSpec
from payloads.wdmoe.bs.fleet import FleetSpec, mismatch
from payloads.wdmoe.worker.expert_worker import Worker
from payloads.wdmoe.worker.shards import read_wanted
from payloads.wire import frames
from payloads.wire.auth import AuthError
from payloads.wire.client import Channel, DeviceError, Exchange, Request
from payloads.wire.credentials import Credentials, PlainKey
from payloads.wire.frames import FrameError, Kind
from payloads.wire.server import Handler, Server, _Peer, listen
from tests.runtime.conftest import host_credentials, write_certificates

FRAMES = 100_000
PAGE_BYTES = resource.getpagesize()


class Feed:
    """A connection on which something has come, and nothing else will."""

    wire_out = wire_back = 0

    def __init__(self, data: bytes) -> None:
        self.left = memoryview(data)

    def recv_into(self, view: memoryview) -> int:
        if not self.left:
            raise BlockingIOError
        count = min(len(view), len(self.left))
        view[:count] = self.left[:count]
        self.left = self.left[count:]
        return count

    def send(self, buffers) -> list[memoryview]:
        assert sum(map(len, buffers)) < 1 << 20
        return []

    def pending(self) -> int:
        return 0

    def set_pace(self, mbit) -> None:
        assert mbit is None or 0 < mbit <= frames.MAX_PACE_MBIT

    def retransmitted_bytes(self) -> int:
        return 0


def dispatch(chosen: random.Random, dtype: str, *, hidden: int = 48) -> bytes:
    """A dispatch that a base station may send."""
    rows = chosen.randint(1, 3)
    experts = sorted(chosen.sample(range(8), chosen.randint(1, 3)))
    counts = [chosen.randint(1, rows) for _ in experts]
    indices = [row for count in counts for row in sorted(chosen.sample(range(rows), count))]
    head = frames.pack_dispatch(
        chosen.randrange(3), dtype, 7, rows, hidden, len(experts), len(indices), chosen.randrange(1 << 32)
    )
    data = chosen.randbytes(rows * frames.row_bytes(dtype, hidden))
    return head + data + frames.pack_lists(experts, counts, indices)


def valid(chosen: random.Random) -> bytes:
    """A frame of any kind that a peer may send."""
    dtype = chosen.choice(list(frames.DTYPE_CODES))
    kind = chosen.randrange(6)
    if kind == 0:
        return frames.pack_ping(chosen.randrange(1 << 64), 3)
    if kind == 1:
        return frames.pack_pace(chosen.choice([None, 1.5, 1e6]))
    if kind == 2:
        return frames.pack_header(Kind.DESCRIBE, 0, 4)
    if kind == 3:
        text = b'{"experts": [[0, 1], [2, 3]], "dtype": "float32"}'
        return frames.pack_header(Kind.DESCRIPTION, len(text), 5) + text
    if kind == 4:
        asked = dispatch(chosen, dtype)
        held = frames.unpack_dispatch(memoryview(asked)[frames.HEADER_BYTES :])
        rows = chosen.randbytes(len(held.indices) * frames.row_bytes(dtype, held.hidden))
        return frames.pack_result(held, 1, 2, 3, 4, False, 6) + rows
    return dispatch(chosen, dtype)


def mutated(chosen: random.Random, frame: bytes) -> bytes:
    """The frame with something wrong, or something else altogether."""
    data = bytearray(frame)
    what = chosen.randrange(6)
    if what == 0:  # the first bytes decide most
        at = chosen.randrange(min(len(data), 64))
        data[at] ^= 1 << chosen.randrange(8)
    elif what == 1:
        for _ in range(chosen.randint(1, 4)):
            data[chosen.randrange(len(data))] = chosen.choice((0, 1, 0x7F, 0x80, 0xFF))
    elif what == 2:
        del data[chosen.randrange(len(data)) :]
    elif what == 3:
        at = chosen.randrange(len(data) + 1)
        data[at:at] = chosen.randbytes(chosen.randint(1, 40))
    elif what == 4:  # a number of four bytes is as large as it can be
        at = chosen.randrange(max(1, len(data) - 3))
        data[at : at + 4] = b"\xff\xff\xff\xff"
    else:
        return chosen.randbytes(chosen.randint(0, 200))
    return bytes(data)


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[[Handler], Server]]:
    made: list[Server] = []

    def make(handler: Handler) -> Server:
        made.append(Server(listen("127.0.0.1", 0), PlainKey(tmp_path / "none"), handler, "fuzz"))
        return made[-1]

    yield make
    for one in made:
        one.close()


def hear(server: Server, data: bytes) -> bool:
    """Let a server hear what came on one connection; return whether it would keep the connection."""
    peer = _Peer(Feed(data), "fuzz")
    try:
        while server._hear_peer(peer):
            pass
    except (FrameError, OSError):
        return False
    return True


def test_100000_broken_frames_cost_their_connections_and_no_memory(server):
    """Through the server's own path, up to a handler that reads them as the worker does."""

    def handler(header, payload, received_ns):
        if header.kind != Kind.DISPATCH:
            raise FrameError("not for a worker")
        asked = frames.unpack_dispatch(payload)
        return [frames.pack_result(asked, received_ns, 1, 2, 3, False, header.sequence)]

    chosen, one = random.Random(5), server(handler)
    templates = [valid(chosen) for _ in range(300)]
    kept = before = 0
    for number in range(FRAMES):
        if number == FRAMES // 10:
            before = resident_bytes()
        kept += hear(one, mutated(chosen, chosen.choice(templates)))
    assert resident_bytes() - before < 16 << 20
    assert FRAMES // 20 < kept < FRAMES * 19 // 20, "some pass unnoticed, most do not"
    assert all(hear(one, dispatch(chosen, dtype)) for dtype in frames.DTYPE_CODES)


def test_what_is_announced_and_does_not_come_costs_no_memory(server):
    peer = _Peer(Feed(frames.pack_header(Kind.DISPATCH, frames.MAX_FRAME_BYTES, 1) + bytes(100_000)), "fuzz")
    assert not server(lambda *_: [])._hear_peer(peer)
    assert len(peer.receiver._buffer) <= 4 << 20


# Headers are of one size, and read by the receiver above.
UNPACKERS = [
    getattr(frames, name) for name in frames.__all__ if name.startswith("unpack_") and name != "unpack_header"
]


@pytest.mark.parametrize("unpack", UNPACKERS)
def test_every_reader_gives_a_value_or_says_that_it_is_no_frame(unpack):
    chosen, read = random.Random(6), 0
    for _ in range(3000):
        frame = valid(chosen)
        for data in (frame, mutated(chosen, frame)):
            try:
                unpack(memoryview(data)[frames.HEADER_BYTES :])
                read += 1
            except FrameError:
                pass
    assert read


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 50_000, "1" * 10_000, "[1]", "null", "\ud800", '{"a": 1}x', ""],
    ids=["deep lists", "deep objects", "long number", "list", "null", "surrogate", "more", "nothing"],
)
def test_a_description_that_is_none_is_said(text):
    with pytest.raises(FrameError, match="description"):
        frames.unpack_description(memoryview(text.encode("utf-8", "surrogatepass")))


def test_a_real_worker_computes_or_refuses_and_goes_on(server, make_lab, capsys):
    lab = make_lab()
    worker = Worker(read_wanted(lab.home / "big.json"), lab.home / "objects", Pace(None, None))
    chosen, one, answered = random.Random(7), server(worker.handle), 0
    for _ in range(2500):
        frame = dispatch(
            chosen, chosen.choice(list(frames.DTYPE_CODES)), hidden=chosen.choice((48, 48, 48, 47))
        )
        answered += hear(one, mutated(chosen, frame) if chosen.random() < 0.8 else frame)
    assert answered > 500
    log = capsys.readouterr().err
    assert "Traceback" not in log, log[:2000]


@pytest.mark.parametrize(
    "changes",
    [
        *({"experts": value} for value in (None, 5, [5], [[1]], [[1, None]], [["a", "b"]], [[1, 1e999]])),
        {"parameters": None},
        {"parameters": [1]},
        {"manifest": [], "dtype": {}},
    ],
    ids=str,
)
def test_a_device_that_describes_itself_as_nonsense_is_not_taken(changes):
    fleet = FleetSpec((DeviceSpec("orin", "10.0.0.1", 7070),), ((("orin",),),))
    said = {"manifest": "m", "dtype": "float32", "parameters": 5, "experts": [[0, 0]]}
    assert mismatch(fleet, "m", "float32", "orin", said) is None
    assert mismatch(fleet, "m", "float32", "orin", {**said, **changes})


def credentials(folder: Path, *, tls: bool) -> tuple[Credentials, Credentials]:
    """What a device and a base station prove themselves with."""
    if not tls:
        (folder / "key").write_text("11" * 32)
        (folder / "key").chmod(0o600)
        return PlainKey(folder / "key"), PlainKey(folder / "key")
    write_certificates(folder)
    return host_credentials(folder, "big"), host_credentials(folder, "bs")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_broken_handshakes_are_refused_whatever_they_hold(tmp_path, tls):
    """What a real client says first, with something wrong: mutated, cut, longer, or noise."""
    device, station = credentials(tmp_path, tls=tls)
    chosen, refused = random.Random(8), 0
    for number in range(600):
        ours, theirs, third, fourth = *socket.socketpair(), *socket.socketpair()
        with ours, theirs, third, fourth:
            for one in (ours, theirs, third, fourth):
                one.setblocking(False)
            asking, answering = station.client(third, "big"), device.server(theirs)
            assert not asking.go_on()
            hello = fourth.recv(1 << 16)
            ours.sendall(mutated(chosen, hello) if number else hello)
            ours.shutdown(socket.SHUT_WR)
            try:
                assert not answering.go_on(), "there was no proof"
            except (OSError, AuthError):
                refused += 1
    assert refused == 600


def test_a_device_that_answers_nonsense_is_lost_and_nothing_else_happens(tmp_path):
    """A device of the fleet whose answers are broken, seen from the base station."""
    chosen = random.Random(9)
    device, station = credentials(tmp_path, tls=False)
    frame = dispatch(chosen, "float32")
    asked = frames.unpack_dispatch(memoryview(frame)[frames.HEADER_BYTES :])
    rows = chosen.randbytes(len(asked.indices) * frames.row_bytes("float32", 48))
    said: list[bytes] = []

    def answer(header, payload, received_ns):
        said.append(frames.pack_result(asked, 1, 2, 3, 4, False, header.sequence) + rows)
        return [mutated(chosen, said[-1]) + bytes(64) if len(said) > 1 else said[-1]]

    one, stop = Server(listen("127.0.0.1", 0), device, answer, "odd"), threading.Event()
    thread = threading.Thread(target=lambda: one.serve(stop.is_set, poll_s=0.02))
    thread.start()
    exchange, outcomes = Exchange(stall_timeout_s=30), []
    try:
        channel = Channel("big", *one.address)
        for number in range(1, 301):
            if not channel.connected:
                exchange.connect(channel, station)
            request = Request(channel, number, [frames.pack_header(Kind.DISPATCH, 0, number)])
            try:
                (got,) = exchange.ask([request], Kind.RESULT)
                frames.unpack_result(got.payload)
                outcomes.append("answer")
            except (DeviceError, FrameError) as error:
                outcomes.append(type(error).__name__)
            exchange.stall_timeout_s = 0.02  # what is cut short is not waited for
    finally:
        exchange.close()
        stop.set()
        thread.join()
        one.close()
    assert outcomes[0] == "answer"
    assert len(outcomes) == 300
    assert outcomes.count("DeviceLostError") + outcomes.count("DeviceLateError") > 100
