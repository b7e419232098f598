"""Frames from a transmitter to receivers over real sockets: the images of a local play, and whole records."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from pathlib import Path

import pytest

from payloads.board.pace import Pace
from payloads.semcast import hearing
from payloads.semcast.messages import What, what_is
from payloads.semcast.multicast import Group
from payloads.semcast.spec import frames_of, read_spec
from payloads.semcast.transmitter import serve
from payloads.station.control import Control
from payloads.wire.frames import Header, Kind
from tests.semcast.semcast_rack import (
    PAIRS,
    SCHEMES,
    USERS,
    Rack,
    check_equals_play,
    random_network,
    run,
)


@pytest.mark.parametrize("rack", ["plain", "tls"], indirect=True)
def test_images_equal_those_of_a_local_play(rack: Rack) -> None:
    path = rack.spec({"all": SCHEMES})
    spec, result = run(rack, path, "t002")  # with fading, of which both ends have an estimate only
    check_equals_play(rack, spec, "t002")
    frames = rack.rows("t002", "frames")
    assert [frame["frame"] for frame in frames] == list(range(len(SCHEMES) * 4 * PAIRS))
    for frame in frames:
        # 16 or 8 slots of two bytes for each of 16 patches, to both users.
        data = 2 * 16 * (2 * frame["symbols"] // 16)
        assert frame["copies"] == 2
        assert frame["bytes"] > 2 * data
    out = sum(count["out"] for count in result["data_bytes"].values())
    assert out == sum(frame["bytes"] for frame in frames)
    assert result["t_start_s"] <= frames[0]["t_send_s"] < frames[-1]["t_done_s"] <= result["t_end_s"]
    assert all(way > 0 for count in result["control_bytes"].values() for way in count.values())
    assert {row["device"] for row in rack.rows("t002", "clocks")} == set(USERS)
    assert rack.rows("t002", "events") == []
    assert result["multicast"] is None
    for name in USERS:
        folder = rack.home / name / "t002"
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / "pixels.bin").stat().st_mode & 0o777 == 0o600


def test_three_users_hear_one_frame(tmp_path: Path, one_thread: None) -> None:
    users = (*USERS, "weakest")
    rack = Rack(tmp_path, False, {name: random_network(name, users=3) for name in SCHEMES}, users)
    try:
        for name in users:
            rack.start(name)
        blocks = [{"set": "noise", "pair": 0, "slots": 16, "shares": [0.2, 0.3, 0.5]}]
        scenarios = {"10-5-1": {"snr_db": [10.0, 5.0, 1.0], "fading": "rayleigh"}}
        spec, result = run(rack, rack.spec({"all": SCHEMES}, scenarios, blocks=blocks), "t001")
        check_equals_play(rack, spec, "t001")
        assert {frame["copies"] for frame in rack.rows("t001", "frames")} == {3}
        assert list(result["data_bytes"]) == list(users)
    finally:
        rack.close()


def test_every_scheme_meets_the_same_channel(rack: Rack) -> None:
    path = rack.spec({name: [name] for name in SCHEMES})
    met = {}
    for trial in ("t002", "t004", "t006"):
        run(rack, path, trial)
        rows = rack.rows(trial, "received")
        met[trial] = [(row["gain_db"], row["believed_db"], row["noise_seed"]) for row in rows]
    assert met["t002"] == met["t004"] == met["t006"]
    # Each pair and user another one, whatever the share and the number of slots.
    assert len(set(met["t002"])) == PAIRS * len(USERS)


def test_by_multicast_a_frame_goes_once_and_its_images_are_the_same(
    rack: Rack, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hearing, "GRACE_S", 20.0)  # loopback loses nothing, however busy the machine is
    path = rack.spec({"fusion": ["fusion"]})
    spec, result = run(rack, path, "t002", group)
    check_equals_play(rack, spec, "t002")
    frames = rack.rows("t002", "frames")
    sent = result["multicast"]
    # Those for warming up too, with either number of slots; 512 bytes, or half of it, are one datagram.
    assert sent["datagrams"] == len(frames) + 2 * spec.warmup
    assert (sent["again"], sent["again_bytes"]) == (0, 0)
    assert {frame["copies"] for frame in frames} == {1}
    # One copy of four bytes for each symbol, its datagram's head and tag, and a head to each receiver.
    assert all(0 < frame["bytes"] - 4 * frame["symbols"] < 200 for frame in frames)


def test_pieces_that_multicast_lost_come_over_the_connection(
    rack: Rack, group: Group, lossy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("messages", "multicast", "hearing"):
        monkeypatch.setattr(f"payloads.semcast.{module}.PIECE_BYTES", 100)
    path = rack.spec({"fusion": ["fusion"]})
    spec, result = run(rack, path, "t001", group)
    check_equals_play(rack, spec, "t001")
    frames = list(frames_of(spec, spec.trials["t001"]))
    # Of 6 or 3 pieces 3 or 1 are lost, at both receivers; likewise of the two frames for warming up.
    lost = 2 * (sum(3 if frame.block.slots == 16 else 1 for frame in frames) + 3 + 1)
    assert result["multicast"]["again"] == lost
    assert result["multicast"]["again_bytes"] > 100 * lost / 2


def asked(control: Control, request: dict, lines: int | None = None) -> list[dict]:
    """Ask the transmitter; return what it says, or its first lines, after which this client leaves."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(60)
        connection.connect(str(control.path))
        connection.sendall(json.dumps(request).encode() + b"\n")
        with connection.makefile("rb") as answer:
            return [json.loads(line) for line in itertools.islice(answer, lines)]


