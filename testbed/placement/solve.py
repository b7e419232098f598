"""The placement of a model's experts on unequal devices: pure arithmetic on arrays.

In each layer the devices compute side by side, so that what counts is the most loaded one. The *load* of a device is
the share of the router's choices that it serves, and it weighs ``load / speed``. The least of the largest weight is the
problem of scheduling jobs on uniform machines, with a cap on the number of jobs of each: experts are dealt out from the
most wanted on, each to where it weighs least, and then moved and swapped as long as that helps.

Sizes: L layers, E experts in a layer, D devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Demand", "NoRoomError", "serving_shares", "solve"]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Counts = NDArray[np.int64]

#: What gains less than this share of the largest weight is no gain.
_WORTH = 1e-9


class NoRoomError(Exception):
    """The experts do not fit."""


@dataclass(frozen=True, eq=False)
class Demand:
    """What is to be placed.

    Attributes:
        frequency: (L, E), the share of a layer's choices that each expert gets; rows sum to 1.
        copies: How many devices hold each expert, at least 1.
        hot_copies: How many further copies there are in each layer at most, of what loads the most loaded device.
    """

    frequency: Floats
    copies: int = 1
    hot_copies: int = 0


def solve(demand: Demand, room: Sequence[int], speeds: Sequence[float]) -> list[Flags]:
    """Place every expert.

    The first copies are placed in all layers before any second one. A device that has not the memory for its share
    in every layer gets an even share of what fits, and the others take over the rest. Where memory is so tight that
    this leaves an expert without a place, only memory decides: what fits at all is placed.

    The same input always gives the same placement; experts that are wanted alike lie on the devices in the order of
    their numbers.

    Args:
        demand: What is to be placed.
        room: (D,), how many experts fit on each device, over all layers.
        speeds: (D,), relative speeds, above 0.

    Returns:
        For each layer (E, D), which devices hold each expert.

    Raises:
        NoRoomError: They do not fit, however they are placed.
    """
    speed = np.asarray(speeds, dtype=float) / max(speeds)
    layers, experts = demand.frequency.shape
    every = layers * experts
    left = np.asarray(room, dtype=np.int64).copy()
    # A device holds an expert once, so that more room than there are experts is of no use to it.
    if np.minimum(left, every).sum() < every * demand.copies:
        raise NoRoomError
    placed = _by_load(demand, speed, left)
    if placed is None:
        placed = _by_room(demand, left)
    left -= np.sum(placed, axis=(0, 1))
    for layer, holds in enumerate(placed):
        before = holds.sum(axis=0)
        _copy_hot(demand.frequency[layer], speed, left // (layers - layer), holds, demand.hot_copies)
        left -= holds.sum(axis=0) - before
    return placed


def _by_load(demand: Demand, speed: Floats, room: Counts) -> list[Flags] | None:
    """Return all copies but the hot ones, placed where they weigh least; None where one found no place."""
    layers, experts = demand.frequency.shape
    left = room.copy()
    placed = [np.zeros((experts, len(left)), dtype=bool) for _ in range(layers)]
    for _ in range(demand.copies):
        for layer, holds in enumerate(placed):
            added = _deal(demand.frequency[layer], speed, _caps(left, layers - layer, experts), holds)
            if added is None:
                return None
            holds |= added
            left -= added.sum(axis=0)
    return placed


def _by_room(demand: Demand, room: Counts) -> list[Flags]:
    """Return all copies but the hot ones, each expert's where most room is left: that places all that fits."""
    layers, experts = demand.frequency.shape
    left = room.copy()
    placed = [np.zeros((experts, len(left)), dtype=bool) for _ in range(layers)]
    for holds in placed:
        for expert in range(experts):
            chosen = np.argsort(-left, kind="stable")[: demand.copies]
            holds[expert, chosen] = True
            left[chosen] -= 1
    return placed


def serving_shares(frequency: Floats, holds: Flags, speed: Floats) -> Floats:
    """Return which part (E, D) of an expert's choices each of its holders serves, so that the largest weight is least.

    A linear programme: the parts of each expert sum to 1, and no device's load is above ``speed`` times the weight.

    Args:
        frequency: (E,), the share of the layer's choices that each expert gets.
        holds: (E, D), which devices hold it.
        speed: (D,), relative speeds.
    """
    parts = holds.astype(float)
    if (holds.sum(axis=1) == 1).all():
        return parts
    from scipy.optimize import linprog
    from scipy.sparse import coo_array

    expert, device = np.nonzero(holds)
    pairs, (experts, devices) = np.arange(len(expert)), holds.shape
    whole = coo_array((np.ones(len(pairs)), (expert, pairs)), shape=(experts, len(pairs) + 1))
    rows = np.concatenate([device, np.arange(devices)])
    columns = np.concatenate([pairs, np.full(devices, len(pairs))])
    loads = coo_array((np.concatenate([frequency[expert], -speed]), (rows, columns)))
    goal = np.zeros(len(pairs) + 1)
    goal[-1] = 1.0
    # Of the many best answers the least uneven would be nicer; any will do for loads and a bottleneck.
    answer = linprog(goal, loads.tocsr(), np.zeros(devices), whole.tocsr(), np.ones(experts), method="highs")
    if not answer.success:
        raise RuntimeError(f"the parts of replicated experts could not be worked out: {answer.message}")
    parts[expert, device] = answer.x[:-1]
    return parts


