"""Rivals played on paper: what their users see."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from testbed.semcast.capacity import rates
from testbed.semcast.codecs import curve_of
from testbed.semcast.measures import psnr_db
from testbed.semcast.paper import Gain, OnPaper, play_on_paper
from tests.semcast.pictures import picture

SIDE, SYMBOLS = 64, 2048
IMAGES = np.stack([picture(SIDE, seed) for seed in (1, 2)])
STEADY = (Gain(1, 1), Gain(1, 1))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors are slower on several threads, above all where several tests run at once."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Scheme:
    kind: str = "digital"
    codec: str | None = "webp"
    sharing: str | None = "time_division"
    downscale: bool = True
    outage: float = 0.05
    rate_for_snr_db: Sequence[float] | None = None
    block_errors: float = 0.01


def play(
    scheme: Scheme,
    snr_db: Sequence[float] = (10, 1),
    share: float = 0.5,
    *,
    gains: Sequence[Gain] = STEADY,
    seed: int = 0,
    symbols: int = SYMBOLS,
    **channel: object,
) -> tuple[OnPaper, ...]:
    generator = torch.Generator().manual_seed(seed)
    return play_on_paper(
        scheme,
        IMAGES,
        snr_db,
        (share, 1 - share),
        symbols,
        gains,
        generator,
        **channel,  # type: ignore[arg-type]
    )


def quality(found: Sequence[OnPaper]) -> list[float | None]:
    return [None if one.pixels is None else psnr_db(IMAGES[u], one.pixels) for u, one in enumerate(found)]


@pytest.mark.parametrize("sharing", ["time_division", "superposition"])
def test_at_capacity_everybody_has_the_best_file_of_its_rate(sharing: str) -> None:
    for share in (0.2, 0.4):
        found = play(Scheme(sharing=sharing), share=share)
        told = rates(sharing, (10, 1), (share, 1 - share))
        for user, one in enumerate(found):
            best = curve_of("webp", IMAGES[user]).best(SYMBOLS * told[user])
            assert best is not None
            assert one.offered_bits == int(SYMBOLS * told[user])
            assert one.bits == best.bits <= one.offered_bits
            assert quality(found)[user] == best.psnr_db


def test_superposition_gives_both_users_more_than_time_division_somewhere() -> None:
    in_turn = quality(play(Scheme(), (15, 1), 0.5))
    at_once = quality(play(Scheme(sharing="superposition"), (15, 1), 0.2))
    assert at_once[0] > in_turn[0]  # type: ignore[operator]
    assert at_once[1] > in_turn[1]  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["digital", "practical"])
def test_what_is_too_small_for_any_file_is_not_received(kind: str) -> None:
    found = play(Scheme(kind), (10, -15), share=0.9, symbols=300)
    assert found[1].pixels is None
    assert found[1].bits == 0


@pytest.mark.parametrize("kind", ["digital", "practical"])
@pytest.mark.parametrize("sharing", ["time_division", "superposition"])
def test_a_fixed_rate_falls_off_a_cliff(kind: str, sharing: str) -> None:
    scheme = Scheme(kind, sharing=sharing, rate_for_snr_db=(10, 1))
    seen = {gap: quality(play(scheme, (10 + gap, 1 + gap), 0.4)) for gap in (-7, 0.5, 8)}
    assert seen[-7] == [None, None]
    assert None not in seen[0.5]
    assert seen[8] == seen[0.5]


@pytest.mark.parametrize("sharing", ["time_division", "superposition"])
def test_at_capacity_a_file_is_lost_where_its_own_rate_is_too_high(sharing: str) -> None:
    # The rate is that of the file, which is a little less than there was room for.
    scheme, share = Scheme(sharing=sharing, rate_for_snr_db=(10, 1)), 0.4
    file_bits = play(scheme, share=share)[0].bits
    symbols, power = (SYMBOLS * share, 1.0) if sharing == "time_division" else (SYMBOLS, share)
    limit_db = 10 * math.log10((2 ** (file_bits / symbols) - 1) / power)
    assert limit_db < 10
    for off_db, received in ((-0.01, False), (0.01, True)):
        found = play(scheme, (limit_db + off_db, 1), share)
        assert (found[0].pixels is not None) == received


@pytest.mark.parametrize("sharing", ["time_division", "superposition"])
def test_the_practical_scheme_stays_below_capacity_and_not_far(sharing: str) -> None:
    ideal = play(Scheme(sharing=sharing), share=0.3)
    real = play(Scheme("practical", sharing=sharing), share=0.3)
    for best, one in zip(ideal, real, strict=True):
        assert 0.5 * best.offered_bits < one.offered_bits < best.offered_bits
    for best_db, one_db in zip(quality(ideal), quality(real), strict=True):
        assert best_db - 4 < one_db < best_db  # type: ignore[operator]


def test_the_stronger_user_cancels_what_the_weaker_one_is_sent() -> None:
    # Without cancelling, its own layer would stand below the other one's power.
    scheme = Scheme("practical", sharing="superposition")
    for seed in range(3):
        assert None not in quality(play(scheme, (15, 3), 0.1, seed=seed))


def test_roles_follow_the_snr_and_not_the_number() -> None:
    scheme = Scheme(sharing="superposition")
    swapped = play_on_paper(
        scheme, IMAGES[::-1], (1, 10), (0.7, 0.3), SYMBOLS, STEADY, torch.Generator().manual_seed(0)
    )
    straight = play(scheme, (10, 1), 0.3)
    assert [one.bits for one in swapped] == [one.bits for one in straight][::-1]


@pytest.mark.parametrize("kind", ["digital", "practical"])
def test_a_known_fade_costs_rate_and_no_outage(kind: str) -> None:
    faded = (Gain(0.5j, 0.5j), Gain(1, 1))
    found = play(Scheme(kind), (16.0206, 1), gains=faded, fading="rayleigh")
    steady = play(Scheme(kind), (10, 1))
    assert [one.bits for one in found] == [one.bits for one in steady]
    assert None not in quality(found)


@pytest.mark.parametrize("kind", ["digital", "practical"])
def test_a_gain_taken_for_much_better_than_it_is_loses_the_image(kind: str) -> None:
    found = play(Scheme(kind), gains=(Gain(0.3, 1), Gain(1, 1)), fading="rayleigh", csi_error=0.01)
    assert quality(found)[0] is None
    assert quality(found)[1] is not None


@pytest.mark.parametrize("kind", ["digital", "practical"])
def test_an_estimation_error_is_met_with_caution(kind: str) -> None:
    sure = play(Scheme(kind), fading="rayleigh")
    bits = [
        play(Scheme(kind, outage=outage), fading="rayleigh", csi_error=0.05)[0].offered_bits
        for outage in (0.01, 0.2)
    ]
    assert bits[0] < bits[1] < sure[0].offered_bits


def test_a_modem_that_equalises_by_an_estimate_counts_on_what_is_left_then() -> None:
    # At a high SNR the error of the estimate is worse than the noise, and an ideal receiver would not mind.
    ideal, real = (
        play(Scheme(kind), (30, 1), fading="rayleigh", csi_error=0.05)[0].offered_bits
        for kind in ("digital", "practical")
    )
    assert real < 0.5 * ideal
    near = (Gain(0.8, 1), Gain(1, 1))  # the gain is off by less than nineteen of twenty are
    assert quality(play(Scheme("practical"), (30, 1), gains=near, fading="rayleigh", csi_error=0.05))[0]


def test_the_same_seed_is_the_same_frame() -> None:
    scheme = Scheme("practical", rate_for_snr_db=(9.6, 0.4), block_errors=0.5)
    first, again = (quality(play(scheme, seed=4)) for _ in range(2))
    assert first == again


def test_three_users_share_a_frame() -> None:
    images = np.stack([*IMAGES, picture(SIDE, 3)])
    for kind, sharing in (
        ("digital", "time_division"),
        ("digital", "superposition"),
        ("practical", "superposition"),
    ):
        found = play_on_paper(
            Scheme(kind, sharing=sharing),
            images,
            (18, 10, 4),
            (0.1, 0.2, 0.7),
            3 * SYMBOLS,
            (Gain(1, 1),) * 3,
            torch.Generator().manual_seed(0),
        )
        assert all(one.pixels is not None for one in found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "learned"}, "digital or practical"),
        ({"codec": None}, "has a codec and a sharing"),
        ({"sharing": None}, "has a codec and a sharing"),
        ({"codec": "gif"}, "jpeg2000, webp, avif"),
        ({"sharing": "frequency"}, "time_division, superposition"),
        ({"kind": "practical", "sharing": "frequency"}, "time_division, superposition"),
        ({"rate_for_snr_db": (1.0,)}, "one SNR a user"),
    ],
)
def test_a_scheme_that_is_none_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        play(replace(Scheme(), **change))  # type: ignore[arg-type]
