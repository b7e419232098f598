from __future__ import annotations

import secrets
import socket
import threading
from dataclasses import replace
from typing import Any, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.linkd.errors import LinkdError
from payloads.linkd.hello import greet, receive, welcome
from payloads.linkd.links import Link
from payloads.linkd.model import Framing, expected_ms
from payloads.linkd.probe import PACING, Settings, busy_seconds, percentile, probe_links, row_of
from payloads.linkd.respond import (
    DOWN,
    LOAD_DOWN,
    LOAD_UP,
    MAX_LOAD_S,
    MAX_MESSAGE_BYTES,
    PACE,
    REQUEST,
    UP,
    Conversation,
    parse_address,
)
from payloads.wire.auth import AuthError

LINK = Link("board", "10.0.0.2", 7070, 7071, 20.0, 10.0)
KEY = secrets.token_bytes(32)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.settimeout(5)
    yield ours, theirs
    ours.close()
    theirs.close()


def _in_thread(function: Any, *args: Any) -> tuple[threading.Thread, list[BaseException]]:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function(*args)
        except BaseException as error:
            errors.append(error)
            args[0].close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


def test_both_ends_prove_the_key(ends) -> None:
    ours, theirs = ends
    thread, errors = _in_thread(welcome, theirs, KEY)
    greet(ours, KEY)
    thread.join()
    assert not errors


def test_a_client_without_the_key_is_not_let_in(ends) -> None:
    ours, theirs = ends
    thread, errors = _in_thread(welcome, theirs, KEY)
    with pytest.raises(AuthError, match="key"):
        greet(ours, secrets.token_bytes(32))
    ours.close()
    thread.join()
    assert isinstance(errors[0], ConnectionError)


def _answer(connection: socket.socket) -> bool:
    return Conversation(connection).answer()


def test_down_is_answered_with_one_byte_and_up_with_the_message(ends) -> None:
    ours, theirs = ends
    for size in (9, 5000):
        thread, errors = _in_thread(_answer, theirs)
        ours.sendall(REQUEST.pack(DOWN, 0, size) + bytes(size - REQUEST.size))
        assert len(receive(ours, 1)) == 1
        thread.join()
        thread, errors = _in_thread(_answer, theirs)
        ours.sendall(REQUEST.pack(UP, 0, size))
        assert len(receive(ours, size)) == size
        thread.join()
        assert not errors


@pytest.mark.parametrize(
    ("kind", "seconds", "length"),
    [
        (UP, 0, MAX_MESSAGE_BYTES + 1),
        (DOWN, 0, 1 << 31),
        (LOAD_UP, MAX_LOAD_S + 1, 1 << 16),
        (LOAD_UP, 0, 1 << 16),
        (LOAD_DOWN, 0, 0),
        (PACE, 0, 0),
        (7, 0, 3),
    ],
)
def test_nothing_unbounded_is_answered(ends, kind: int, seconds: int, length: int) -> None:
    ours, theirs = ends
    ours.sendall(REQUEST.pack(kind, seconds, length))
    with pytest.raises(LinkdError):
        _answer(theirs)


def test_a_responder_that_cannot_pace_says_so(ends) -> None:
    """A local socket knows no segments, as a system may know no pacing."""
    ours, theirs = ends
    ours.sendall(REQUEST.pack(PACE, 0, 5000))
    assert _answer(theirs)
    assert receive(ours, 1) == b"\0"


class FakeProber:
    """Gives the times of an exact link, `late_ms` later for the first `late` sizes that are measured."""

    framing = Framing()

    def __init__(self, late: int = 0, late_ms: float = 0.0, *, first_frame: bool = False) -> None:
        self.late, self.late_ms, self.first_frame = late, late_ms, first_frame
        self.closed = 0
        self.asked: list[tuple[str, int, int]] = []
        self.paced: list[str] = []

    def pace(self, direction: str) -> None:
        self.paced.append(direction)

    def measure(self, direction: str, size: int, count: int) -> tuple[list[float], list[float]]:
        self.asked.append((direction, size, count))
        rate = 20.0 if direction == "downlink" else 10.0
        late_ms = self.late_ms if len(self.asked) <= self.late else 0.0
        expected = expected_ms(size, rate, first_frame=self.first_frame)
        return [0.25 + expected + late_ms] * count, [0.25] * count

    def close(self) -> None:
        self.closed += 1


