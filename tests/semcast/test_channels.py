from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from payloads.semcast.channels import (
    Gains,
    draw_gains,
    effective_snr_db,
    gain_db,
    noise_variance,
    receive,
)
from payloads.semcast.seeds import generator, seed_of


def sent(count: int, symbols: int = 20_000) -> torch.Tensor:
    plain = torch.randn(count, symbols, 2, generator=generator(1, "sent"))
    return plain / plain.square().sum(dim=2).mean(dim=1).sqrt().view(-1, 1, 1)


@pytest.mark.parametrize("snr_db", [-3.0, 1.0, 10.0, 20.0])
def test_the_measured_snr_is_the_asked_one(snr_db: float) -> None:
    symbols = sent(4)
    gains = draw_gains(4, "none", 0.0, generator(1, "gain"))
    got = receive(symbols, torch.full((4,), snr_db), gains, generator(1, "noise"))
    assert torch.all((got.measured_snr_db - snr_db).abs() < 0.1)
    error = (got.symbols - symbols).square().sum(dim=2).mean(dim=1)
    assert torch.all((10 * torch.log10(error) + snr_db).abs() < 0.1)
    # Half of the noise is in each real dimension, and the two are independent.
    noise = got.symbols - symbols
    assert torch.allclose(
        noise.square().mean(dim=1), noise_variance(torch.tensor(snr_db)) / 2 * torch.ones(4, 2), rtol=0.05
    )


def test_a_faded_block_has_the_snr_of_its_gain() -> None:
    symbols = sent(16)
    gains = draw_gains(16, "rayleigh", 0.0, generator(1, "gain"))
    mean_db = torch.full((16,), 12.0)
    got = receive(symbols, mean_db, gains, generator(1, "noise"))
    asked = effective_snr_db(mean_db, gains.true)
    assert torch.all((got.measured_snr_db - asked).abs() < 0.1)
    # Division by a known gain leaves what was sent, and noise of the block's own SNR.
    error = (got.symbols - symbols).square().sum(dim=2).mean(dim=1)
    assert torch.all((-10 * torch.log10(error) - asked).abs() < 0.1)


def test_gains_have_mean_power_one_and_estimates_the_asked_error() -> None:
    gains = draw_gains(40_000, "rayleigh", 0.05, generator(1, "gain"))
    assert gains.true.square().sum(dim=1).mean() == pytest.approx(1, rel=0.02)
    assert (gains.believed - gains.true).square().sum(dim=1).mean() == pytest.approx(0.05, rel=0.02)
    # Of Rayleigh fading: the power is exponentially distributed.
    below = (gains.true.square().sum(dim=1) < 0.1).float().mean()
    assert below == pytest.approx(1 - 2.718281828**-0.1, abs=0.005)


def test_an_error_changes_neither_gain_nor_noise_of_a_seed() -> None:
    known = draw_gains(3, "rayleigh", 0.0, generator(1, "gain"))
    guessed = draw_gains(3, "rayleigh", 0.1, generator(1, "gain"))
    assert torch.equal(known.true, guessed.true)
    assert torch.equal(known.true, known.believed)
    assert not torch.equal(guessed.true, guessed.believed)


def test_without_fading_the_gain_is_one() -> None:
    gains = draw_gains(2, "none", 0.0, generator(1, "gain"))
    assert gains.true.tolist() == [[1.0, 0.0]] * 2
    assert gain_db(gains.true).tolist() == [0.0, 0.0]


def test_a_wrong_estimate_turns_and_scales_what_was_sent() -> None:
    symbols = sent(1, 50)
    turned = Gains(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.0]]))
    got = receive(symbols, torch.tensor([200.0]), turned, generator(1, "noise")).symbols
    expected = 2 * torch.stack([-symbols[..., 1], symbols[..., 0]], dim=-1)
    assert torch.allclose(got, expected, atol=1e-5)


def test_a_gain_of_nothing_stays_finite() -> None:
    nothing = Gains(torch.zeros(1, 2), torch.zeros(1, 2))
    got = receive(sent(1, 50), torch.tensor([10.0]), nothing, generator(1, "noise"))
    assert torch.isfinite(got.symbols).all()
    assert effective_snr_db(torch.tensor([10.0]), nothing.true).tolist() == [-30.0]


@pytest.mark.parametrize(
    ("fading", "error", "expected"),
    [("rice", 0.0, "none, rayleigh"), ("rayleigh", -0.1, "-0.1"), ("none", float("nan"), "nan")],
)
def test_what_is_no_channel_is_refused(fading: str, error: float, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        draw_gains(1, fading, error, generator(1))


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    first=st.lists(st.one_of(st.integers(0, 99), st.text(max_size=4)), max_size=4),
    second=st.lists(st.one_of(st.integers(0, 99), st.text(max_size=4)), max_size=4),
)
def test_other_labels_other_numbers(seed: int, first: list[int | str], second: list[int | str]) -> None:
    assert (seed_of(seed, *first) == seed_of(seed, *second)) == (first == second)


def test_seeds_are_the_same_on_every_machine() -> None:
    # Records hold what these numbers made: they must never change.
    assert seed_of(1, "10-1", 0, 3, 1, "noise") == 1004569151005697690
    assert torch.randn(2, generator=generator(1, "10-1", 0, 3, 1, "noise")).tolist() == pytest.approx(
        [-0.630566, 1.131794], abs=1e-5
    )
