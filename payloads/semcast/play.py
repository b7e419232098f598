"""One frame from images to images: the transmitter's half, a receiver's half, and both in a row.

The rack calls the halves on different machines, the simulation calls them in one process; noise and gains follow from
the same labels, so that both give the same pixels.
"""

from __future__ import annotations

import hashlib
from typing import List, NamedTuple, Sequence, Tuple, Union

import torch

from payloads.semcast.air import Sent, at_unit_power, from_wire, to_wire
from payloads.semcast.channels import Gains, draw_gains, effective_snr_db, gain_db, receive
from payloads.semcast.klt import PATCH
from payloads.semcast.network import Broadcast
from payloads.semcast.seeds import generator
from payloads.semcast.settings import Conditions

__all__ = [
    "Heard", "Played", "PlayedUser", "conditions_of", "digest", "gains_of", "hear", "pixel_bytes",
    "play_frame", "transmit",
]  # fmt: skip

Labels = Sequence[Union[str, int]]


class Heard(NamedTuple):
    """What a user has of a frame.

    Attributes:
        pixels: (H, W, 3), uint8.
        gain_db: The power of the block's gain.
        believed_db: The power of what the receiver takes for it.
        measured_snr_db: The power that arrived over that of the noise.
    """

    pixels: torch.Tensor
    gain_db: float
    believed_db: float
    measured_snr_db: float


class PlayedUser(NamedTuple):
    """What a user has of a frame that was played in one process.

    Attributes:
        pixels: (H, W, 3), uint8.
        digest: Of the pixels.
        gain_db: The power of the block's gain.
        believed_db: The power of what the receiver takes for it.
        measured_snr_db: The power that arrived over that of the noise.
        noise_seed: What the noise follows from, for people.
    """

    pixels: torch.Tensor
    digest: str
    gain_db: float
    believed_db: float
    measured_snr_db: float
    noise_seed: str


class Played(NamedTuple):
    """A frame that was played in one process.

    Attributes:
        symbols: n, the complex symbols.
        side_bits: What the receivers had to be told beside them.
        users: What each user has.
    """

    symbols: int
    side_bits: int
    users: Tuple[PlayedUser, ...]


def gains_of(seed: int, labels: Labels, users: int, fading: str, csi_error: float) -> List[Gains]:
    """Return every user's gain of one block.

    Args:
        seed: The campaign's.
        labels: What the channel follows from beside the seed and the user: repeat and pair.
        users: U.
        fading: ``none`` or ``rayleigh``.
        csi_error: The variance of the error of a receiver's estimate.
    """
    return [
        draw_gains(1, fading, csi_error, generator(seed, *labels, user, "gain"))
        for user in range(1, users + 1)
    ]


def conditions_of(
    snr_db: Sequence[float], shares: Sequence[float], slots: int, gains: Sequence[Gains]
) -> Conditions:
    """Return what both ends believe of one frame: the users' SNRs with the estimated gains, and the ratio."""
    believed = [
        effective_snr_db(torch.tensor([float(mean)]), gain.believed) for mean, gain in zip(snr_db, gains)
    ]
    return Conditions(torch.stack(believed, dim=1), torch.tensor([[float(share) for share in shares]]), slots)


@torch.no_grad()
def transmit(network: Broadcast, images: torch.Tensor, conditions: Conditions) -> Sent:
    """Return the frame that the transmitter sends.

    Args:
        network: The model.
        images: (U, H, W, 3), uint8.
        conditions: What it believes.

    Raises:
        ValueError: The images are of another shape or type than the model needs.
    """
    users = network.settings.users
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[0] != users or images.shape[3] != 3:
        raise ValueError(
            f"{users} images of 8 bits, (U, H, W, 3), were expected, not {tuple(images.shape)} {images.dtype}"
        )
    if images.shape[1] % PATCH or images.shape[2] % PATCH:
        raise ValueError(
            f"sides that are multiples of {PATCH} were expected, not {images.shape[1]} x {images.shape[2]}"
        )
    where = network.mean.device
    colours = images.to(where).permute(0, 3, 1, 2).float() / 255
    return to_wire(network.encode(colours.unsqueeze(0), _moved(conditions, where)))


@torch.no_grad()
def hear(
    network: Broadcast,
    sent: Sent,
    user: int,
    conditions: Conditions,
    grid: Tuple[int, int],
    snr_db: float,
    gains: Gains,
    noise: torch.Generator,
) -> Heard:
    """Return what a user makes of a frame, with its own noise.

    Args:
        network: The model.
        sent: The frame as it travelled.
        user: Which user, from 0.
        conditions: What the frame was sent under.
        grid: h and w, the patches of the image.
        snr_db: The user's mean SNR.
        gains: The user's gain of this block.
        noise: Where the noise comes from.
    """
    frame = from_wire(sent)
    received = receive(at_unit_power(frame.symbols), torch.tensor([float(snr_db)]), gains, noise)
    # The channel is drawn on the processor, whatever decodes: the same seed is the same noise everywhere.
    where = network.mean.device
    symbols, scale = received.symbols.to(where), frame.scale.to(where)
    image = network.decode(symbols, scale, user, _moved(conditions, where), grid)[0]
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu()
    return Heard(
        pixels, float(gain_db(gains.true)), float(gain_db(gains.believed)), float(received.measured_snr_db)
    )


def play_frame(
    network: Broadcast,
    images: torch.Tensor,
    snr_db: Sequence[float],
    shares: Sequence[float],
    slots: int,
    *,
    fading: str = "none",
    csi_error: float = 0.0,
    seed: int,
    labels: Labels,
) -> Played:
    """Send one frame and decode it for every user.

    Args:
        network: The model.
        images: (U, H, W, 3), uint8.
        snr_db: The users' mean SNRs, user 1 first.
        shares: Their shares, which sum to 1.
        slots: S, real slots for each patch.
        fading: ``none`` or ``rayleigh``.
        csi_error: The variance of the error of a receiver's estimate of its gain.
        seed: The campaign's.
        labels: What the channel follows from beside the seed and the user: repeat and pair.
    """
    gains = gains_of(seed, labels, network.settings.users, fading, csi_error)
    conditions = conditions_of(snr_db, shares, slots, gains)
    sent = transmit(network, images, conditions)
    grid = (images.shape[1] // PATCH, images.shape[2] // PATCH)
    users = []
    for user, gain in enumerate(gains):
        noise = generator(seed, *labels, user + 1, "noise")
        heard = hear(network, sent, user, conditions, grid, snr_db[user], gain, noise)
        named = "/".join(str(part) for part in (seed, *labels, user + 1))
        users.append(PlayedUser(heard.pixels, digest(heard.pixels), *heard[1:], noise_seed=named))
    return Played(sent.symbols, sent.side_bits, tuple(users))


def _moved(conditions: Conditions, where: torch.device) -> Conditions:
    return conditions._replace(snr_db=conditions.snr_db.to(where), shares=conditions.shares.to(where))


def pixel_bytes(pixels: torch.Tensor) -> bytes:
    """Return an image's bytes (H, W, 3) in order."""
    data = bytearray(pixels.numel())
    torch.frombuffer(data, dtype=torch.uint8).copy_(pixels.flatten())  # boards need not have NumPy
    return bytes(data)


def digest(pixels: torch.Tensor) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of an image's bytes (H, W, 3)."""
    return hashlib.sha256(pixel_bytes(pixels)).hexdigest()[:16]
