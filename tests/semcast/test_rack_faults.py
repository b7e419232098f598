"""What goes wrong between a transmitter and its receivers: each trial fails with one line, and the next goes on."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from payloads.board.pace import Pace
from payloads.metrics import Metrics
from payloads.semcast import hearing
from payloads.semcast.messages import (
    FrameHead,
    What,
    frame_request,
    pack_done,
    pack_missing,
    pieces_request,
    what_is,
)
from payloads.semcast.multicast import Group
from payloads.semcast.receiver import Receiver
from payloads.semcast.shelf import Shelf, ShelfError
from payloads.semcast.spec import read_spec
from payloads.station.specs import SpecError
from payloads.wire.client import DeviceError, DeviceLateError, DeviceLostError, DeviceRefusedError
from payloads.wire.frames import FrameError, Header, Kind, pack_header
from tests.payloads.semcast.full_disk import FullKeeper
from tests.semcast.semcast_rack import (
    Rack,
    check_equals_play,
    nothing,
    random_network,
    run,
    write_models,
)


def told(metrics: Metrics) -> dict[str, float]:
    """Return what somebody reads of metrics."""
    lines = (line.rsplit(" ", 1) for line in metrics.text().splitlines() if line[0] != "#")
    return {name: float(value) for name, value in lines}


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
    sent, heard = told(transmitter.metrics), told(rack.devices["strong"].receiver.metrics)
    trials = [sent[f'testbed_transmitter_trials_total{{outcome="{how}"}}'] for how in ("failed", "completed")]
    assert (trials, heard["testbed_receiver_trials_total"]) == ([1, 1], 1)
    whole = rack.rows("t001", "frames")
    assert sent["testbed_transmitter_frame_bytes_total"] > sum(frame["bytes"] for frame in whole)
    # Three before it was lost, and a warm-up of each kind of frame: one in the first trial, two in the second.
    assert sent["testbed_transmitter_frame_seconds_count"] == len(whole) + 3 + 1 + 2
    assert heard["testbed_receiver_frame_seconds_count"] >= sent["testbed_transmitter_frame_seconds_count"]


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


@pytest.mark.parametrize(
    ("multicast", "said"),
    [(True, "weak still lacks pieces of frame"), (False, "weak lost: it lacks piece 0 of 0")],
)
def test_a_receiver_that_always_lacks_something_fails_the_trial(
    rack: Rack, group: Group, multicast: bool, said: str
) -> None:
    def lack(handler):
        def handle(header: Header, payload: memoryview, received_ns: int):
            if header.kind == Kind.DISPATCH and what_is(payload) in (What.FRAME, What.PIECES):
                answer = pack_missing(int.from_bytes(payload[4:8], "little"), [0])
                return [pack_header(Kind.RESULT, len(answer), header.sequence), answer]
            return handler(header, payload, received_ns)

        return handle

    rack.devices["weak"].stop()
    rack.start("weak", twist=lack)
    with pytest.raises(DeviceError, match=said):
        run(rack, rack.spec({"fusion": ["fusion"]}), "t001", group if multicast else None)


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
    with pytest.raises(DeviceRefusedError, match=r"device weak: cannot keep images in .*weak/t001: "):
        run(rack, rack.spec({"fusion": ["fusion"]}), "t001")
    (event,) = rack.rows("t001.failed", "events")
    assert event["event"] == "refused"


def test_a_full_disk_fails_the_trial_and_what_was_kept_of_it_makes_room(
    rack: Rack, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = rack.spec({"fusion": ["fusion"]})
    with monkeypatch.context() as patch:
        patch.setattr(hearing, "Keeper", FullKeeper)
        with pytest.raises(DeviceRefusedError, match=r"strong: cannot keep images in .*t001: No space left"):
            run(rack, path, "t001")
    assert not list(rack.home.glob("*/*.part"))
    spec, _ = run(rack, path, "t001")
    check_equals_play(rack, spec, "t001")


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
