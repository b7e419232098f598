"""Messages, datagrams and specifications: whatever is packed is read again, and nothing else is believed."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payloads.semcast import messages, multicast
from payloads.semcast.about import About, Air, about_json, about_of
from payloads.semcast.kept import Keeper, KeepError
from payloads.semcast.messages import PIECE_BYTES, FrameHead, Report
from payloads.semcast.multicast import Collector, Group, MulticastError, Piece, Sender
from payloads.semcast.spec import FADINGS, Scenario, frames_of, read_spec, spec_of
from payloads.station.specs import SpecError
from payloads.wire.frames import FrameError
from tests.payloads.semcast.full_disk import FullKeeper

ROOT = Path(__file__).parents[3]
KEY = bytes(range(32))

words = st.integers(0, 2**32 - 1)
stamps = st.integers(0, 2**64 - 1)
levels = st.floats(-200, 200)
singles = st.floats(-100, 100, width=32)


def joined(parts) -> memoryview:
    return memoryview(b"".join(bytes(part) for part in parts))


@st.composite
def heads(draw: st.DrawFn) -> FrameHead:
    users = draw(st.integers(1, 4))
    several = {"min_size": users, "max_size": users}
    slots, high, wide = draw(st.sampled_from([2, 32, 64])), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    pieces = draw(st.booleans()) * messages.pieces_of(2 * slots * high * wide)
    return FrameHead(
        draw(words),
        draw(words),
        slots,
        high,
        wide,
        draw(st.integers(0, 255)),
        draw(st.booleans()),
        pieces,
        draw(words),
        tuple(draw(st.lists(st.floats(0, 1, width=32), **several))),
        tuple(draw(st.lists(singles, **several))),
        tuple(draw(st.lists(st.integers(0, 255), **several))),
    )


@given(heads(), st.data())
def test_a_frame_is_read_as_it_was_packed(head: FrameHead, data: st.DataObject) -> None:
    symbols = b"" if head.pieces else data.draw(st.binary(min_size=1, max_size=1)) * head.data_bytes
    packed = joined(messages.frame_request(head, symbols))
    assert messages.unpack_frame(packed) == (head, symbols)
    short = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(FrameError):
        messages.unpack_frame(packed[:short])
    with pytest.raises(FrameError):
        messages.unpack_frame(joined([packed, b"x"]))


@given(words, st.integers(1, 40_000), st.data())
def test_pieces_that_are_asked_for_again_are_read_as_they_were(
    number: int, size: int, data: st.DataObject
) -> None:
    symbols = bytes(range(251)) * (size // 251 + 1)
    symbols = symbols[:size]
    count = messages.pieces_of(size)
    indexes = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
    asked = messages.unpack_missing(memoryview(messages.pack_missing(number, indexes)))
    assert (asked[0], list(asked[1])) == (number, indexes)
    pieces = messages.unpack_pieces(joined(messages.pieces_request(number, asked[1], symbols)))
    assert (pieces.number, list(pieces.indexes)) == (number, indexes)
    assert bytes(pieces.data) == b"".join(symbols[PIECE_BYTES * i : PIECE_BYTES * (i + 1)] for i in indexes)


def test_however_many_pieces_lack_a_kernel_takes_them() -> None:
    data = bytes(2000 * PIECE_BYTES)
    message = messages.pieces_request(1, range(2000), data)
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        assert here.sendmsg(message) > 0
    assert bytes(messages.unpack_pieces(joined(message)).data) == data


@given(st.builds(Report, words, *[stamps] * 4, *[levels] * 3, st.booleans(), st.just("0123456789abcdef")))
def test_a_report_is_read_as_it_was_packed(report: Report) -> None:
    assert messages.unpack_report(memoryview(messages.pack_report(report))) == report


@given(st.integers(0, 8), st.binary(max_size=400))
def test_what_nobody_packed_is_refused_with_one_error(what: int, rest: bytes) -> None:
    for text in (rest, messages.pack_done(what) + rest):
        for read in (
            messages.unpack_begin,
            messages.unpack_frame,
            messages.unpack_pieces,
            messages.unpack_missing,
            messages.unpack_report,
            lambda payload: about_of(messages.unpack_begin(payload)),
        ):
            try:
                read(memoryview(text))
            except FrameError:
                continue
            assert text[3] == what  # only what says that it is this may be taken for it


scenarios = st.builds(
    Scenario,
    st.lists(st.floats(-50, 50), min_size=2, max_size=2).map(tuple),
    st.sampled_from(FADINGS),
    st.floats(0, 10),
)
airs = st.builds(Air, st.just(Group("239.1.2.3", 99)), st.just("10.0.0.1"), st.just(KEY), words)


@given(
    st.builds(
        About,
        st.just("t001"),
        st.integers(-(2**62), 2**62),
        scenarios,
        st.integers(0, 1000),
        st.integers(1, 2),
        st.lists(st.text(max_size=20), max_size=3).map(tuple),
        st.none() | airs,
    )
)
def test_the_beginning_of_a_trial_is_read_as_it_was_packed(about: About) -> None:
    text = messages.pack_begin(about_json(about))
    assert about_of(messages.unpack_begin(memoryview(text))) == about


NO_GROUP = {"group": "10.0.0.1:7", "interface": "10.0.0.1", "key": "00" * 32, "session": 1}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trial", "../x"),
        ("user", 3),
        ("user", 0),
        ("fading", "rice"),
        ("csi_error", -1.0),
        ("snr_db", [float("nan")] * 2),
        ("air", NO_GROUP),
        ("models", None),
    ],
)
def test_the_beginning_of_a_trial_has_to_make_sense(key: str, value: Any) -> None:
    about = About("t001", 1, Scenario((10.0, 1.0), "none", 0.0), 1, 1, ("m",), None)
    with pytest.raises(FrameError, match="the beginning of a trial"):
        about_of({**about_json(about), key: value})


@given(words, words, st.integers(0, 3), st.binary(min_size=1, max_size=PIECE_BYTES), st.data())
def test_only_datagrams_with_the_right_tag_are_taken(
    session: int, frame: int, place: int, data: bytes, more: st.DataObject
) -> None:
    piece = Piece(session, frame, place, 4, memoryview(data))
    datagram = multicast.pack_datagram(KEY, piece)
    assert multicast.unpack_datagram(KEY, datagram) == piece
    assert multicast.unpack_datagram(KEY[::-1], datagram) is None
    changed = bytearray(datagram)
    changed[more.draw(st.integers(0, len(datagram) - 1))] ^= 1 << more.draw(st.integers(0, 7))
    assert multicast.unpack_datagram(KEY, changed) is None
    assert multicast.unpack_datagram(KEY, datagram[:-1]) is None


def test_a_group_is_an_address_of_multicast_and_a_port() -> None:
    assert multicast.parse_group("239.83.0.1:7072") == Group("239.83.0.1", 7072)
    for text in (
        "10.0.0.1:7072",
        "239.83.0.1",
        "239.83.0.1:0",
        "239.83.0.1:65536",
        "239.1:7",
        "239.0.0.x:7",
        ":7",
    ):
        with pytest.raises(ValueError, match="a multicast address and a port"):
            multicast.parse_group(text)


@pytest.fixture
def heard() -> Iterator[tuple[Sender, Collector]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        group = Group("239.83.0.2", probe.getsockname()[1])
    sender, collector = Sender(group, "127.0.0.1"), Collector(group, "127.0.0.1", KEY, 7)
    yield sender, collector
    collector.close()
    sender.close()


def until() -> float:
    return time.monotonic() + 20


def test_frames_are_gathered_whether_they_come_early_or_late(heard: tuple[Sender, Collector]) -> None:
    sender, collector = heard
    data = bytes(range(256)) * 40  # eight pieces
    sender.send(KEY[::-1], 7, 1, data)  # somebody else's
    sender.send(KEY, 8, 1, data)  # of another trial
    for frame in (1, 2):
        sent = sender.send(KEY, 7, frame, data)
        assert sent == len(data) + 8 * (multicast._HEAD.size + multicast.TAG_BYTES)
        assert collector.gather(frame, len(data), until()) == []
        whole, lacking, last_ns = collector.taken()
        assert (bytes(whole), lacking) == (data, [])
        assert 0 < last_ns <= time.monotonic_ns()
    assert collector.gather(3, len(data), time.monotonic() + 0.01) == list(range(8))
    assert not collector.add(7, memoryview(data)[:PIECE_BYTES])  # the last piece is shorter
    for place in range(8):
        assert collector.add(place, memoryview(data)[PIECE_BYTES * place : PIECE_BYTES * (place + 1)])
    assert bytes(collector.taken()[0]) == data


def test_multicast_keeps_to_a_rate(heard: tuple[Sender, Collector]) -> None:
    sender, _ = heard
    begun = time.monotonic()
    sender.send(KEY, 7, 1, bytes(PIECE_BYTES * 5), 1.0)
    # Never faster: five frames of 1474 bytes at 1 Mbit/s.
    assert time.monotonic() - begun >= 0.058
    assert multicast.seconds_on_air(PIECE_BYTES * 5, 1.0) == pytest.approx(5 * 1474 * 8 / 1e6)
    assert multicast.seconds_on_air(PIECE_BYTES * 5, None) == 0


def test_an_interface_that_is_not_here_is_told() -> None:
    with pytest.raises(MulticastError, match=r"cannot hear 239\.83\.0\.2:7 by 192\.0\.2\.1"):
        Collector(Group("239.83.0.2", 7), "192.0.2.1", KEY, 1)
    with pytest.raises(MulticastError, match=r"no multicast by the interface 192\.0\.2\.1"):
        Sender(Group("239.83.0.2", 7), "192.0.2.1")


def test_images_appear_when_the_trial_is_whole(tmp_path: Path) -> None:
    first = Keeper(tmp_path / "t001")
    first.add(b"abc")
    first.close()
    assert list(tmp_path.iterdir()) == []
    for text in (b"abc", b"def"):
        keeper = Keeper(tmp_path / "t001")
        keeper.add(text)
        keeper.keep()
        keeper.close()
        assert (tmp_path / "t001" / "pixels.bin").read_bytes() == text
    assert [path.name for path in tmp_path.iterdir()] == ["t001"]


def test_images_that_a_full_disk_does_not_take_are_dropped(tmp_path: Path) -> None:
    keeper = FullKeeper(tmp_path / "t001")
    keeper.add(b"abc")  # in a buffer as yet
    with pytest.raises(KeepError, match=r"cannot keep images in .*t001: No space left on device"):
        keeper.keep()
    keeper.close()
    assert list(tmp_path.iterdir()) == []


def specification() -> dict[str, Any]:
    return {
        "run": "r-0001",
        "seed": 1,
        "users": ["a", "b"],
        "sets": {"natural": {"file": "x.bin", "pairs": 2, "height": 128, "width": 64}},
        "blocks": [{"set": "natural", "pair": pair, "slots": 64, "shares": [0.2, 0.8]} for pair in (0, 1)],
        "schemes": {"fusion of two": ["m1", "m2"]},
        "scenarios": {"10-1": {"snr_db": [10, 1]}, "x": {"snr_db": [3, 3], "fading": "rayleigh", "csi_error": 0.1}},
        "trials": [{"trial": "t001", "scheme": "fusion of two", "scenario": "10-1", "repeat": 1}],
    }  # fmt: skip


def test_frames_are_all_blocks_of_one_model_and_then_of_the_next(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(specification()))
    spec = read_spec(path)
    frames = list(frames_of(spec, spec.trial("t001")))
    assert [(frame.number, frame.number_of_block, frame.block.pair, frame.model) for frame in frames] == [
        (0, 0, 0, "m1"), (1, 1, 1, "m1"), (2, 0, 0, "m2"), (3, 1, 1, "m2"),
    ]  # fmt: skip
    assert spec.sets["natural"].grid == (16, 8)
    assert (spec.deadline_s, spec.warmup) == (60.0, 1)
    with pytest.raises(SpecError, match="the run has no trial 't002'"):
        spec.trial("t002")


def broken(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    value = specification()
    change(value)
    return value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("users"), "users is missing"),
        (lambda v: v.update(users=["a", "a"]), "users: 1 to 16 different devices"),
        (lambda v: v.update(seed=True), "seed: a whole number was expected, not True"),
        (lambda v: v.update(run="../x"), "expected a name of letters"),
        (lambda v: v["sets"]["natural"].update(height=100), "sides are multiples of 8"),
        (lambda v: v["blocks"][0].update(slots=63), "slots: an even number up to 1024 was expected, not 63"),
        (lambda v: v["blocks"][0].update(shares=[0.2, 0.9]), "shares: 2 that sum to 1 were expected"),
        (lambda v: v["blocks"][0].update(shares=[float("nan"), 1]), "shares: a number was expected, not nan"),
        (lambda v: v["blocks"][1].update(pair=2), "block 1: the set natural has 2 pairs, from 0"),
        (lambda v: v["blocks"][1].update(set="x"), "block 1: there is no set 'x'"),
        (lambda v: v.update(blocks=[]), "blocks: there is none"),
        (lambda v: v["scenarios"]["10-1"].update(snr_db=[1]), "snr_db: 2 were expected, not 1"),
        (
            lambda v: v["scenarios"]["10-1"].update(fading="rice"),
            "fading: one of none, rayleigh was expected",
        ),
        (lambda v: v["scenarios"]["10-1"].update(csi_error=-1), "csi_error: a variance was expected, not -1"),
        (lambda v: v["trials"][0].update(scheme="x"), "trial t001: there is no scheme 'x' with a model"),
        (lambda v: v["trials"][0].update(scenario="y"), "trial t001: there is no scenario 'y'"),
        (lambda v: v.update(deadline_s=0), "deadline_s: seconds above 0 were expected, not 0"),
        (lambda v: v.update(warmup=-1), "warmup: a whole number of at least 0 was expected, not -1"),
    ],
)
def test_what_is_wrong_in_a_specification_is_told(change: Callable[..., Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec_of(broken(change), Path())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=100)
@given(st.data())
def test_no_specification_ends_in_another_error(data: st.DataObject) -> None:
    value = specification()
    holder: Any = value
    while True:  # some place in it gets some value
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(holder[key], (dict, list)) or data.draw(st.booleans()):
            holder[key] = data.draw(json_values)
            break
        holder = holder[key]
    with contextlib.suppress(SpecError):
        spec_of(value, Path())


EXERCISE = """
import sys
from pathlib import Path
for path in sorted(Path("payloads/semcast").glob("*.py")):
    compile(path.read_text(), str(path), "exec")
from payloads.semcast import about, kept, messages, multicast, receivers, spec
from payloads.semcast.messages import FrameHead
head = FrameHead(1, 2, 64, 2, 2, 0, True, 0, 0, (0.25, 0.75), (10.0, 1.0), (3, 4))
packed = memoryview(b"".join(messages.frame_request(head, bytes(head.data_bytes))))
assert messages.unpack_frame(packed)[0] == head
air = about.Air(multicast.parse_group("239.1.2.3:9"), "127.0.0.1", bytes(32), 5)
told = about.About("t", 1, spec.Scenario((10.0, 1.0), "none", 0.0), 1, 2, ("m",), air)
assert about.about_of(messages.unpack_begin(memoryview(messages.pack_begin(about.about_json(told))))) == told
assert "torch" not in sys.modules and "numpy" not in sys.modules
print("good")
"""


def test_what_the_controller_reads_needs_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXERCISE], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("good", "")
