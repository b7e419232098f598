"""What a network is made of, what a frame is sent under, and the frame itself."""

from __future__ import annotations

from typing import Any, Dict, Mapping, NamedTuple

import torch

__all__ = ["BACKBONES", "SCHEMES", "Conditions", "Frame", "NetworkSettings", "from_config"]

BACKBONES = ("convolution", "window")
SCHEMES = ("fusion", "joint_division", "time_division", "superposition")


class NetworkSettings(NamedTuple):
    """The sizes of a network, and how its users share a frame.

    Attributes:
        users: U.
        slots: K, the most real slots for each patch of 192 values: 64 are a bandwidth ratio of 1/6.
        width: Channels of the hidden features.
        blocks: Residual blocks of the decoder; the encoder has one less, the fusion half as many.
        backbone: ``convolution``, or ``window`` for attention in windows of 4 x 4 patches, every second one shifted.
        scheme: ``fusion``; or a rival with the same backbone: ``joint_division``, ``time_division``, ``superposition``.
        sees_csi: Whether the SNRs enter encoder, fusion and decoder; without, only ratio and slots do.
        by_similarity: Whether the fusion is told how alike the users' features are at each patch.
    """

    users: int = 2
    slots: int = 64
    width: int = 96
    blocks: int = 3
    backbone: str = "convolution"
    scheme: str = "fusion"
    sees_csi: bool = True
    by_similarity: bool = True

    @property
    def divides(self) -> bool:
        """Whether each user is alone in its slots."""
        return self.scheme in ("joint_division", "time_division")

    @property
    def shares_jointly(self) -> bool:
        """Whether the shares are of the power, and slots go to whom they help most."""
        return self.scheme in ("fusion", "joint_division")


class Conditions(NamedTuple):
    """What a frame is sent under.

    Attributes:
        snr_db: (B, U), the users' SNRs as they are believed to be; under fading those of the block.
        shares: (B, U), the fusion ratio: each user's part, from 0 to 1. They sum to 1.
        slots: S, the real slots for each patch, even, at most K: what the bandwidth ratio allows.
    """

    snr_db: torch.Tensor
    shares: torch.Tensor
    slots: int


class Frame(NamedTuple):
    """What is sent.

    Attributes:
        symbols: (B, n, 2), the complex symbols, of mean power 1 for each frame; n is S / 2 for each patch.
        scale: (B, U), what each user's components were multiplied with; all receivers are told, 8 bits each.
    """

    symbols: torch.Tensor
    scale: torch.Tensor


def from_config(config: Mapping[str, Any]) -> NetworkSettings:
    """Return the settings that a model's ``config.json`` holds.

    Raises:
        ValueError: A setting is missing, of another type or unknown; the message names it and what was expected.
    """
    values: Dict[str, Any] = {}
    for name, kind in (
        ("users", int), ("slots", int), ("width", int), ("blocks", int),
        ("backbone", str), ("scheme", str), ("sees_csi", bool), ("by_similarity", bool),
    ):  # fmt: skip
        value = config.get(name)
        if type(value) is not kind:
            raise ValueError(f"{name}: {kind.__name__} was expected, not {value!r}")
        values[name] = value
    settings = NetworkSettings(**values)
    for name, least, most in (("users", 2, 16), ("slots", 2, 192), ("width", 8, 4096), ("blocks", 2, 64)):
        if not least <= values[name] <= most:
            raise ValueError(f"{name}: {least} to {most} was expected, not {values[name]!r}")
    if settings.slots % 2:
        raise ValueError(f"slots: an even number was expected, not {settings.slots}")
    if settings.slots < 2 * settings.users:
        raise ValueError(
            f"slots: {settings.users} users need {2 * settings.users} at least, not {settings.slots}"
        )
    if settings.backbone not in BACKBONES:
        raise ValueError(f"backbone: one of {', '.join(BACKBONES)} was expected, not {settings.backbone!r}")
    if settings.scheme not in SCHEMES:
        raise ValueError(f"scheme: one of {', '.join(SCHEMES)} was expected, not {settings.scheme!r}")
    return settings
