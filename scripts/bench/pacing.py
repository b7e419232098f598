#!/usr/bin/env python3
"""How exactly the data plane keeps a link's rate when its sockets pace themselves (shaping: pacing).

    sudo python scripts/bench/pacing.py [--rates 5,20,100] [--repeats 7] [--json]

The base station's end and a device's end of the data plane run in two throw-away network namespaces joined by a veth,
with no queueing discipline of ours. A message goes one way, and a few bytes come back; the round trip of few bytes is
subtracted. Beside what the data plane does stands the option alone (``whole``): the message handed to the kernel at
once, with SO_MAX_PACING_RATE set. Expected is what linkd expects of a token bucket: all frames but the first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from payloads.linkd.model import expected_ms
from payloads.wire.client import Channel, Exchange, Request
from payloads.wire.credentials import PlainKey
from payloads.wire.frames import Kind, pack_header
from payloads.wire.server import Server, listen

SIZES = (1024, 4096, 8192, 32768, 131072, 1 << 20)
ADDRESS, PORT = "10.98.0.2", 7070
SMALL = 16
PAUSE_S = 0.02
LONGEST_S = 2.0


def main() -> int:
    """Make the namespaces, measure in them, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", default="5,20,100", help="frame rates in Mbit/s")
    parser.add_argument("--repeats", type=int, default=7, help="messages of each size")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return 0
    if options.measure:
        rates = [float(rate) for rate in options.rates.split(",")]
        print(json.dumps(measure(options.measure, rates, options.repeats)))
        return 0
    if os.geteuid() != 0:
        print("network namespaces need root", file=sys.stderr)
        return 1
    rows = in_namespaces(options.rates, options.repeats)
    if options.json:
        print(json.dumps({"machine": platform.machine(), "kernel": platform.release(), "rows": rows}))
        return 0
    print(f"{platform.machine()}, Linux {platform.release()}, {os.cpu_count()} cores; ms, median")
    print("| Mbit/s | bytes | expected | downlink | ratio | uplink | ratio | whole | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        cells = [f"{row['mbit']:g}", str(row["bytes"]), f"{row['expected_ms']:.2f}"]
        for name in ("downlink", "uplink", "whole"):
            ratio = row[name] / row["expected_ms"] if row["expected_ms"] else None
            cells += [f"{row[name]:.2f}", "-" if ratio is None else f"{ratio:.3f}"]
        print("| " + " | ".join(cells) + " |")
    return 0


def in_namespaces(rates: str, repeats: int) -> list[dict[str, Any]]:
    """Measure between two namespaces, which go again."""
    name = f"tbp{os.getpid()}{secrets.token_hex(2)}"
    ends = {f"{name}b": "10.98.0.1", f"{name}d": ADDRESS}
    this = [sys.executable, str(Path(__file__).resolve())]
    with tempfile.TemporaryDirectory() as folder:
        key = Path(folder) / "key"
        key.touch(0o600)
        key.write_text(secrets.token_hex(32))
        server = None
        try:
            for namespace in ends:
                ip("netns", "add", namespace)
            first, second = ends
            ip(
                *("link", "add", "eth0", "netns", first, "type", "veth"),
                *("peer", "name", "eth0", "netns", second),
            )
            for namespace, address in ends.items():
                ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
                ip("-n", namespace, "link", "set", "eth0", "up")
            server = subprocess.Popen(["ip", "netns", "exec", second, *this, "--serve", str(key)])
            time.sleep(1.0)
            asked = ["--rates", rates, "--repeats", str(repeats)]
            done = subprocess.run(
                ["ip", "netns", "exec", first, *this, "--measure", str(key), *asked],
                stdout=subprocess.PIPE,
                check=True,
                timeout=600,
            )
            rows: list[dict[str, Any]] = json.loads(done.stdout)
            return rows
        finally:
            if server is not None:
                server.terminate()
                server.wait()
            for namespace in ends:
                subprocess.run(["ip", "netns", "del", namespace], stderr=subprocess.DEVNULL, check=False)


def ip(*words: str) -> None:
    """Run one ``ip`` command."""
    subprocess.run(["ip", *words], check=True)


def serve(key: Path) -> None:
    """Answer a request with as many bytes as its first four say."""
    zeros = memoryview(bytes(SIZES[-1]))

    def handle(header: Any, payload: memoryview, _received_ns: int) -> list[Any]:
        count = int.from_bytes(payload[:4], "little")
        return [pack_header(Kind.RESULT, count, header.sequence), zeros[:count]]

    Server(listen(ADDRESS, PORT), PlainKey(key), handle, "device").serve()


def measure(key: Path, rates: list[float], repeats: int) -> list[dict[str, Any]]:
    """Time every size at every rate, both ways and with the option alone."""
    exchange = Exchange()
    channel = Channel("device", ADDRESS, PORT)
    exchange.connect(channel, PlainKey(key))

    def ask(out: int, back: int) -> float:
        number = channel.next_sequence()
        body = back.to_bytes(4, "little") + bytes(out - 4)
        begun = time.perf_counter()
        exchange.ask([Request(channel, number, [pack_header(Kind.DISPATCH, out, number), body])], Kind.RESULT)
        return (time.perf_counter() - begun) * 1e3

    for _ in range(50):
        ask(SMALL, SMALL)
    round_trip = statistics.median(ask(SMALL, SMALL) for _ in range(100))

    def median(way: Callable[[], float], count: int) -> float:
        times = []
        for _ in range(count):
            time.sleep(PAUSE_S)
            times.append(way() - round_trip)
        return statistics.median(times)

    rows = []
    for mbit in rates:
        for size in SIZES:
            expected = expected_ms(size + 12, mbit)
            count = max(1, min(repeats, int(LONGEST_S * 1e3 / max(expected, 1))))
            row: dict[str, Any] = {"mbit": mbit, "bytes": size, "expected_ms": expected, "n": count}
            for name, paces in (
                ("downlink", (mbit, None)),
                ("uplink", (None, mbit)),
                ("whole", (mbit, None)),
            ):
                channel.pace(*paces)
                if name == "whole":
                    channel.connection._piece = 0  # the option alone
                ask(SMALL, SMALL)  # the device has been told, and both ends have had an acknowledgement
                out, back = (SMALL, size) if name == "uplink" else (size, SMALL)
                row[name] = median(lambda out=out, back=back: ask(out, back), count)  # type: ignore[misc]
            rows.append(row)
    return rows


if __name__ == "__main__":
    sys.exit(main())
