"""Frames from a transmitter to receivers over real sockets: the images of a local play, whole records, and faults."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from payloads.board.pace import Pace
from payloads.semcast import hearing
from payloads.semcast.messages import FrameHead, What, frame_request, pack_done, pieces_request, what_is
from payloads.semcast.multicast import Collector, Group, Sender
from payloads.semcast.play import play_frame
from payloads.semcast.receiver import Receiver
from payloads.semcast.shelf import Shelf, ShelfError
from payloads.semcast.spec import Spec, SpecError, channel_labels, frames_of, read_spec
from payloads.semcast.transmitter import serve
from payloads.station.control import Control
from payloads.station.link_feed import LinkControlError
from payloads.wire.channel import Channel
from payloads.wire.client import DeviceError, DeviceLateError, DeviceLostError, DeviceRefusedError
from payloads.wire.frames import FrameError, Header, Kind
from payloads.wire.pacing import SO_MAX_PACING_RATE
from tests.semcast.semcast_rack import PAIRS, SIDE, USERS, Rack, free_port, random_network, write_models

SCHEMES = ("fusion", "time_division", "superposition")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def rack(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Rack]:
    """Both receivers running; TLS where the test asks for it."""
    made = Rack(
        tmp_path,
        getattr(request, "param", "plain") == "tls",
        {name: random_network(name) for name in SCHEMES},
    )
    try:
        for name in USERS:
            made.start(name)
        yield made
    finally:
        made.close()


def nothing(*_: object) -> None:
    """Neither tell nor stop anybody."""


def run(rack: Rack, path: Path, trial: str, group: Group | None = None) -> tuple[Spec, dict]:
    spec = read_spec(path)
    return spec, rack.transmitter(group).trial(spec, trial, nothing, nothing)


def check_equals_play(rack: Rack, spec: Spec, trial: str) -> None:
    """Check that what the receivers kept and told is what a local play of the same frames gives."""
    asked = spec.trials[trial]
    scenario = spec.scenarios[asked.scenario]
    received = {(row["frame"], row["user"]): row for row in rack.rows(trial, "received")}
    frames = list(frames_of(spec, asked))
    assert sorted(received) == sorted((frame.number, user) for frame in frames for user in (1, 2))
    kept = {name: (rack.home / name / trial / "pixels.bin").read_bytes() for name in USERS}
    assert {len(pixels) for pixels in kept.values()} == {len(frames) * SIDE * SIDE * 3}
    for frame in frames:
        played = play_frame(
            rack.networks[frame.model],
            rack.images[frame.block.pair],
            scenario.snr_db,
            frame.block.shares,
            frame.block.slots,
            fading=scenario.fading,
            csi_error=scenario.csi_error,
            seed=spec.seed,
            labels=channel_labels(asked.repeat, frame.number_of_block),
        )
        for user, told in enumerate(played.users, 1):
            row = received[frame.number, user]
            assert (row["digest"], row["noise_seed"]) == (told.digest, told.noise_seed)
            assert row["gain_db"] == pytest.approx(told.gain_db)
            assert row["measured_snr_db"] == pytest.approx(told.measured_snr_db)
            pixels = kept[USERS[user - 1]][row["offset"] : row["offset"] + SIDE * SIDE * 3]
            assert pixels == told.pixels.numpy().tobytes()


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


def test_every_scheme_meets_the_same_channel(rack: Rack) -> None:
    path = rack.spec({name: [name] for name in SCHEMES})
    met = {}
    for trial in ("t002", "t004", "t006"):
        run(rack, path, trial)
        rows = rack.rows(trial, "received")
        met[trial] = [(row["gain_db"], row["believed_db"], row["noise_seed"]) for row in rows]
    assert met["t002"] == met["t004"] == met["t006"]
    assert len(set(met["t002"])) == len(met["t002"])


@pytest.fixture
def group() -> Group:
    return Group("239.83.0.1", free_port())


@pytest.fixture
def lossy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lose every other piece that comes by multicast, and do not wait for it."""
    take = Collector._take

    def lose(self: Collector, piece) -> None:
        if piece.place % 2 == 0:
            take(self, piece)

    monkeypatch.setattr(Collector, "_take", lose)
    monkeypatch.setattr(hearing, "GRACE_S", 0.02)


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


