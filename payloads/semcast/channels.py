"""The degraded broadcast channel: one transmitted block, and what each user receives of it.

Complex symbols are pairs of real numbers in the last dimension, (B, n, 2), so that everything here also runs where
complex numbers are missing. The transmitter keeps to a mean power of 1 for each block; a user's noise has the variance
``10 ** (-SNR / 10)``, half of it in each real dimension.

Under Rayleigh block fading a user receives ``y = h x + n`` with one complex gain ``h`` of mean power 1 for a block, so
that the SNR is the mean one; without fading ``h`` is 1. The receiver believes the gain to be ``h + e``, with an
estimation error ``e`` whose variance is a parameter, and divides by it (zero forcing).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = [
    "FADINGS",
    "Gains",
    "Received",
    "draw_gains",
    "effective_snr_db",
    "gain_db",
    "noise_variance",
    "receive",
]

FADINGS = ("none", "rayleigh")
#: Gains below are taken for this: nothing is heard there, and a division has to stay finite.
_WEAKEST_POWER = 1e-4


class Gains(NamedTuple):
    """What blocks are multiplied with on their way to a user.

    Attributes:
        true: (B, 2), the complex gains.
        believed: (B, 2), the receiver's estimates of them.
    """

    true: torch.Tensor
    believed: torch.Tensor


class Received(NamedTuple):
    """What a user's receiver has before it decodes.

    Attributes:
        symbols: (B, n, 2), the equalised symbols.
        measured_snr_db: (B,), the power that arrived over that of the noise that was drawn, before equalising.
    """

    symbols: torch.Tensor
    measured_snr_db: torch.Tensor


def noise_variance(snr_db: torch.Tensor) -> torch.Tensor:
    """Return the variance of the complex noise at an SNR in dB, where the mean power is 1."""
    return torch.pow(10.0, -snr_db / 10)


def gain_db(gains: torch.Tensor) -> torch.Tensor:
    """Return the power (B,) of complex gains (B, 2), in dB."""
    return 10 * torch.log10(gains.square().sum(dim=1).clamp_min(_WEAKEST_POWER))


def effective_snr_db(snr_db: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
    """Return the SNR (B,) of blocks with complex gains (B, 2), where ``snr_db`` (B,) is the mean one."""
    return snr_db + gain_db(gains)


def draw_gains(count: int, fading: str, csi_error: float, generator: torch.Generator) -> Gains:
    """Return the gains of so many blocks, and what a receiver believes of them.

    Args:
        count: B.
        fading: ``rayleigh``; or ``none``, where every gain is 1.
        csi_error: The variance of the complex Gaussian error of the estimate; 0 for a gain that is known.
        generator: Where gains and then errors come from. Both are always drawn, so that the same seed has the same
            gains whatever the error.

    Raises:
        ValueError: The fading is unknown, or the variance negative.
    """
    if fading not in FADINGS:
        raise ValueError(f"one of {', '.join(FADINGS)} was expected, not {fading!r}")
    if not csi_error >= 0:
        raise ValueError(f"the variance of an error cannot be {csi_error!r}")
    faded = torch.randn(count, 2, generator=generator) / 2**0.5
    errors = torch.randn(count, 2, generator=generator) * (csi_error / 2) ** 0.5
    true = faded if fading == "rayleigh" else torch.tensor([1.0, 0.0]).repeat(count, 1)
    return Gains(true, true + errors)


def receive(
    symbols: torch.Tensor, snr_db: torch.Tensor, gains: Gains, generator: torch.Generator
) -> Received:
    """Return what a user receives of blocks that were sent with mean power 1.

    Args:
        symbols: (B, n, 2), what was sent.
        snr_db: (B,), the user's mean SNR.
        gains: The blocks' gains.
        generator: Where the noise comes from.
    """
    faded = _times(symbols, gains.true)
    deviation = (noise_variance(snr_db) / 2).sqrt().view(-1, 1, 1)
    noise = deviation * torch.randn(symbols.shape, generator=generator)
    power, inverse = (
        gains.believed.square().sum(dim=1, keepdim=True),
        gains.believed * torch.tensor([1.0, -1.0]),
    )
    equalised = _times(faded + noise, inverse / power.clamp_min(_WEAKEST_POWER))
    measured = 10 * torch.log10(faded.square().sum(dim=(1, 2)) / noise.square().sum(dim=(1, 2)))
    return Received(equalised, measured)


def _times(symbols: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Return complex symbols (B, n, 2) times one complex factor (B, 2) for each block."""
    real, imaginary = factors[:, :1], factors[:, 1:]
    first, second = symbols[..., 0], symbols[..., 1]
    return torch.stack([real * first - imaginary * second, real * second + imaginary * first], dim=-1)
