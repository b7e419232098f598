"""A link that goes down without a word, between two network namespaces."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from payloads.wire.client import Channel, DeviceLostError, Exchange, Request
from payloads.wire.credentials import PlainKey
from payloads.wire.frames import Kind, pack_header

ROOT = Path(__file__).parents[3]

SLOW_SERVER = """
import sys, time
from pathlib import Path
from payloads.wire.credentials import PlainKey
from payloads.wire.server import Server, listen
server = Server(listen("10.213.0.2", 7070), PlainKey(Path(sys.argv[1])), lambda *_: time.sleep(600) or [], "slow")
print("ready", flush=True)
server.serve()
"""


@pytest.fixture
def namespace():
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("needs root and iproute2")
    name = f"tbw{os.getpid()}"
    commands = [
        f"ip netns add {name}",
        f"ip link add {name}a type veth peer name {name}b",
        f"ip link set {name}b netns {name}",
        f"ip addr add 10.213.0.1/30 dev {name}a",
        f"ip link set {name}a up",
        f"ip -n {name} addr add 10.213.0.2/30 dev {name}b",
        f"ip -n {name} link set {name}b up",
    ]
    try:
        for command in commands:
            subprocess.run(command.split(), check=True, capture_output=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", f"{name}a"], check=False, capture_output=True)


@pytest.mark.emulated
@pytest.mark.alone
@pytest.mark.parametrize("cut", ["while the device computes", "while the request is sent"])
def test_a_silent_cut_is_noticed(namespace, tmp_path, cut):
    key = tmp_path / "key"
    key.write_text("ab" * 32)
    key.chmod(0o600)
    server = subprocess.Popen(
        ["ip", "netns", "exec", namespace, sys.executable, "-c", SLOW_SERVER, str(key)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    exchange = Exchange(stall_timeout_s=100)
    try:
        assert server.stdout.readline() == "ready\n"
        channel = Channel("far", "10.213.0.2", 7070)
        exchange.connect(channel, PlainKey(key))
        # A route that leads nowhere: nothing comes back, not even an error.
        down = f"ip -n {namespace} link set {namespace}b arp off address 02:00:00:00:00:01".split()
        late = threading.Timer(1.0, lambda: subprocess.run(down, check=True))
        if cut == "while the device computes":
            late.start()
        else:
            subprocess.run(down, check=True)
        number = channel.next_sequence()
        with pytest.raises(DeviceLostError) as caught:
            exchange.ask(
                [Request(channel, number, [pack_header(Kind.DISPATCH, 3, number), b"abc"])], Kind.RESULT
            )
        assert caught.value.reason == "Connection timed out"
    finally:
        exchange.close()
        server.kill()
        server.wait()
        server.stdout.close()
