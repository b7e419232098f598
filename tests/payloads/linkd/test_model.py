from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.linkd.model import Framing, bucket_bytes, expected_ms, frame_ms, judge, limit_bytes, refill_s

rates = st.floats(0.01, 10_000)
sizes = st.integers(1, 4 << 20)
mtus = st.integers(576, 9000)


def test_the_known_example() -> None:
    """4 KiB are frames of 1514, 1514 and 1266 bytes; the last two wait for 20 Mbit/s."""
    assert Framing().wire_bytes(4096) == 1514 + 1514 + 1266
    assert expected_ms(4096, 20) == pytest.approx((1514 + 1266) * 8 / 20e3)
    assert expected_ms(1448, 20) == 0
    assert expected_ms(1449, 20) == pytest.approx(67 * 8 / 20e3)


@given(sizes, rates, mtus)
def test_a_message_takes_its_frames_one_after_the_other(size: int, rate: float, mtu: int) -> None:
    framing = Framing.of_mtu(mtu)
    full, rest = divmod(size, framing.payload_bytes)
    frames = [framing.frame_bytes] * full + ([rest + framing.header_bytes] if rest else [])
    assert framing.frames(size) == len(frames)
    assert expected_ms(size, rate, framing) == pytest.approx(sum(frames[1:]) * 8 / rate / 1e3)


@given(sizes, sizes, rates, rates)
def test_more_bytes_take_longer_and_a_higher_rate_does_not(a: int, b: int, slow: float, fast: float) -> None:
    small, large = sorted((a, b))
    low, high = sorted((slow, fast))
    assert expected_ms(small, low) <= expected_ms(large, low)
    assert expected_ms(large, high) <= expected_ms(large, low)


@given(sizes, rates)
def test_the_payload_never_goes_faster_than_the_rate_but_for_one_frame(size: int, rate: float) -> None:
    assert expected_ms(size, rate) + frame_ms(rate) >= size * 8 / rate / 1e3


@given(rates, mtus, st.floats(0, 500))
def test_a_bucket_holds_a_frame_and_little_more(rate: float, mtu: int, slack_us: float) -> None:
    frame, bucket = Framing.of_mtu(mtu).frame_bytes, bucket_bytes(rate, mtu, slack_us)
    assert frame < bucket <= frame + rate * slack_us / 8 + 1
    assert refill_s(rate, mtu, slack_us) * rate * 1e6 / 8 == pytest.approx(bucket)
    assert limit_bytes(rate, mtu, slack_us) > (4 << 20)


@given(rates, sizes, st.floats(0.01, 0.5))
def test_the_tolerance_is_a_share_or_one_frame(rate: float, size: int, tolerance: float) -> None:
    expected = expected_ms(size, rate)
    allowed = max(tolerance * expected, frame_ms(rate))
    for side in (-1, 1):
        assert judge(expected, expected + side * allowed * 0.999, rate, tolerance)
        assert not judge(expected, expected + side * allowed * 1.001, rate, tolerance)
