"""Pacing and retransmissions between two network namespaces, where a real kernel sends real frames."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from payloads.station.devices import Devices
from payloads.wire.client import Channel, Exchange, Request
from payloads.wire.credentials import PlainKey
from payloads.wire.frames import Kind, pack_header
from payloads.wire.server import Server, listen
from testbed.emulation.namespaces import CLONE_NEWNET, setns

pytestmark = [pytest.mark.emulated, pytest.mark.alone]
ROOT = Path(__file__).parents[2]
ADDRESSES = {"b": "10.97.0.1", "d": "10.97.0.2"}


@pytest.fixture(autouse=True)
def root():
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2: network namespaces")


def test_messages_of_every_size_keep_the_rate_both_ways():
    """Wide bands: a busy machine is late. The option alone is what a naive pacing does: 8 KiB pass at once."""
    bench = [
        sys.executable,
        str(ROOT / "scripts/bench/pacing.py"),
        "--rates",
        "20",
        "--repeats",
        "5",
        "--json",
    ]
    done = subprocess.run(bench, stdout=subprocess.PIPE, check=True, timeout=120)
    rows = {row["bytes"]: row for row in json.loads(done.stdout)["rows"]}
    for size in (32768, 131072, 1 << 20):
        for way in ("downlink", "uplink"):
            assert 0.85 < rows[size][way] / rows[size]["expected_ms"] < 1.3
    assert rows[8192]["downlink"] / rows[8192]["expected_ms"] > 0.5
    assert rows[8192]["whole"] < 0.5 * rows[8192]["downlink"]


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def pair():
    """Two namespaces joined by a veth, whose queues at both ends drop what does not fit."""
    name = f"tbq{os.getpid()}{secrets.token_hex(2)}"
    try:
        for end in "bd":
            ip("netns", "add", f"{name}{end}")
        ip(
            *("link", "add", "eth0", "netns", f"{name}b", "type", "veth"),
            *("peer", "name", "eth0", "netns", f"{name}d"),
        )
        for end, address in ADDRESSES.items():
            ip("-n", f"{name}{end}", "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", f"{name}{end}", "link", "set", "eth0", "up")
            leaf = ["rate", "50mbit", "burst", "1600", "limit", "20000"]
            subprocess.run(
                ["tc", "-n", f"{name}{end}", "qdisc", "add", "dev", "eth0", "root", "tbf", *leaf], check=True
            )
        yield name
    finally:
        for end in "bd":
            subprocess.run(["ip", "netns", "del", f"{name}{end}"], capture_output=True, check=False)


def inside(namespace, function):
    """Call a function in a thread of a namespace: its sockets belong there for good."""
    result = []

    def run():
        with open(f"/run/netns/{namespace}") as file:
            setns(file.fileno(), CLONE_NEWNET)
        result.append(function())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return result[0]


def test_what_tcp_sends_again_is_counted_for_each_direction(pair, tmp_path):
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_text("44" * 32)

    def answer(header, payload, _received_ns):
        count = int.from_bytes(payload[:4], "little")
        return [pack_header(Kind.RESULT, count, header.sequence), bytes(count)]

    server = inside(f"{pair}d", lambda: Server(listen(ADDRESSES["d"], 7070), PlainKey(key), answer, "device"))
    stop = threading.Event()
    thread = threading.Thread(target=lambda: server.serve(stop.is_set, poll_s=0.02))
    thread.start()
    exchange = Exchange()
    devices = Devices(exchange, key)
    channel = devices.channels["device"] = Channel("device", ADDRESSES["d"], 7070)
    try:
        inside(f"{pair}b", lambda: exchange.connect(channel, PlainKey(key)))
        devices.offsets()
        assert channel.resent() == (0, 0)

        def send(out, back):
            number = channel.next_sequence()
            body = back.to_bytes(4, "little") + bytes(out - 4)
            exchange.ask(
                [Request(channel, number, [pack_header(Kind.DISPATCH, out, number), body])], Kind.RESULT
            )
            devices.offsets()
            return channel.resent()

        out, back = send(2_000_000, 4)
        assert 0 < out < 2_000_000
        assert back == 0
        later_out, later_back = send(4, 2_000_000)
        assert later_out == out
        assert 0 < later_back < 2_000_000
        # A new connection goes on from there.
        inside(f"{pair}b", lambda: exchange.connect(channel, PlainKey(key)))
        devices.offsets()
        assert channel.resent() == (later_out, later_back)
    finally:
        stop.set()
        thread.join()
        server.close()
        exchange.close()
