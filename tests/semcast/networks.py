"""Small networks of semantic broadcast for the tests, with random weights or as they are at the start."""

from __future__ import annotations

import torch

from payloads.semcast.klt import Klt, fit_klt, to_patches
from payloads.semcast.network import Broadcast
from payloads.semcast.seeds import generator
from payloads.semcast.settings import Conditions, NetworkSettings

__all__ = ["conditions", "network", "scenes", "stirred"]


def scenes(count: int, users: int, side: int, *labels: str) -> torch.Tensor:
    """Return smooth random images (count, users, 3, side, side)."""
    coarse = torch.rand(count * users, 3, 6, 6, generator=generator(5, "scenes", *labels))
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return smooth.unflatten(0, (count, users))


def klt() -> Klt:
    """Return the transform of smooth patches."""
    return fit_klt(to_patches(scenes(64, 1, 48, "klt")[:, 0]).permute(0, 2, 3, 1).reshape(-1, 192))


def network(transform: Klt | None = None, **settings: object) -> Broadcast:
    """Return a small network as it is before any training, the same for the same settings."""
    chosen = NetworkSettings(width=32, blocks=2)._replace(**settings)  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Broadcast(chosen, transform or klt()).eval()


def stirred(**settings: object) -> Broadcast:
    """Return a small network none of whose weights is zero, as after some training."""
    one = network(**settings)
    draw = generator(7, "stirred")
    with torch.no_grad():
        for weight in one.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=draw)
    return one


def conditions(
    count: int, snr_db: tuple[float, ...] = (10, 1), shares: tuple[float, ...] = (0.35, 0.65), slots: int = 64
) -> Conditions:
    """Return the same conditions for so many frames."""
    return Conditions(
        torch.tensor([snr_db]).float().repeat(count, 1), torch.tensor([shares]).repeat(count, 1), slots
    )