@pytest.fixture
def linkd(tmp_path: Path) -> Iterator[Path]:
    """A socket where somebody tells of a fast and a slow link, as linkd does to whoever watches; return its path."""
    path = tmp_path / "linkd.sock"
    rates = {
        "strong": {"downlink_mbit": 300.0, "uplink_mbit": 200.0},
        "weak": {"downlink_mbit": 100.0, "uplink_mbit": None},
    }
    said = [{"ok": True}, {"event": "rates", "cause": "watch", "rates": rates}]
    text = "".join(json.dumps(one) + "\n" for one in said).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        watchers = []

        def tell() -> None:
            while True:
                watcher, _ = listener.accept()
                watchers.append(watcher)
                if not watcher.recv(100):
                    return  # it is over
                watcher.sendall(text)

        thread = threading.Thread(target=tell)
        thread.start()
        yield path
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as last:
            last.connect(str(path))
        thread.join()
        for watcher in watchers:
            watcher.close()


def test_multicast_keeps_to_the_slowest_link(
    rack: Rack, group: Group, linkd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    send = Sender.send

    def spied(self: Sender, *given) -> int:
        asked.append(given[-1])
        return send(self, *given)

    monkeypatch.setattr(Sender, "send", spied)
    spec = read_spec(rack.spec({"fusion": ["fusion"]}))
    rack.transmitter(group, links=linkd).trial(spec, "t001", nothing, nothing)
    assert set(asked) == {100.0}
    check_equals_play(rack, spec, "t001")


def test_sockets_keep_to_the_links_rates_where_they_shape(rack: Rack, linkd: Path) -> None:
    transmitter = rack.transmitter(links=linkd, pacing=True)
    spec = read_spec(rack.spec({"fusion": ["fusion"]}))
    seen = []

    def look(*_: object) -> None:
        seen.append([rate_of(channel) for channel in transmitter._receivers.channels.values()])

    transmitter.trial(spec, "t001", look, nothing)
    strong, weak = seen[0]
    assert strong == pytest.approx(3 * weak, rel=1e-6)
    assert weak == pytest.approx(100e6 / 8, rel=0.1)
    assert [rate_of(channel) for channel in transmitter._receivers.channels.values()] == [None, None]


def rate_of(channel: Channel) -> int | None:
    """What the kernel was told, in bytes a second; None for no limit."""
    told = channel.connection.socket.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 8)
    rate = int.from_bytes(told, "little")
    return None if rate == (1 << 64) - 1 else rate


def test_links_that_nobody_tells_of_fail_the_trial(rack: Rack, group: Group) -> None:
    spec = read_spec(rack.spec({"fusion": ["fusion"]}))
    with pytest.raises(LinkControlError, match="the links cannot be followed"):
        rack.transmitter(group, links=rack.home / "nobody.sock").trial(spec, "t001", nothing, nothing)


def test_a_receiver_that_is_lost_fails_the_trial_and_the_next_one_goes_on(rack: Rack) -> None:
    path = rack.spec({"fusion": ["fusion"]})
    spec, transmitter = read_spec(path), rack.transmitter()
    device = rack.devices["weak"]

    def lose(done: int, *_: object) -> None:
        if done == 3:
            device.stop()

    with pytest.raises(DeviceLostError, match="device weak lost: connection closed"):
        transmitter.trial(spec, "t001", lose, nothing)
    assert not (rack.home / "run" / "t001").exists()
    (event,) = rack.rows("t001.failed", "events")
    assert (event["device"], event["event"], event["detail"]) == ("weak", "lost", "connection closed")
    assert not (rack.home / "strong" / "t001").exists()
    device.begin()
    transmitter.trial(spec, "t001", nothing, nothing)
    check_equals_play(rack, spec, "t001")
    assert not (rack.home / "run" / "t001.failed").exists()
    assert not list((rack.home / "strong").glob("*.part"))


def test_a_receiver_that_is_late_fails_the_trial(rack: Rack) -> None:
    released = threading.Event()
    calls = []

    def stall(handler):
        def handle(header: Header, payload: memoryview, received_ns: int):
            calls.append(header.kind)
            if calls.count(Kind.DISPATCH) == 5:
                released.wait(20)  # it answers then, which would end the trial well
            return handler(header, payload, received_ns)

        return handle

    rack.devices["weak"].stop()
    rack.start("weak", twist=stall)
    spec = read_spec(rack.spec({"fusion": ["fusion"]}, deadline_s=1.5))
    try:
        with pytest.raises(DeviceLateError, match=r"device weak lost: no answer within 1\.5 s"):
            rack.transmitter().trial(spec, "t001", nothing, nothing)
    finally:
        released.set()
    (event,) = rack.rows("t001.failed", "events")
    assert (event["device"], event["event"]) == ("weak", "deadline")


