"""Clock offsets from pings."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from payloads.wire.clock import BSClock, Offset, OffsetTrack, PingStamps, estimate_offset

NANOSECONDS = st.integers(0, 10**9)


@given(
    st.integers(-(10**15), 10**15),
    st.lists(st.tuples(NANOSECONDS, NANOSECONDS, NANOSECONDS), min_size=1, max_size=12),
)
def test_the_error_is_at_most_half_the_shortest_round_trip(offset, ways):
    pings = []
    for number, (out, inside, back) in enumerate(ways):
        sent = 10**16 + number * 10**10
        arrived = sent + out
        pings.append(PingStamps(sent, arrived - offset, arrived + inside - offset, arrived + inside + back))
    estimate = estimate_offset(pings)
    assert estimate.rtt_ns == min(out + back for out, _, back in ways)
    assert abs(estimate.offset_ns - offset) <= estimate.rtt_ns / 2 + 2


def test_a_drift_is_followed_from_before_to_after():
    track = OffsetTrack(Offset(0, 1000.0, 10), Offset(10**9, 3000.0, 10))
    assert track.to_bs_ns(-1000) == 0
    assert abs(track.to_bs_ns(500_000_000) - 500_002_000) <= 2
    assert track.to_bs_ns(2 * 10**9) == 2 * 10**9 + 3000
    still = OffsetTrack(Offset(5, 7.0, 1), Offset(5, 7.0, 1))
    assert still.stamps([1, 2]) == (8, 9)


def test_the_base_stations_clock_is_unix_time():
    clock = BSClock()
    before_s, now_s, after_s = time.time(), clock.now_s(), time.time()
    assert before_s - 1 < now_s < after_s + 1
    now = time.monotonic_ns()
    assert abs(clock.mono_s(clock.unix_s(now)) - now / 1e9) < 1e-3
