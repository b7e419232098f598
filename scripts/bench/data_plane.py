#!/usr/bin/env python3
"""How much the data plane costs beside plain blocking sockets: fan-out to four echo workers and gather.

    python scripts/bench/data_plane.py [--rounds 300] [--json]

Three things are timed in turn, in one run on one machine, so that only their ratios are to be trusted:

- ``blocking``: the least that a program can do: send to each worker, then receive from each, no checks;
- ``frames``: the project's data plane: epoll, checked frames, stamps, authenticated connections;
- ``layer``: a whole layer at the base station: selection, sorting, frames, weighing and summing in torch.

Workers answer without computing anything: an answer holds the rows that were sent.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import socket
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

WORKERS = 4
HIDDEN = 2048
TOKENS = (1, 8, 64, 512)
SIZE = struct.Struct("<I")


def main() -> None:
    """Start the workers, time everything in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300, help="rounds at one token; fewer for more")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        key = Path(folder) / "key"
        key.write_text(os.urandom(32).hex())
        key.chmod(0o600)
        context = multiprocessing.get_context("spawn")
        processes, ports = [], {}
        for target in (serve_frames, serve_blocking):
            ports[target] = []
            for _ in range(WORKERS):
                ours, theirs = context.Pipe()
                processes.append(context.Process(target=target, args=(theirs, str(key)), daemon=True))
                processes[-1].start()
                ports[target].append(ours.recv())
        try:
            rows = [measure(tokens, ports, key, options.rounds) for tokens in TOKENS]
        finally:
            for process in processes:
                process.terminate()
                process.join()
    if options.json:
        print(json.dumps(rows))
        return
    print(f"median us (ratio to blocking), {WORKERS} workers, hidden {HIDDEN}, bfloat16")
    for row in rows:
        cells = [
            f"{name} {row[name]:8.0f} ({row[name] / row['blocking']:.2f})" for name in ("frames", "layer")
        ]
        print(f"{row['tokens']:4} tokens: blocking {row['blocking']:8.0f}   " + "   ".join(cells))


def measure(tokens: int, ports: dict[Callable, list[int]], key: Path, rounds: int) -> dict[str, float]:
    """Time one size; return the medians in microseconds."""
    count = max(20, int(rounds / tokens**0.5))
    runs = {
        "blocking": blocking(tokens, ports[serve_blocking]),
        "frames": frames(tokens, ports[serve_frames], key),
        "layer": layer(tokens, ports[serve_frames], key),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(count + 10):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            if number >= 10:
                times[name].append((time.perf_counter() - begun) * 1e6)
    return {"tokens": tokens, **{name: statistics.median(values) for name, values in times.items()}}


def blocking(tokens: int, ports: list[int]) -> Callable[[], None]:
    """Return a round with plain blocking sockets."""
    size = tokens * HIDDEN * 2
    message = SIZE.pack(size) + os.urandom(size)
    answer = memoryview(bytearray(len(message)))
    connections = [socket.create_connection(("127.0.0.1", port)) for port in ports]
    for connection in connections:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run() -> None:
        for connection in connections:
            connection.sendall(message)
        for connection in connections:
            receive(connection, answer)

    return run


def frames(tokens: int, ports: list[int], key: Path) -> Callable[[], None]:
    """Return a round of the project's data plane."""
    from payloads.wire.client import Channel, Exchange, Request
    from payloads.wire.frames import Kind, pack_dispatch, pack_lists, unpack_result

    exchange = Exchange()
    channels = [Channel(f"w{number}", "127.0.0.1", port) for number, port in enumerate(ports)]
    for channel in channels:
        exchange.connect(channel, key)
    data = os.urandom(tokens * HIDDEN * 2)

    def run() -> None:
        requests = []
        for channel in channels:
            number = channel.next_sequence()
            head = pack_dispatch(0, "bfloat16", 0, tokens, HIDDEN, 1, tokens, number)
            requests.append(Request(channel, number, [head, data, pack_lists([0], [tokens], range(tokens))]))
        for answer in exchange.ask(requests, Kind.RESULT):
            unpack_result(answer.payload)

    return run


def layer(tokens: int, ports: list[int], key: Path) -> Callable[[], None]:
    """Return a round of a whole layer at the base station: one expert on each worker, every token to all."""
    import torch

    from payloads.wdmoe.bs.fleet import DeviceSpec, FleetSpec
    from payloads.wdmoe.bs.remote import Dispatcher
    from payloads.wire.client import Channel, Exchange

    torch.set_num_threads(1)
    gc.freeze()  # as the base station does
    exchange = Exchange()
    channels = {f"w{number}": Channel(f"w{number}", "127.0.0.1", port) for number, port in enumerate(ports)}
    for channel in channels.values():
        exchange.connect(channel, key)
    devices = tuple(DeviceSpec(name, channel.address, channel.port) for name, channel in channels.items())
    dispatcher = Dispatcher(exchange)
    dispatcher.place(FleetSpec(devices, (tuple((name,) for name in channels),)), channels)
    hidden = torch.randn(tokens, HIDDEN).to(torch.bfloat16)
    index = torch.arange(WORKERS).repeat(tokens, 1)
    weights = torch.full((tokens, WORKERS), 1 / WORKERS)

    def run() -> None:
        with torch.inference_mode():
            dispatcher.layer(0, hidden, index, weights)
        dispatcher.rows.clear()

    return run


def serve_frames(ready: Connection, key: str) -> None:
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
    server = Server(listen("127.0.0.1", 0), Path(key), echo, "bench")
    ready.send(server.address[1])
    server.serve()


def serve_blocking(ready: Connection, key: str) -> None:
    """Serve plain echoes, one connection after the other."""
    listener = socket.create_server(("127.0.0.1", 0))
    ready.send(listener.getsockname()[1])
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = memoryview(bytearray(SIZE.size))
        while receive(connection, head):
            message = memoryview(bytearray(SIZE.size + SIZE.unpack(head)[0]))
            message[: SIZE.size] = head
            receive(connection, message[SIZE.size :])
            connection.sendall(message)
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


if __name__ == "__main__":
    main()