def test_it_is_asked_as_a_base_station_is(rack: Rack) -> None:
    left = threading.Event()

    def wait(handler):
        def handle(header: Header, payload: memoryview, received_ns: int):
            if header.kind == Kind.DISPATCH and what_is(payload) == What.FRAME and payload[4] == 0:
                left.wait(30)  # in the first frame that counts
            return handler(header, payload, received_ns)

        return handle

    rack.devices["weak"].stop()
    rack.start("weak", twist=wait)
    transmitter = rack.transmitter()
    control = Control(rack.home / "bs.sock", transmitter.describe)
    threading.Thread(target=serve, args=(transmitter, control), daemon=True).start()
    try:
        path = rack.spec({"fusion": ["fusion"]})
        trial = {"do": "trial", "spec": str(path), "trial": "t001"}
        asked(control, trial, lines=1)
        left.set()
        while asked(control, {"do": "status"})[0]["result"]["doing"] is not None:
            time.sleep(0.01)
        assert not (rack.home / "run" / "t001").exists()  # nobody waited for it
        *progress, last = asked(control, trial)
        assert [line["done"] for line in progress] == [*range(8), 8]
        assert {line["of"] for line in progress} == {8}
        assert (last["result"]["trial"], last["result"]["policy"]) == ("t001", "fusion")
        check_equals_play(rack, read_spec(path), "t001")
        (ping,) = asked(control, {"do": "ping"})
        assert set(ping["result"]["devices"]) == set(USERS)
        (wrong,) = asked(control, {**trial, "trial": "t009"})
        assert wrong == {"error": "the run has no trial 't009'"}
        (wrong,) = asked(control, {"do": "quality"})
        assert wrong == {"error": "a transmitter does trials, not 'quality'"}
    finally:
        control.close()


def test_an_emulated_pace_makes_decoding_take_longer(rack: Rack) -> None:
    for name in USERS:
        rack.devices[name].stop()
    # A million weights a second of a network of some tens of thousands; the other one is not held back.
    rack.start("strong", pace=Pace(None, None))
    rack.start("weak", pace=Pace(None, 4e6))
    _, result = run(rack, rack.spec({"fusion": ["fusion"]}), "t001")
    assert result["paced_late"]["strong"] == 0
    slow = [row["decode_ms"] for row in rack.rows("t001", "received") if row["device"] == "weak"]
    weights = sum(p.numel() for p in rack.networks["fusion"].decoder.parameters())
    assert min(slow) > 4 * 0.9 * weights / 4e6 * 1e3
