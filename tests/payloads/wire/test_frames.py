"""Frames survive the way, and nothing that is not one is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.wire import frames
from payloads.wire.frames import FrameError, Kind
from payloads.wire.header import HEADER, MAGIC

DTYPES = st.sampled_from(sorted(frames.DTYPE_CODES))


@st.composite
def dispatches(draw):
    rows = draw(st.integers(1, 6))
    hidden = draw(st.integers(1, 9))
    dtype = draw(DTYPES)
    experts = sorted(draw(st.sets(st.integers(0, 300), min_size=1, max_size=5)))
    picks = [draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=7)) for _ in experts]
    data = draw(st.binary(min_size=(n := rows * frames.row_bytes(dtype, hidden)), max_size=n))
    layer, step = draw(st.integers(0, 65535)), draw(st.integers(0, 2**32 - 1))
    return layer, dtype, step, rows, hidden, data, experts, picks


def join(case, sequence=7):
    layer, dtype, step, rows, hidden, data, experts, picks = case
    indices = [row for pick in picks for row in pick]
    head = frames.pack_dispatch(layer, dtype, step, rows, hidden, len(experts), len(indices), sequence)
    return head + data + frames.pack_lists(experts, [len(pick) for pick in picks], indices)


@given(dispatches(), st.integers(0, 2**32 - 1))
def test_a_dispatch_is_read_back_as_it_was_written(case, sequence):
    layer, dtype, step, rows, hidden, data, experts, picks = case
    frame = join(case, sequence)
    header = frames.unpack_header(frame)
    assert header == (Kind.DISPATCH, len(frame) - frames.HEADER_BYTES, sequence)
    got = frames.unpack_dispatch(memoryview(frame)[frames.HEADER_BYTES :])
    assert got[:5] == (layer, dtype, step, rows, hidden)
    assert bytes(got.data) == data
    assert got.experts.tolist() == experts
    assert got.counts.tolist() == [len(pick) for pick in picks]
    assert got.indices.tolist() == [row for pick in picks for row in pick]


@given(dispatches(), st.data())
def test_a_damaged_dispatch_is_refused_or_still_makes_sense(case, data):
    frame = bytearray(join(case))
    place = data.draw(st.integers(frames.HEADER_BYTES, len(frame) - 1))
    frame[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(frames.HEADER_BYTES, len(frame)))
    try:
        got = frames.unpack_dispatch(memoryview(frame)[frames.HEADER_BYTES : cut])
    except FrameError:
        return
    # What is accepted is consistent: nothing in it points outside.
    assert len(got.data) == got.rows * frames.row_bytes(got.dtype, got.hidden)
    assert sum(got.counts) == len(got.indices)
    assert max(got.indices) < got.rows
    assert len(got.experts) == len(got.counts) == len(set(got.experts))


@given(dispatches(), st.lists(st.integers(0, 2**64 - 1), min_size=4, max_size=4), st.booleans(), st.data())
def test_an_answer_is_read_back_as_it_was_written(case, stamps, late, data):
    dispatch = frames.unpack_dispatch(memoryview(join(case))[frames.HEADER_BYTES :])
    size = len(dispatch.indices) * frames.row_bytes(dispatch.dtype, dispatch.hidden)
    rows = data.draw(st.binary(min_size=size, max_size=size))
    frame = frames.pack_result(dispatch, *stamps, late, 9) + rows
    assert frames.unpack_header(frame) == (Kind.RESULT, len(frame) - frames.HEADER_BYTES, 9)
    got = frames.unpack_result(memoryview(frame)[frames.HEADER_BYTES :])
    assert (got.layer, got.dtype, got.late, got.step) == (dispatch.layer, dispatch.dtype, late, dispatch.step)
    assert [got.received_ns, got.started_ns, got.computed_ns, got.replied_ns] == stamps
    assert bytes(got.data) == rows
    with pytest.raises(FrameError):
        frames.unpack_result(memoryview(frame)[frames.HEADER_BYTES : -1])


@given(st.binary(min_size=frames.HEADER_BYTES, max_size=40))
def test_noise_is_no_header(noise):
    try:
        header = frames.unpack_header(noise)
    except FrameError:
        return
    assert noise[:2] == b"TB"
    assert header.length <= frames.MAX_FRAME_BYTES


def test_an_announcement_beyond_the_limit_is_refused():
    huge = HEADER.pack(MAGIC, frames.PROTOCOL_VERSION, Kind.DISPATCH, 2**32 - 1, 1)
    with pytest.raises(FrameError, match="more than its limit"):
        frames.unpack_header(huge)
    with pytest.raises(FrameError, match="larger than the limit"):
        frames.pack_header(Kind.ERROR, 1025, 1)
    with pytest.raises(FrameError, match="at most 32767"):
        frames.pack_dispatch(0, "float32", 0, 40000, 8, 1, 1, 1)


@given(st.text(), st.integers(0, 2**64 - 1))
def test_errors_and_pings_survive_the_way(text, stamp):
    frame = frames.pack_error(text, 3)
    message = frames.unpack_error(memoryview(frame)[frames.HEADER_BYTES :])
    assert message.isprintable()
    ping = frames.pack_ping(stamp, 4)
    assert frames.unpack_ping(memoryview(ping)[frames.HEADER_BYTES :]) == stamp
    for again in (None, 0, 2**62):
        pong = frames.pack_pong(stamp, 1, 2, again, 4)
        assert frames.unpack_pong(memoryview(pong)[frames.HEADER_BYTES :]) == (stamp, 1, 2, again)


def test_a_description_that_is_no_object_is_refused():
    for text in (b"[]", b"{", b"\xff"):
        with pytest.raises(FrameError):
            frames.unpack_description(memoryview(text))


@pytest.mark.parametrize("mbit", [None, 0.01, 54.5, 1e4])
def test_a_pace_survives_the_way(mbit):
    frame = frames.pack_pace(mbit)
    assert frames.unpack_header(frame).kind == Kind.PACE
    assert frames.unpack_pace(memoryview(frame)[frames.HEADER_BYTES :]) == mbit


@pytest.mark.parametrize("mbit", [-1.0, float("nan"), float("inf"), 1e12])
def test_a_pace_that_is_none_is_refused(mbit):
    frame = frames.pack_pace(mbit)
    with pytest.raises(FrameError, match="a pace of"):
        frames.unpack_pace(memoryview(frame)[frames.HEADER_BYTES :])
