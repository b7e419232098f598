"""When frames leave the line: rate, queue, delay, jitter and loss, on a clock that the test turns."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.linkd.line_schedule import LinkTiming, Schedule

A, B = b"\x0a\x54\x00\x02", b"\x0a\x54\x00\x03"
FRAME = bytes(1514)
#: 1 Mbit/s: 12.112 ms for a full frame.
MBIT = 125_000.0


def timing(rate: float = MBIT, limit: int = 1 << 30, **changes: float) -> LinkTiming:
    return LinkTiming(rate, limit, **changes)


def play(schedule: Schedule, arrivals: list[tuple[float, bytes, bytes]]) -> list[tuple[float, bytes, bytes]]:
    """Offer frames at their times and collect (time, link, frame) exactly when the schedule asks to be asked."""
    came: list[tuple[float, bytes, bytes]] = []
    waiting = sorted(arrivals, key=lambda item: item[0])
    while True:
        next_out = schedule.next_s()
        next_in = waiting[0][0] if waiting else math.inf
        now = min(next_out, next_in)
        if now == math.inf:
            return came
        while waiting and waiting[0][0] <= now:
            _, key, frame = waiting.pop(0)
            schedule.offer(now, key, frame)
        came += [(now, key, frame) for key, frame in schedule.due(now)]


def test_each_frame_takes_its_own_time_and_the_first_one_too() -> None:
    sizes = [1514, 66, 800]
    came = play(Schedule({A: timing()}), [(1.0, A, bytes(size)) for size in sizes])
    assert [len(frame) for _, _, frame in came] == sizes
    assert [time for time, _, _ in came] == pytest.approx([1 + 1514 / MBIT, 1 + 1580 / MBIT, 1 + 2380 / MBIT])


def test_an_idle_link_earns_nothing() -> None:
    came = play(Schedule({A: timing()}), [(1.0, A, FRAME), (9.0, A, FRAME), (9.0, A, FRAME)])
    assert [time for time, _, _ in came] == pytest.approx([1 + 1514 / MBIT, 9 + 1514 / MBIT, 9 + 3028 / MBIT])


def test_links_do_not_wait_for_each_other() -> None:
    schedule = Schedule({A: timing(), B: timing(10 * MBIT)})
    came = play(schedule, [(0.0, A, FRAME), (0.0, B, FRAME)])
    assert [key for _, key, _ in came] == [B, A]
    assert [time for time, _, _ in came] == pytest.approx([1514 / MBIT / 10, 1514 / MBIT])


def test_a_delay_is_added_once_and_not_to_each_frame_behind_another() -> None:
    schedule = Schedule({A: timing(delay_s=0.5)})
    came = play(schedule, [(0.0, A, FRAME)] * 3)
    assert [time for time, _, _ in came] == pytest.approx([0.5 + n * 1514 / MBIT for n in (1, 2, 3)])


def test_nothing_comes_out_before_the_time_that_was_named_and_all_of_it_then() -> None:
    schedule = Schedule({A: timing(delay_s=0.02)})
    assert schedule.next_s() == math.inf
    schedule.offer(0.0, A, FRAME)
    due = schedule.next_s()
    assert schedule.due(due - 1e-6) == []
    assert schedule.due(due) == [(A, FRAME)]
    assert schedule.next_s() == math.inf


def test_a_late_look_does_not_slow_the_link() -> None:
    """The virtual clock goes on: what was due meanwhile comes at once, what follows at its own time."""
    schedule = Schedule({A: timing()})
    for _ in range(10):
        schedule.offer(0.0, A, FRAME)
    assert len(schedule.due(5.5 * 1514 / MBIT)) == 5
    assert schedule.next_s() == pytest.approx(6 * 1514 / MBIT)


def test_what_comes_after_a_late_look_is_not_sent_in_the_past() -> None:
    schedule = Schedule({A: timing()})
    schedule.offer(0.0, A, FRAME)
    schedule.offer(1.0, A, FRAME)
    assert [schedule.due(1.0), schedule.next_s()] == [[(A, FRAME)], pytest.approx(1.0 + 1514 / MBIT)]


def test_a_change_of_rate_holds_for_what_waits_and_for_the_rest_of_a_frame() -> None:
    schedule = Schedule({A: timing()})
    for _ in range(3):
        schedule.offer(0.0, A, FRAME)
    half = 757 / MBIT
    schedule.change(half, {A: timing(10 * MBIT)})
    came = play(schedule, [])
    assert [time for time, _, _ in came] == pytest.approx(
        [half + (757 + n * 1514) / MBIT / 10 for n in range(3)]
    )


def test_what_is_in_the_air_keeps_its_time_when_the_delay_falls_and_is_not_overtaken() -> None:
    schedule = Schedule({A: timing(delay_s=1.0)})
    schedule.offer(0.0, A, b"first")
    schedule.due(0.5)
    schedule.change(0.5, {A: timing()})
    schedule.offer(0.5, A, b"second")
    came = play(schedule, [])
    assert [frame for _, _, frame in came] == [b"first", b"second"]
    assert came[0][0] == pytest.approx(1.0 + 5 / MBIT)


def test_a_full_queue_drops_and_counts_but_one_frame_always_fits() -> None:
    schedule = Schedule({A: timing(limit=100)})
    assert schedule.offer(0.0, A, FRAME)
    assert not schedule.offer(0.0, A, FRAME)
    counters = schedule.counters(0.0)[A]
    assert (counters.drops, counters.backlog_bytes, counters.packets) == (1, 1514, 0)
    assert schedule.offer(1.0, A, FRAME)


def test_a_frame_of_no_link_is_not_taken() -> None:
    schedule = Schedule({A: timing()})
    assert not schedule.offer(0.0, B, FRAME)
    assert schedule.next_s() == math.inf


def test_losses_have_their_share_are_repeatable_and_take_their_time() -> None:
    def lost(seed: str) -> list[float]:
        schedule = Schedule({A: timing(loss=0.2)}, seed)
        came = play(schedule, [(0.0, A, FRAME)] * 5000)
        counters = schedule.counters(1e9)[A]
        assert counters.lost + counters.packets == 5000
        # Four standard deviations of 5000 draws.
        assert counters.lost / 5000 == pytest.approx(0.2, abs=0.023)
        return [time for time, _, _ in came]

    times = lost("1")
    assert times == lost("1")
    assert times != lost("2")
    # Each of those that came took its place on the link.
    places = [time * MBIT / 1514 for time in times]
    assert all(place == pytest.approx(round(place), abs=1e-6) for place in places)


def test_links_lose_different_frames() -> None:
    schedule = Schedule({A: timing(loss=0.5), B: timing(loss=0.5)})
    came = play(schedule, [(0.0, key, FRAME) for _ in range(200) for key in (A, B)])
    times = {key: [time for time, of, _ in came if of == key] for key in (A, B)}
    assert times[A] != times[B]


def test_jitter_is_even_around_the_delay() -> None:
    """Frames far apart, so that none waits for another."""
    schedule = Schedule({A: timing(1e12, delay_s=0.010, jitter_s=0.004)})
    came = play(schedule, [(float(n), A, b"%d" % n) for n in range(4000)])
    delays = [time - int(frame) for time, _, frame in came]
    assert min(delays) == pytest.approx(0.006, abs=1e-4)
    assert max(delays) == pytest.approx(0.014, abs=1e-4)
    # Standard deviation of an even distribution: width / sqrt(12); four standard errors of the mean.
    assert statistics.mean(delays) == pytest.approx(0.010, abs=4 * 0.0023 / math.sqrt(4000))
    assert statistics.stdev(delays) == pytest.approx(0.008 / math.sqrt(12), rel=0.05)


@given(
    st.lists(st.tuples(st.floats(0, 2), st.sampled_from([A, B]), st.integers(60, 1514)), max_size=60),
    st.floats(0.01, 100),
    st.floats(0, 0.2),
    st.floats(0, 1),
)
def test_order_is_kept_nothing_is_early_and_nothing_vanishes(arrivals, mbit, delay_s, part) -> None:
    link = timing(mbit * MBIT, delay_s=delay_s, jitter_s=delay_s * part)
    schedule = Schedule({A: link, B: link})
    frames = [
        (at, key, n.to_bytes(4, "big") + bytes(size - 4))
        for n, (at, key, size) in enumerate(sorted(arrivals, key=lambda item: item[0]))
    ]
    came = play(schedule, frames)
    for key in (A, B):
        sent = [(at, frame) for at, of, frame in frames if of == key]
        got = [(time, frame) for time, of, frame in came if of == key]
        assert [frame for _, frame in got] == [frame for _, frame in sent]
        clear = 0.0
        for (at, frame), (time, _) in zip(sent, got):
            clear = max(clear, at) + len(frame) / link.bytes_per_s
            assert time >= clear + delay_s * (1 - part) - 1e-9


@given(
    st.lists(st.tuples(st.floats(0.001, 0.5), st.floats(0.1, 50)), min_size=1, max_size=30),
)
def test_bytes_delivered_are_the_integral_of_the_rate(changes) -> None:
    """A backlogged link whose rate changes again and again, as a channel of many blocks changes it."""
    schedule = Schedule({A: timing()})
    for _ in range(30_000):
        schedule.offer(0.0, A, bytes(100))
    now, rate, integral, delivered = 0.0, MBIT, 0.0, 0
    for lasts, mbit in changes:
        schedule.change(now, {A: timing(mbit * MBIT)})
        now, rate = now + lasts, mbit * MBIT
        integral = min(integral + lasts * rate, 3e6)
        delivered += 100 * len(schedule.due(now))
        assert delivered == pytest.approx(integral, abs=101)
