"""The code of devices under the Pythons of JetPack 5, 6 and 7, where those interpreters exist."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from testbed.config.inventory import Host
from testbed.hosts.authority import new_authority

ROOT = Path(__file__).parents[2]

EXERCISE = """
import json, mmap, os, ssl, struct, sys, tempfile, threading
from pathlib import Path
from unittest.mock import MagicMock

for path in sorted(Path("payloads").glob("**/*.py")):
    compile(path.read_text(), str(path), "exec")

from payloads.services import ready
from payloads.wire import auth, client, clock, credentials, frames, server
from payloads.board import busy, pace
from payloads import metrics, tensors
from payloads.wdmoe import families, gating
from payloads.semcast import about, messages, multicast, reports
from payloads.semcast import spec as broadcast_spec
from payloads.wdmoe import pace as wdmoe_pace
from payloads.wdmoe.allocation import bandwidth
from payloads.station import bsctl
from payloads.wdmoe.bs import spec

folder = Path(tempfile.mkdtemp())
key = folder / "key"
key.write_text("ab" * 32)
key.chmod(0o600)

def handle(header, payload, received_ns):
    dispatch = frames.unpack_dispatch(payload)
    rows = b"".join(bytes(dispatch.data[4 * i : 4 * i + 4]) for i in dispatch.indices)
    return [frames.pack_result(dispatch, received_ns, 1, 2, 3, False, header.sequence), rows]

other = folder / "other"
other.write_text("cd" * 32)
other.chmod(0o600)

def exercise(theirs, ours, wrong):
    one = server.Server(server.listen("127.0.0.1", 0), theirs, handle, "old")
    stop = threading.Event()
    thread = threading.Thread(target=lambda: one.serve(stop.is_set, poll_s=0.02))
    thread.start()
    exchange = client.Exchange()
    channel = client.Channel("old", *one.address)
    exchange.connect(channel, ours)
    channel.pace(500.0, 400.0)
    number = channel.next_sequence()
    head = frames.pack_dispatch(1, "float32", 0, 2, 1, 2, 3, number)
    lists = frames.pack_lists([3, 5], [2, 1], [0, 1, 1])
    request = client.Request(channel, number, [head, b"abcdefgh", lists])
    (answer,) = exchange.ask([request], frames.Kind.RESULT)
    assert bytes(frames.unpack_result(answer.payload).data) == b"abcdefghefgh"
    number = channel.next_sequence()
    ping = client.Request(channel, number, [frames.pack_ping(5, number)])
    (answer,) = exchange.ask([ping], frames.Kind.PONG)
    sent, received, replied, again = frames.unpack_pong(answer.payload)
    assert again == 0 and channel.resent() == (0, 0)
    (peer,) = one._peers.values()
    for end in (peer.connection, channel.connection):
        assert getattr(end, "_raw", end)._piece
    estimate = clock.estimate_offset([clock.PingStamps(answer.sent_ns, received, replied, answer.done_ns)])
    assert sent == 5 and abs(estimate.offset_ns) <= estimate.rtt_ns / 2
    try:
        exchange.connect(channel, wrong)
        raise SystemExit("what is wrong was taken")
    except client.DeviceLostError:
        pass
    stop.set()
    thread.join()
    one.close()
    exchange.close()

exercise(credentials.PlainKey(key), credentials.PlainKey(key), credentials.PlainKey(other))
device, station = (credentials.TlsCertificate(Path(sys.argv[1]) / name) for name in ("old", "bs"))
exercise(device, station, device)

header = tensors.encode_header({"a": ("F32", (2, 3))}, {})
(folder / "x").write_bytes(header + bytes(24))
with tensors.TensorFile(folder / "x") as file:
    assert file.info("a").shape == (2, 3)
counter = busy.BusyCounter(folder / "deep" / "busy")
busy.wait_until(__import__("time").monotonic_ns() + 3000000, counter)
assert counter.value() >= 2900000
assert wdmoe_pace.ExpertShape(1, 1, 1).seconds(pace.Pace(None, 10.0), [1]) == 0.8
assert bandwidth.check_bandwidth({"kind": "proportional", "per": "layer"}) == []
assert gating.check_selection({"kind": "top_k", "k": 1}) == []
assert families.family_of({"model_type": "mixtral"}).expert_key("model.layers.2.mlp.experts.down_proj").layer == 2
assert not {"torch", "numpy"} & set(sys.modules)

# The worker itself needs torch; its code is at least imported, against a stand-in.
sys.modules["torch"] = MagicMock()
from payloads.wdmoe.worker import expert_worker
try:
    expert_worker.main(["--help"])
except SystemExit as end:
    assert end.code == 0
"""


@pytest.mark.parametrize("version", ["3.8", "3.10", "3.12"])
def test_device_code_runs(version, old_python, tmp_path):
    python = old_python(version)
    now = datetime.now(UTC)
    authority = new_authority("old", now)
    for name, role in (("bs", "base_station"), ("old", "device")):
        (tmp_path / name).mkdir()
        for file, content in authority.files(Host(name=name, role=role, address="127.0.0.1"), now).items():
            (tmp_path / name / file).write_bytes(content)
            (tmp_path / name / file).chmod(0o600)
    done = subprocess.run(
        [python, "-B", "-c", EXERCISE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