def _probe(prober: FakeProber, settings: Settings, links: Any = (LINK,), **more: Any) -> list[dict[str, Any]]:
    return list(probe_links(links, KEY, settings, prober=lambda _link, _key: prober, **more))  # type: ignore[arg-type,return-value]


def test_rows_of_an_exact_link() -> None:
    prober = FakeProber()
    rows = _probe(prober, Settings((1024, 65536), repeats=3))
    assert [(r["direction"], r["message_bytes"], r["asked_mbit"]) for r in rows] == [
        ("downlink", 1024, 20), ("downlink", 65536, 20), ("uplink", 1024, 10), ("uplink", 65536, 10),
    ]  # fmt: skip
    assert all(row["ok"] and row["n"] == 3 and row["state"] == "idle" for row in rows)
    assert [row["ratio"] for row in rows] == [None, 1.0, None, 1.0]
    assert prober.closed == 1


def test_what_is_off_is_measured_again_and_then_told() -> None:
    settings = Settings((65536,), directions=("downlink",))
    once = FakeProber(1, 50.0)
    assert _probe(once, settings)[0]["ok"]
    assert len(once.asked) == 2
    always = FakeProber(9, 50.0)
    (row,) = _probe(always, settings)
    assert not row["ok"]
    assert row["measured_ms"] == pytest.approx(row["expected_ms"] + 50, abs=1e-3)
    assert len(always.asked) == row["attempts"] == 3


def test_a_link_that_lets_a_message_through_too_fast_is_not_ok() -> None:
    row = row_of(LINK, "downlink", 32768, [0.23] * 5, [0.18] * 5, 0.05, Framing())
    assert not row["ok"]
    assert row["ratio"] < 0.01


@pytest.mark.parametrize("leaf", ["bs-htb-netem", "bs-line", "device-htb-netem"])
def test_what_is_expected_follows_the_leaf_of_each_direction(leaf: str) -> None:
    """These delay the first frame too: at 1 Mbit/s twelve milliseconds, which a token bucket lets pass at once."""
    slow = replace(LINK, downlink_mbit=1.0, uplink_mbit=1.0)
    times = [0.2 + expected_ms(4096, 1.0, first_frame=True)] * 5
    # The round trip that is subtracted was that of eight bytes, which took their time too.
    few_bytes = [0.2 + (8 + 66) * 8 / 1e3]
    one = row_of(slow, "downlink", 4096, times, few_bytes, 0.05, Framing(), leaf)
    other = row_of(slow, "downlink", 4096, times, [0.2], 0.05, Framing(), "bs-htb-tbf")
    assert one["ratio"] == pytest.approx(1.0, abs=1e-3)
    assert one["expected_ms"] - other["expected_ms"] == pytest.approx(1514 * 8 / 1e3, abs=1e-3)
    assert (one["backend"], other["backend"]) == (leaf, "bs-htb-tbf")


def test_a_direction_that_is_left_alone_has_no_rows() -> None:
    rows = _probe(FakeProber(), Settings((4096,)), [replace(LINK, downlink_mbit=None)])
    assert [row["direction"] for row in rows] == ["uplink"]


def test_where_sockets_are_paced_the_probe_paces_its_own() -> None:
    prober = FakeProber()
    rows = _probe(prober, Settings((4096,)), backends={("board", "uplink"): PACING})
    assert prober.paced == ["uplink"]
    assert [row["backend"] for row in rows] == [None, PACING]


