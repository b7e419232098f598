"""The rate regions of the broadcast channel against closed forms."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from testbed.semcast.capacity import (
    SHARINGS,
    capacity,
    decodes,
    rates,
    split_symbols,
    strongest_first,
    superposition,
    time_division,
)

snrs = st.floats(-20, 30)
shares = st.floats(0, 1)


@st.composite
def mixtures(draw: st.DrawFn, users: int) -> list[float]:
    parts = [draw(st.floats(0.01, 1)) for _ in range(users)]
    return [part / sum(parts) for part in parts]


def test_one_user_has_shannons_capacity() -> None:
    assert capacity(0) == pytest.approx(1)
    assert capacity(10 * math.log10(3)) == pytest.approx(2)
    assert capacity(-math.inf) == 0


@pytest.mark.parametrize("sharing", SHARINGS)
@given(strong=snrs, weak=snrs)
def test_the_corners_are_the_capacities_of_one_user(sharing: str, strong: float, weak: float) -> None:
    assert rates(sharing, (strong, weak), (1, 0)) == pytest.approx((capacity(strong), 0))
    assert rates(sharing, (strong, weak), (0, 1)) == pytest.approx((0, capacity(weak)))


def test_superposition_is_the_closed_form_whoever_is_the_stronger() -> None:
    strong, weak = 10**1.0, 10**0.1
    expected = (math.log2(1 + 0.3 * strong), math.log2(1 + 0.7 / (0.3 + 1 / weak)))
    assert superposition((10, 1), (0.3, 0.7)) == pytest.approx(expected)
    assert superposition((1, 10), (0.7, 0.3)) == pytest.approx(expected[::-1])


@given(snr=snrs, share=shares)
def test_equal_users_gain_nothing_by_superposition(snr: float, share: float) -> None:
    assert sum(superposition((snr, snr), (share, 1 - share))) == pytest.approx(capacity(snr))
    assert sum(time_division((snr, snr), (share, 1 - share))) == pytest.approx(capacity(snr))


@given(first=snrs, second=snrs, share=shares)
def test_superposition_contains_time_division(first: float, second: float, share: float) -> None:
    strong, weak = max(first, second), min(first, second)
    in_turn = time_division((strong, weak), (share, 1 - share))
    # The power that gives the stronger user what time division gives it.
    power = min(1.0, (2 ** in_turn[0] - 1) / 10 ** (strong / 10))
    assert superposition((strong, weak), (power, 1 - power))[1] >= in_turn[1] - 1e-9


@pytest.mark.parametrize("sharing", SHARINGS)
@given(snr_db=st.lists(snrs, min_size=3, max_size=3), mixture=mixtures(3))
def test_three_users_are_told_less_than_the_strongest_alone(
    sharing: str, snr_db: list[float], mixture: list[float]
) -> None:
    found = rates(sharing, snr_db, mixture)
    assert all(rate >= 0 for rate in found)
    assert sum(found) <= capacity(max(snr_db)) + 1e-9


@pytest.mark.parametrize("sharing", SHARINGS)
@given(snr_db=st.lists(snrs, min_size=2, max_size=4), mixture=st.data())
def test_everybody_decodes_what_was_meant_for_the_channel_and_nothing_more(
    sharing: str, snr_db: list[float], mixture: st.DataObject
) -> None:
    parts = mixture.draw(mixtures(len(snr_db)))
    sent, order = rates(sharing, snr_db, parts), strongest_first(snr_db)
    for user, snr in enumerate(snr_db):
        assume(sent[user] > 1e-5)
        assert decodes(sharing, sent, parts, order, user, snr)
        assert decodes(sharing, sent, parts, order, user, snr + 3)
        assert not decodes(sharing, sent, parts, order, user, snr - 0.5)


def test_a_user_without_a_share_decodes_nothing() -> None:
    assert not decodes("superposition", (2.0, 0.0), (1.0, 0.0), (0, 1), 1, 20)


@given(symbols=st.integers(0, 10_000), users=st.integers(1, 5), data=st.data())
def test_symbols_are_all_given_out(symbols: int, users: int, data: st.DataObject) -> None:
    parts = data.draw(mixtures(users))
    counts = split_symbols(symbols, parts)
    assert sum(counts) == symbols
    assert all(abs(count - part * symbols) <= 1 for count, part in zip(counts, parts, strict=True))


@pytest.mark.parametrize(
    ("snr_db", "parts", "said"),
    [
        ((10, 1), (0.5,), "do not go together"),
        ((10, 1), (0.5, 0.6), "sum to 1"),
        ((10, 1), (1.5, -0.5), "sum to 1"),
        ((10, 1), (math.nan, 0.5), "sum to 1"),
    ],
)
def test_shares_that_are_none_are_refused(
    snr_db: tuple[float, ...], parts: tuple[float, ...], said: str
) -> None:
    for sharing in SHARINGS:
        with pytest.raises(ValueError, match=said):
            rates(sharing, snr_db, parts)


def test_an_unknown_sharing_is_refused() -> None:
    with pytest.raises(ValueError, match="time_division, superposition"):
        rates("frequency", (10, 1), (0.5, 0.5))
