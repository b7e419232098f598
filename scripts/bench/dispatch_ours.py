"""Plain blocking sockets and the project's own data plane, for ``dispatch.py``."""

from __future__ import annotations

import multiprocessing
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

WORKERS = 4
ELEMENT_BYTES = 2
SIZE = struct.Struct("<I")

#: Given tokens and width, returns what runs one round.
Rounds = Callable[[int, int], Callable[[], None]]


def workers(stack: ExitStack, target: Callable[..., None], *arguments: Sequence[Any]) -> list[Any]:
    """Start the workers, each a process that runs ``target``; return what each says first.

    Args:
        stack: Ends them.
        target: Called with the connection to say it on, and with its own of each of the arguments.
        arguments: For each of them, one value a worker.
    """
    context = multiprocessing.get_context("spawn")
    ours = []
    for mine in zip(*arguments, strict=True) if arguments else [()] * WORKERS:
        here, there = context.Pipe()
        process = context.Process(target=target, args=(there, *mine), daemon=True)
        process.start()
        there.close()  # so that a worker that dies is noticed
        stack.callback(process.join)
        stack.callback(process.terminate)
        ours.append(here)
    return [here.recv() for here in ours]


def blocking(stack: ExitStack, folder: Path) -> Rounds:
    """Plain blocking sockets."""
    connections = []
    for port in workers(stack, serve_blocking):
        connections.append(stack.enter_context(socket.create_connection(("127.0.0.1", port))))
        connections[-1].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def rounds(tokens: int, hidden: int) -> Callable[[], None]:
        size = tokens * hidden * ELEMENT_BYTES
        message = SIZE.pack(size) + os.urandom(size)
        answer = memoryview(bytearray(len(message)))

        def run() -> None:
            for connection in connections:
                connection.sendall(message)
            for connection in connections:
                receive(connection, answer)

        return run

    return rounds


def plain(stack: ExitStack, folder: Path) -> Rounds:
    """The data plane with a shared key."""
    return _frames(stack, *_plain_lab(stack, folder))


def tls(stack: ExitStack, folder: Path) -> Rounds:
    """The data plane over TLS."""
    from testbed.config.inventory import Host
    from testbed.hosts.authority import new_authority

    authority, now = new_authority("bench", datetime.now(UTC)), datetime.now(UTC)
    names = _names()
    for name in ("bs", *names):
        place = folder / name
        place.mkdir()
        host = Host(name=name, role="base_station" if name == "bs" else "device", address="127.0.0.1")
        for file, content in authority.files(host, now).items():
            (place / file).write_bytes(content)
            (place / file).chmod(0o600)
    ports = workers(stack, serve_frames, ["tls"] * WORKERS, [str(folder / name) for name in names])
    return _frames(stack, ports, _credentials("tls", str(folder / "bs")))


def layer(stack: ExitStack, folder: Path) -> Rounds:
    """A whole layer at the base station: one expert on each worker, every token to all of them."""
    import torch

    from payloads.station.devices import DeviceSpec
    from payloads.wdmoe.bs.fleet import FleetSpec
    from payloads.wdmoe.bs.remote import Dispatcher

    torch.set_num_threads(1)
    exchange, channels = _connected(stack, *_plain_lab(stack, folder))
    devices = tuple(DeviceSpec(one.name, one.address, one.port) for one in channels)
    dispatcher = Dispatcher(exchange)
    dispatcher.place(
        FleetSpec(devices, (tuple((one.name,) for one in channels),)), {one.name: one for one in channels}
    )

    def rounds(tokens: int, hidden: int) -> Callable[[], None]:
        rows = torch.randn(tokens, hidden).to(torch.bfloat16)
        index = torch.arange(WORKERS).repeat(tokens, 1)
        weights = torch.full((tokens, WORKERS), 1 / WORKERS)

        def run() -> None:
            with torch.inference_mode():
                dispatcher.layer(0, rows, index, weights)
            dispatcher.booking.rows.clear()

        return run

    return rounds


def _frames(stack: ExitStack, ports: Sequence[int], credentials: Any) -> Rounds:
    from payloads.wire.client import Request
    from payloads.wire.frames import Kind, pack_dispatch, pack_lists, unpack_result

    exchange, channels = _connected(stack, ports, credentials)

    def rounds(tokens: int, hidden: int) -> Callable[[], None]:
        data = os.urandom(tokens * hidden * ELEMENT_BYTES)

        def run() -> None:
            requests = []
            for channel in channels:
                number = channel.next_sequence()
                head = pack_dispatch(0, "bfloat16", 0, tokens, hidden, 1, tokens, number)
                lists = pack_lists([0], [tokens], range(tokens))
                requests.append(Request(channel, number, [head, data, lists]))
            for answer in exchange.ask(requests, Kind.RESULT):
                unpack_result(answer.payload)

        return run

    return rounds


def _plain_lab(stack: ExitStack, folder: Path) -> tuple[list[int], Any]:
    key = folder / "key"
    if not key.exists():
        key.write_text(os.urandom(32).hex())
        key.chmod(0o600)
    ports = workers(stack, serve_frames, ["plain"] * WORKERS, [str(key)] * WORKERS)
    return ports, _credentials("plain", str(key))


def _connected(stack: ExitStack, ports: Sequence[int], credentials: Any) -> tuple[Any, list[Any]]:
    from payloads.wire.client import Channel, Exchange

    exchange = Exchange()
    stack.callback(exchange.close)
    channels = [Channel(name, "127.0.0.1", port) for name, port in zip(_names(), ports, strict=True)]
    for channel in channels:
        exchange.connect(channel, credentials)
    return exchange, channels


def _names() -> list[str]:
    return [f"w{number}" for number in range(WORKERS)]


def _credentials(way: str, place: str) -> Any:
    from payloads.wire.credentials import PlainKey, TlsCertificate

    return PlainKey(Path(place)) if way == "plain" else TlsCertificate(Path(place))


def serve_frames(ready: Connection, way: str, place: str) -> None:
    """Serve the project's data plane; answer with the rows that came."""
    from payloads.wire.frames import Buffer, Header, pack_result, unpack_dispatch
    from payloads.wire.server import Server, listen

    def echo(header: Header, payload: memoryview, received_ns: int) -> list[Buffer]:
        dispatch = unpack_dispatch(payload)
        now_ns = time.monotonic_ns()
        return [
            pack_result(dispatch, received_ns, now_ns, now_ns, now_ns, False, header.sequence),
            dispatch.data,
        ]

    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    server = Server(listen("127.0.0.1", 0), _credentials(way, place), echo, "bench")
    ready.send(server.address[1])
    server.serve()


def serve_blocking(ready: Connection) -> None:
    """Serve plain echoes, one connection after the other."""
    listener = socket.create_server(("127.0.0.1", 0))
    ready.send(listener.getsockname()[1])
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = memoryview(bytearray(SIZE.size))
        buffer = memoryview(bytearray(SIZE.size))
        while receive(connection, head):
            size = SIZE.size + SIZE.unpack(head)[0]
            if len(buffer) < size:
                buffer = memoryview(bytearray(size))
            buffer[: SIZE.size] = head
            receive(connection, buffer[SIZE.size : size])
            connection.sendall(buffer[:size])
        connection.close()


def receive(connection: socket.socket, target: memoryview) -> bool:
    """Fill ``target`` from a blocking socket; return false if the other end closed."""
    filled = 0
    while filled < len(target):
        count = connection.recv_into(target[filled:])
        if not count:
            return False
        filled += count
    return True