class FakeLoad:
    """Remembers whom it loads, and is as full as it was told."""

    def __init__(self, share: float) -> None:
        self.full = share
        self.loaded: list[list[str]] = []
        self.running = False

    def __call__(self, links: Any, seconds: float) -> FakeLoad:
        assert seconds > 0
        self.loaded.append([link.device for link in links])
        return self

    def __enter__(self) -> FakeLoad:
        self.running = True
        return self

    def __exit__(self, *_: object) -> None:
        self.running = False

    def mark(self) -> None:
        assert self.running

    def share(self) -> float:
        assert self.running
        return self.full


@pytest.mark.unhurried
def test_a_busy_probe_loads_all_other_links_and_measures_idle_first() -> None:
    links = [replace(LINK, device=name, address=f"10.0.0.{n}") for n, name in enumerate("abc", 2)]
    load = FakeLoad(0.97)
    rows = _probe(
        FakeProber(), Settings((4096,), directions=("uplink",), busy=True), links, load=load, only=["a", "b"]
    )
    assert load.loaded == [["b", "c"], ["a", "c"]]
    assert not load.running
    assert [(row["device"], row["state"], row["load_share"]) for row in rows] == [
        ("a", "idle", None), ("a", "busy", 0.97), ("b", "idle", None), ("b", "busy", 0.97),
    ]  # fmt: skip


def test_a_busy_probe_needs_others_and_a_device_needs_a_link() -> None:
    with pytest.raises(LinkdError, match="at least two links"):
        _probe(FakeProber(), Settings((4096,), busy=True), load=FakeLoad(1.0))
    with pytest.raises(LinkdError, match="'nobody'"):
        _probe(FakeProber(), Settings((4096,)), only=["nobody"])


def test_jitter_widens_the_tolerance_and_loss_only_forgives_what_is_late() -> None:
    shaky, lossy = replace(LINK, jitter_ms=5.0), replace(LINK, loss_percent=1.0)
    late = [0.2 + expected_ms(65536, 20.0) + 8.0] * 3
    early = [0.2 + expected_ms(65536, 20.0) - 12.0] * 3

    def ok(link: Link, times: list[float]) -> bool:
        return bool(row_of(link, "downlink", 65536, times, [0.2], 0.05, Framing())["ok"])

    assert [ok(link, late) for link in (LINK, shaky, lossy)] == [False, True, True]
    assert [ok(link, early) for link in (LINK, shaky, lossy)] == [False, False, False]


@given(st.integers(16, MAX_MESSAGE_BYTES), st.floats(0.05, 1000), st.integers(1, 50), st.floats(0.01, 10))
def test_fewer_messages_of_a_size_where_they_take_long(
    size: int, rate: float, repeats: int, within_s: float
) -> None:
    count = Settings((size,), repeats=repeats, within_s=within_s).count(size, rate)
    assert min(3, repeats) <= count <= repeats
    assert count <= 3 or count * expected_ms(size, rate, first_frame=True) <= within_s * 1e3
    assert Settings((size,), repeats=repeats).count(size, rate) == repeats


def test_a_load_is_bounded_by_what_the_probe_may_take() -> None:
    slow = replace(LINK, downlink_mbit=0.05, uplink_mbit=0.05)
    short = busy_seconds(LINK, Settings((4096,)))
    assert short < busy_seconds(LINK, Settings((1 << 20,))) < busy_seconds(slow, Settings((1 << 20,))) <= 3600


@given(st.lists(st.floats(-1e3, 1e3), min_size=1), st.floats(0, 1))
def test_percentiles_lie_between_the_values(values: list[float], share: float) -> None:
    assert min(values) - 1e-9 <= percentile(values, share) <= max(values) + 1e-9
    assert percentile(values, 0) == min(values)
    assert percentile(values, 1) == max(values)


@pytest.mark.parametrize("sizes", [(), (8,), (MAX_MESSAGE_BYTES + 1,)])
def test_wrong_sizes_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(LinkdError):
        Settings(sizes)


def test_addresses() -> None:
    assert parse_address("10.0.0.2:7071") == ("10.0.0.2", 7071)
    for wrong in ("7071", ":7071", "10.0.0.2:", "10.0.0.2:x", "10.0.0.2:70000"):
        with pytest.raises(LinkdError):
            parse_address(wrong)
