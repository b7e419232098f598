"""Which component of which user travels in which slot, and how slots become complex symbols.

A frame has S real slots for each patch, and every slot may carry a component of every user. User 1's components stand
in order from the front, the last user's from the back, those of users in between from where their share begins: so the
leading components of all, as many as their shares have room for, never meet. That is time division; what is weaker of
one user lies under what is stronger of another. Sizes: B frames, S slots, h x w patches, n = S / 2 h w symbols.
"""

from __future__ import annotations

from typing import Tuple

import torch

__all__ = ["as_slots", "as_symbols", "to_components", "to_slots"]


def to_slots(components: torch.Tensor, user: int, owned: torch.Tensor) -> torch.Tensor:
    """Return a user's components (B, S, ...) in the order of the slots that they travel in.

    Args:
        components: The most important first.
        user: Whose they are, from 0.
        owned: (B, U), how many slots each user's share has room for.
    """
    if user == 0:
        return components
    if user == owned.shape[1] - 1:
        return components.flip(1)
    return _rotated(components, -owned[:, :user].sum(dim=1))


def to_components(slots: torch.Tensor, user: int, owned: torch.Tensor) -> torch.Tensor:
    """Return slots (B, S, ...) in the order of a user's components: the inverse of :func:`to_slots`."""
    if user == 0:
        return slots
    if user == owned.shape[1] - 1:
        return slots.flip(1)
    return _rotated(slots, owned[:, :user].sum(dim=1))


def as_symbols(slots: torch.Tensor) -> torch.Tensor:
    """Return slots (B, S, h, w) as complex symbols (B, n, 2): two neighbouring slots of a patch make one."""
    batch, count, high, wide = slots.shape
    return slots.reshape(batch, count // 2, 2, high * wide).permute(0, 1, 3, 2).reshape(batch, -1, 2)


def as_slots(symbols: torch.Tensor, count: int, grid: Tuple[int, int]) -> torch.Tensor:
    """Return complex symbols (B, n, 2) as slots (B, S, h, w): the inverse of :func:`as_symbols`."""
    high, wide = grid
    cut = symbols.reshape(len(symbols), count // 2, high * wide, 2).permute(0, 1, 3, 2)
    return cut.reshape(len(symbols), count, high, wide)


def _rotated(values: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Return values (B, S, ...) whose place j holds what was at ``start + j``, around the end."""
    count = values.shape[1]
    places = (start.long().view(-1, 1) + torch.arange(count, device=values.device)) % count
    places = places.view(*places.shape, *(1,) * (values.dim() - 2)).expand_as(values)
    return values.gather(1, places)