def _caps(left: Counts, layers: int, wanted: int) -> Counts:
    """Return how many experts each device may get in this layer, so that the later ones still fit."""
    caps = left // layers
    # Rounding down can leave too little; those with the most left over give one more.
    order = sorted(range(len(left)), key=lambda device: (-(left[device] % layers), device))
    for device in order[: max(0, wanted - int(caps.sum()))]:
        if left[device]:
            caps[device] += 1
    return caps


def _deal(frequency: Floats, speed: Floats, caps: Counts, holds: Flags) -> Flags | None:
    """Return one more device (E, D) for each expert, or None where they do not fit."""
    owner = _dealt(frequency, speed, caps, holds)
    if owner is None:
        return None
    _improve(frequency, speed, caps, holds, owner)
    _in_order(frequency, holds, owner)
    added = np.zeros_like(holds)
    added[np.arange(len(owner)), owner] = True
    return added


def _dealt(frequency: Floats, speed: Floats, caps: Counts, holds: Flags) -> Counts | None:
    """Deal out from the most wanted expert on, each to where it weighs least; return the owners (E,)."""
    experts, devices = holds.shape
    owner = np.full(experts, -1, dtype=np.int64)
    loads, left = np.zeros(devices), caps.copy()
    # Who has the fewest devices to choose from comes first among those wanted alike.
    for expert in sorted(range(experts), key=lambda e: (-frequency[e], -int(holds[e].sum()), e)):
        free = (left > 0) & ~holds[expert]
        if not free.any():
            moved = _made_room(expert, owner, left, holds)
            if moved is None:
                return None
            other, target = moved
            owner[expert] = owner[other]
            owner[other] = target
            loads[owner[expert]] += frequency[expert] - frequency[other]
            loads[target] += frequency[other]
            left[target] -= 1
            continue
        weights = np.where(free, (loads + frequency[expert]) / speed, np.inf)
        # Of equal weights the faster device; then the first.
        best = min(np.flatnonzero(weights <= weights.min() * (1 + _WORTH)), key=lambda d: (-speed[d], d))
        owner[expert] = best
        loads[best] += frequency[expert]
        left[best] -= 1
    return owner


def _made_room(expert: int, owner: Counts, left: Counts, holds: Flags) -> tuple[int, int] | None:
    """Return whom an expert without a place could replace, and where that one would go."""
    for target in np.flatnonzero(left > 0):
        for other in np.flatnonzero(owner >= 0):
            if not holds[other, target] and owner[other] != target and not holds[expert, owner[other]]:
                return int(other), int(target)
    return None


def _improve(frequency: Floats, speed: Floats, caps: Counts, holds: Flags, owner: Counts) -> None:
    """Move experts off the most loaded device, or swap them with others, as long as the largest weight falls."""
    devices = len(speed)
    while True:
        loads = np.bincount(owner, weights=frequency, minlength=devices)
        counts = np.bincount(owner, minlength=devices)
        weights = loads / speed
        top = int(weights.argmax())
        worst = weights[top] * (1 - _WORTH)
        mine = np.flatnonzero(owner == top)
        # (mine, D): what the heavier of the two devices weighs after a move, where it may go.
        after = np.maximum(
            (loads[top] - frequency[mine, None]) / speed[top], (loads + frequency[mine, None]) / speed
        )
        after = np.where((counts < caps) & ~holds[mine] & (np.arange(devices) != top), after, np.inf)
        best, change = float(after.min(initial=np.inf)), None
        if best < worst:
            place, target = np.unravel_index(int(after.argmin()), after.shape)
            change = [(int(mine[place]), int(target))]
        others = np.flatnonzero(owner != top)
        if len(others) and len(mine):
            there = owner[others]
            gain = frequency[mine, None] - frequency[others]
            after = np.maximum((loads[top] - gain) / speed[top], (loads[there] + gain) / speed[there])
            fits = ~holds[np.ix_(mine, there)] & ~holds[others, top]
            after = np.where(fits, after, np.inf)
            if after.min() < min(best, worst):
                place, other = np.unravel_index(int(after.argmin()), after.shape)
                change = [(int(mine[place]), int(there[other])), (int(others[other]), top)]
        if change is None:
            return
        for expert, goes_to in change:
            owner[expert] = goes_to


def _in_order(frequency: Floats, holds: Flags, owner: Counts) -> None:
    """Let experts that are wanted alike, and could all lie anywhere, lie on the devices in the order of numbers."""
    for value in np.unique(frequency):
        alike = np.flatnonzero((frequency == value) & ~holds.any(axis=1))
        owner[alike] = np.sort(owner[alike])


def _copy_hot(frequency: Floats, speed: Floats, room: Counts, holds: Flags, most: int) -> None:
    """Copy what the most loaded device is asked for most to the least loaded device, as long as that helps."""
    room = room.copy()
    weights = frequency @ serving_shares(frequency, holds, speed) / speed
    for _ in range(most):
        change = _hottest(frequency, speed, weights, room, holds)
        if change is None:
            return
        holds[change] = True
        after = frequency @ serving_shares(frequency, holds, speed) / speed
        if after.max() >= weights.max() * (1 - _WORTH):
            holds[change] = False
            return
        weights = after
        room[change[1]] -= 1


def _hottest(
    frequency: Floats, speed: Floats, weights: Floats, room: Counts, holds: Flags
) -> tuple[int, int] | None:
    """Return what the most loaded device is asked for most of all that has a place elsewhere, and that place."""
    mine = np.flatnonzero(holds[:, int(weights.argmax())])
    for expert in sorted(mine.tolist(), key=lambda e: (-frequency[e], e)):
        free = np.flatnonzero((room > 0) & ~holds[expert])
        if len(free):
            return expert, int(min(free, key=lambda d: (weights[d], -speed[d], d)))
    return None