def test_a_receiver_that_babbles_is_not_believed(rack: Rack) -> None:
    def babble(handler):
        def handle(header: Header, payload: memoryview, received_ns: int):
            answer = [bytearray(part) for part in handler(header, payload, received_ns)]
            if header.kind == Kind.DISPATCH and len(answer[1]) > 4:
                answer[1][4] ^= 1  # the number of the frame
            return answer

        return handle

    rack.devices["weak"].stop()
    rack.start("weak", twist=babble)
    with pytest.raises(DeviceLostError, match="device weak lost: it answered for frame"):
        run(rack, rack.spec({"fusion": ["fusion"]}), "t001")


def test_a_receiver_with_another_model_takes_no_part(rack: Rack, tmp_path: Path) -> None:
    other = write_models(tmp_path / "other", {"fusion": random_network("fusion", seed=6)})
    rack.devices["weak"].stop()
    rack.models, mine = other, rack.models
    rack.start("weak")
    rack.models = mine
    with pytest.raises(DeviceError, match="device weak holds another model of the name fusion; deploy again"):
        run(rack, rack.spec({"fusion": ["fusion"]}), "t001")
    with pytest.raises(DeviceError, match="device weak holds no model superposition"):
        run(rack, rack.spec({"x": ["superposition"]}), "t001")
    with pytest.raises(ShelfError, match="no model 'nowhere' here; there are fusion, time_division"):
        run(rack, rack.spec({"x": ["nowhere"]}), "t001")


def test_a_model_has_to_fit_the_campaign(rack: Rack) -> None:
    blocks = [{"set": "noise", "pair": 0, "slots": 32, "shares": [0.5, 0.5]}]
    with pytest.raises(SpecError, match="model fusion has 16 slots, and 32 are asked for"):
        run(rack, rack.spec({"fusion": ["fusion"]}, blocks=blocks), "t001")
    (rack.home / "set.bin").write_bytes(b"short")
    with pytest.raises(SpecError, match=r"set\.bin: 12288 bytes were expected, not 5"):
        run(rack, rack.spec({"fusion": ["fusion"]}), "t001")


def test_images_that_cannot_be_kept_fail_the_trial(rack: Rack) -> None:
    (rack.home / "weak").write_text("in the way")
    with pytest.raises(DeviceRefusedError, match=r"device weak: .*weak"):
        run(rack, rack.spec({"fusion": ["fusion"]}), "t001")
    (event,) = rack.rows("t001.failed", "events")
    assert event["event"] == "refused"


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


def test_a_message_outside_of_a_trial_is_answered_and_a_damaged_one_closes_the_connection(rack: Rack) -> None:
    receiver = Receiver(Shelf(rack.models), rack.home / "alone", Pace(None, None))

    def ask(parts) -> tuple[int, bytes]:
        head, answer = receiver.handle(Header(Kind.DISPATCH, 0, 1), memoryview(b"".join(parts)), 0), b""
        text = b"".join(bytes(part) for part in head)
        return text[3], text[12:] + answer

    head = FrameHead(1, 1, 16, 4, 4, 0, True, 0, 0, (0.5, 0.5), (10.0, 1.0), (1, 1))
    assert ask(frame_request(head, bytes(head.data_bytes))) == (Kind.ERROR, b"no trial has begun here")
    assert ask(pieces_request(1, [0], bytes(10)))[1] == b"pieces of frame 1, which is not on its way"
    assert ask([pack_done(4)])[1] == b"no trial has begun here"
    for parts in ([b"XX\1\1"], [pack_done(5)], [b"SC\1\2"], [b"SC\1\1{}"]):
        with pytest.raises(FrameError):
            ask(parts)


def test_weights_that_are_damaged_are_not_used(rack: Rack) -> None:
    listed = json.loads(rack.models.read_text())["models"]["fusion"]["weights"]["object"]
    path = rack.home / "objects" / listed
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShelfError, match=r"model fusion: .* is damaged"):
        Shelf(rack.models).network("fusion")
