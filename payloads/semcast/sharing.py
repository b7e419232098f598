"""How a frame's slots are shared out between the users: in proportion to their shares, or jointly with the power. Pure.

The joint way is the best *linear* code: user u has the share of the power that the fusion ratio says, and slots are
given one symbol at a time to whom they help most, by the closed form of what a linear code leaves of an image. For
components of variances v_1 >= v_2 >= ..., m of them sent with the power P in noise of variance N per slot, amplitudes
that leave the least mean square error (Lee and Petersen 1976) leave ::

    D(m) = N (sum of sqrt(v_j), j <= m)^2 / (P + m N) + sum of v_j, j > m

as long as each gets some power; from there on more slots are of no use. A user with a bad link is limited by its power
and soon has slots enough, one with a good link is limited by its slots: time division, which gives both alike, wastes
what the one has too much of. Between equal links both ways are the same.
"""

from __future__ import annotations

import torch

from payloads.semcast.channels import noise_variance

__all__ = ["joint_slots", "owned_slots"]


def owned_slots(shares: torch.Tensor, slots: int) -> torch.Tensor:
    """Return how many slots (B, U) of a patch each user has under time division: whole complex symbols, one at least.

    The last user has what the others leave.

    Args:
        shares: (B, U), which sum to 1.
        slots: S, even.
    """
    ends = (shares.cumsum(dim=1) * (slots // 2)).round()
    ends[:, -1] = slots // 2
    counts = torch.diff(ends, dim=1, prepend=torch.zeros_like(ends[:, :1])).clamp_min(1)
    # Where small shares were lifted to one symbol, the largest give it.
    for _ in range(counts.shape[1] - 1):
        surplus = counts.sum(dim=1, keepdim=True) - slots // 2
        most, largest = counts.max(dim=1, keepdim=True)
        counts = counts.scatter_add(1, largest, -torch.minimum(surplus, most - 1))
    return 2 * counts


def joint_slots(
    shares: torch.Tensor, snr_db: torch.Tensor, slots: int, deviation: torch.Tensor
) -> torch.Tensor:
    """Return how many slots (B, U) of a patch each user has where each has its share of the power, one symbol at least.

    They make the sum of the users' log errors, weighted by their shares, small. All is computed in double precision on
    the processor, so that both ends of a link come to the same numbers.

    Args:
        shares: (B, U), each user's share of the power.
        snr_db: (B, U), the SNRs that are believed.
        slots: S, even.
        deviation: (P,), standard deviation of each component, the largest first; P is at least S.
    """
    where = shares.device
    shares, snr_db, deviation = (value.to("cpu", torch.float64) for value in (shares, snr_db, deviation))
    error = _least_errors(shares, snr_db, slots, deviation)[:, :, 1::2].log()
    helped = -torch.diff(error, dim=2) * shares.unsqueeze(2)
    # No symbol helps more than the one before it; and everybody has one.
    helped = helped.cummin(dim=2).values.clamp_min(0)
    first = torch.full_like(helped[:, :, :1], float("inf"))
    # Symbols that help nobody go to user 1. (Sharing them out evenly was tried: one training so lost 0.1 to 0.5 dB at
    # nearly all of the points of its card, far from such links too.)
    helped = torch.cat([first, helped], dim=2).flatten(1)
    order = helped.argsort(dim=1, descending=True, stable=True)[:, : slots // 2]
    taken = torch.zeros_like(helped).scatter(1, order, 1.0)
    return (2 * taken.reshape(*shares.shape, slots // 2).sum(dim=2)).to(where, torch.float32)


def _least_errors(
    shares: torch.Tensor, snr_db: torch.Tensor, slots: int, deviation: torch.Tensor
) -> torch.Tensor:
    """Return (B, U, S): what the best linear code with up to m = 1 to S slots leaves, in square colours per patch."""
    count = torch.arange(1, slots + 1, dtype=torch.float64)
    sent = deviation[:slots].cumsum(dim=0)
    left = deviation.square().sum() - deviation[:slots].square().cumsum(dim=0)
    # Half of a complex symbol's noise and power is in each slot.
    noise = noise_variance(snr_db).unsqueeze(2) / 2
    power = (shares * slots / 2).unsqueeze(2)
    error = noise * sent.square() / (power + count * noise) + left
    powered = deviation[:slots] * (power + count * noise) / sent >= noise
    powered[:, :, 0] = True
    last = powered.long().cumprod(dim=2).sum(dim=2, keepdim=True) - 1
    return error.gather(2, torch.minimum(torch.arange(slots).expand_as(error), last))
