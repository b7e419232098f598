from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.linkd.channel import Channel, Rule
from payloads.linkd.history import History, Sample
from payloads.linkd.links import Link
from payloads.linkd.player import Player

LINKS = (Link("a", "10.0.0.2", 7070, 7071, 8.0, None), Link("b", "10.0.0.3", 7070, 7071, 2.0, 1.0))


def _read(history: History) -> dict:
    text = b"".join(history.chunks(history.head()))
    assert text.count(b"\n") == 1
    return json.loads(text)


@pytest.mark.parametrize("count", [0, 1, 499, 500, 501, 1700])
def test_a_history_of_any_length_is_one_line_of_json(count: int) -> None:
    history = History(["a", "b"])
    for number in range(count):
        history.change(float(number), "block", None, LINKS)
        history.sample(Sample(float(number), [number, 1], [None, 2], [0, 0], [None, 0]))
    read = _read(history)
    assert (read["devices"], read["lost"], read["lost_samples"]) == (["a", "b"], 0, 0)
    assert [change[0] for change in read["changes"]] == list(range(count))
    assert [sample[1][0] for sample in read["samples"]] == list(range(count))
    if count:
        assert read["changes"][0] == [0, "block", None, [8, 2], [None, 1]]


@given(st.integers(0, 30), st.integers(1, 9))
def test_the_oldest_go_first_and_are_counted(count: int, most: int) -> None:
    history = History(["a", "b"], most)
    for number in range(count):
        history.change(float(number), "block", None, LINKS)
    read = _read(history)
    assert [change[0] for change in read["changes"]] == list(range(count))[-most:]
    assert read["lost"] + len(read["changes"]) == count


def test_what_happens_while_a_history_is_read_is_not_in_it() -> None:
    history = History(["a", "b"])
    for number in range(1000):
        history.change(float(number), "block", None, LINKS)
    chunks = history.chunks(history.head())
    first = next(chunks)
    history.change(1e6, "hold", None, LINKS)
    assert len(json.loads(first + b"".join(chunks))["changes"]) == 1000


blocks = st.lists(st.integers(1, 50), min_size=1, max_size=9)


@given(blocks, st.lists(st.floats(0.0, 0.4), max_size=60), st.floats(0, 1e6))
def test_a_player_that_wakes_late_is_late_once(
    lengths: list[int], lateness: list[float], start: float
) -> None:
    """However late each wake is, the block is the one of the moment, and the next deadline is a block's beginning."""
    edges = [sum(lengths[:number]) / 10 for number in range(len(lengths) + 1)]
    channel = Channel(
        Rule("linear"), ("a",), (1.0,), (1.0,), tuple(edges[:-1]), edges[-1],
        ((1.0,),) * len(lengths), ((1.0,),) * len(lengths),
    )  # fmt: skip
    player, now = Player(channel, start), start
    for late in lateness:
        due = player.next_s(now)
        if due is None:
            assert len(lengths) == 1
            return
        phase = (due - start) % channel.duration_s
        assert min(abs(phase - edge) for edge in edges) < 1e-4
        now = due + late
        player.due(now)
        assert player.block == channel.block_at(now - start)


def test_many_devices_and_long_reasons_take_no_more_memory() -> None:
    devices = [f"d{number}" for number in range(1000)]
    history = History(devices)
    for number in range(4100):
        history.change(float(number), "allocate", "w" * 5000, LINKS)
        history.sample(Sample(float(number), [], [], [], []))
    read = _read(history)
    assert (len(read["changes"]), read["lost"], read["lost_samples"]) == (4000, 100, 100)
    assert len(read["changes"][0][2]) == 300
