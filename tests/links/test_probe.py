from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.linkd.errors import LinkdError
from payloads.linkd.hello import greet, receive, welcome
from payloads.linkd.model import Framing, expected_ms
from payloads.linkd.plan import Link
from payloads.linkd.probe import Settings, percentile, probe_device, row_of
from payloads.linkd.respond import DOWN, MAX_MESSAGE_BYTES, REQUEST, UP, converse, parse_address
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


def test_down_is_answered_with_one_byte_and_up_with_the_message(ends) -> None:
    ours, theirs = ends
    for size in (9, 5000):
        thread, errors = _in_thread(converse, theirs)
        ours.sendall(REQUEST.pack(DOWN, size) + bytes(size - REQUEST.size))
        assert len(receive(ours, 1)) == 1
        thread.join()
        thread, errors = _in_thread(converse, theirs)
        ours.sendall(REQUEST.pack(UP, size))
        assert len(receive(ours, size)) == size
        thread.join()
        assert not errors


@pytest.mark.parametrize(("kind", "length"), [(UP, MAX_MESSAGE_BYTES + 1), (DOWN, 1 << 31), (7, 3)])
def test_no_unbounded_messages(ends, kind: int, length: int) -> None:
    ours, theirs = ends
    ours.sendall(REQUEST.pack(kind, length))
    with pytest.raises(LinkdError):
        converse(theirs)


class FakeProber:
    """Gives the times of an exact link, `late_ms` later for the first `late` sizes that are measured."""

    framing = Framing()

    def __init__(self, late: int, late_ms: float) -> None:
        self.late, self.late_ms = late, late_ms
        self.closed = False
        self.asked: list[tuple[str, int, int]] = []

    def measure(self, direction: str, size: int, count: int) -> tuple[list[float], list[float]]:
        self.asked.append((direction, size, count))
        rate = LINK.downlink_mbit if direction == "downlink" else LINK.uplink_mbit
        late_ms = self.late_ms if len(self.asked) <= self.late else 0.0
        return [0.25 + expected_ms(size, rate) + late_ms] * count, [0.25] * count

    def close(self) -> None:
        self.closed = True


def _probe(prober: FakeProber, settings: Settings) -> list[dict[str, Any]]:
    return list(probe_device(LINK, KEY, settings, lambda _link, _key: prober))  # type: ignore[arg-type,return-value]


def test_rows_of_an_exact_link() -> None:
    prober = FakeProber(0, 0.0)
    rows = _probe(prober, Settings((1024, 65536), repeats=3))
    assert [(r["direction"], r["message_bytes"], r["asked_mbit"]) for r in rows] == [
        ("downlink", 1024, 20), ("downlink", 65536, 20), ("uplink", 1024, 10), ("uplink", 65536, 10),
    ]  # fmt: skip
    assert all(row["ok"] and row["n"] == 3 for row in rows)
    assert [row["ratio"] for row in rows] == [None, 1.0, None, 1.0]
    assert prober.closed


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
    row = row_of(LINK, "downlink", 32768, [0.23] * 5, 0.18, 0.05, Framing())
    assert not row["ok"]
    assert row["ratio"] < 0.01


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
