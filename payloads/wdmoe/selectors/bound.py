"""How fast a layer can be at best for a given loss of mass: what no selection that only drops pairs can beat.

A block of one token has few choices, and the best of them is found. For more tokens the bound is that of a relaxation:
pairs may be dropped in part, a token may lose all of its pairs, and what a device takes at all falls in proportion to
what is dropped there. Over many blocks with one budget, pairs and blocks may be mixed as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, Optional, Sequence, Tuple

import numpy as np

from payloads.wdmoe.allocation.band import token_loads
from payloads.wdmoe.routing import LayerView
from payloads.wdmoe.selectors.front import Taking, choices_of
from payloads.wdmoe.selectors.pairs import pairs_of
from payloads.wdmoe.selectors.rows import row_any

if TYPE_CHECKING:
    from numpy import bool_, floating
    from numpy.typing import NDArray

    Floats = NDArray[floating[Any]]

__all__ = ["choices_s", "lower_bound_s", "priced", "stream_bound_s", "token_loads"]

_STEPS = 100
_GOLDEN = 0.6180339887498949


def lower_bound_s(view: LayerView, tau: float, most: float = 1.0, saved_s: Any = 0.0) -> float:
    """Return a bound on a layer's attention waiting latency, in seconds, at the rates in force.

    Args:
        view: The layer.
        tau: The share of the gate's mass that is kept at least in this block.
        most: The share of its own mass that a token may lose; with less than 1 the bound is one for such selections.
        saved_s: (D,), what a dispatch may take less than the costs say, as where a token bucket lets its beginning
            pass at once; of blocks of several tokens only.

    Returns:
        What no selection that drops pairs, keeps one for every token, and keeps ``tau`` of the mass can go below.
    """
    if len(view.routing.index) == 1:
        lose = min(1.0 - tau, most) * (1 + 1e-6)
        return min(seconds for seconds, lost in choices_s(view) if lost <= lose)
    pairs = pairs_of(view, parts=True)
    # As few headers as if nothing had to be cut into whole frames.
    pairs = pairs._replace(seconds=np.maximum(pairs.seconds - view.costs.rounding_s() - saved_s, 0.0))
    owner = pairs.device.ravel()
    total_s = np.bincount(owner, weights=pairs.gains_s.ravel(), minlength=len(pairs.seconds))
    part = np.maximum(pairs.seconds / np.maximum(total_s, 1e-300), 1.0)
    gains_s = pairs.gains_s.copy()
    # All pairs of a device together save all of its time, what a dispatch takes without any pair included. But where
    # some token has nowhere else to go, its row has to go down there, and a dispatch with it.
    captive = ~row_any(pairs.device != pairs.device[:, :1])
    held = pairs.device[captive, 0]
    gains_s[captive] -= (view.costs.down_s[held] / gains_s.shape[1])[:, None]
    part[held] = 1.0
    gains_s = np.maximum(gains_s * part[pairs.device], 1e-300)
    budget = (1.0 - tau) * len(view.routing.index)
    gain, price = gains_s.ravel(), pairs.mass.ravel()
    may_drop = pairs.mass <= most * (1 + 1e-6)
    always_s = pairs.seconds - np.bincount(owner, weights=gain, minlength=len(pairs.seconds))
    capacity = np.bincount(owner, minlength=len(pairs.seconds)) / np.maximum(pairs.seconds, 1e-300)
    flat = may_drop.ravel()
    owner, gain, price = owner[flat], gain[flat], price[flat]
    order = (price / gain).argsort(kind="stable")
    order = order[owner[order].argsort(kind="stable")]
    owner, gain, price = owner[order], gain[order], price[order]
    run = gain.cumsum()
    before = np.concatenate(([0.0], run))[np.searchsorted(owner, np.arange(len(pairs.seconds)))]
    begins = pairs.seconds[owner] - (run - gain - before[owner])
    # What a bucket has saved can be more than all that is left: nothing gets below no time at all.
    left_s = pairs.seconds - np.bincount(owner, weights=gain, minlength=len(pairs.seconds))
    live = begins > 0.0
    owner, gain, price, begins = owner[live], gain[live], price[live], begins[live]
    ends = np.maximum(begins - gain, 0.0)
    level_s = max(_water_level(begins, ends, price, budget), float(left_s.max()), 0.0)
    # What every token keeps one pair for, at the prices of that solution, and at those of plain capacity.
    marginal = np.zeros(len(pairs.seconds))
    at = (begins >= level_s) & (ends <= level_s)
    marginal[owner[at]] = (price / gain)[at]
    worth = 1.0 / marginal.sum() if marginal.any() else 0.0
    bounds = [level_s]
    for of_device, of_mass in ((marginal * worth, worth), (capacity / capacity.sum(), 0.0)):
        kept, lost = of_device[pairs.device] * gains_s, of_mass * pairs.mass
        whatever_s = float((of_device * always_s).sum())
        bounds.append(priced(kept, lost, may_drop) + whatever_s - of_mass * budget)
    return max(bounds)


def priced(kept: Floats, lost: Floats, may_drop: NDArray[bool_]) -> float:
    """Return the least that all pairs cost at given prices (Lagrangian duality); any prices give a bound.

    Args:
        kept: (N, k), what each pair costs if it is sent.
        lost: (N, k), what it costs if it is dropped.
        may_drop: (N, k), whether that may be.
    """
    each = np.where(may_drop, np.minimum(kept, lost), kept).sum(axis=1)
    # A token that would rather lose all of its pairs keeps the one for which that costs least.
    each += np.where(may_drop, np.maximum(kept - lost, 0.0), 0.0).min(axis=1)
    return float(each.sum())


def choices_s(view: LayerView, seconds: Optional[Taking] = None) -> List[Tuple[float, float]]:
    """Return what a layer's only token can do: seconds and the mass that is lost, for :func:`stream_bound_s`.

    Args:
        view: The layer.
        seconds: What one token takes on each device; by the view's costs where it is left out.
    """
    taking = _exactly(view) if seconds is None else seconds
    return [(choice.seconds, choice.lost) for choice in choices_of(view, taking, False)]


def _exactly(view: LayerView) -> Taking:
    """Return what one token takes on a device, with whole frames."""
    costs, devices = view.costs, len(view.costs.fixed_s)
    most = view.routing.index.shape[1]
    table = [costs.dispatch_s(token_loads(devices, pairs)).tolist() for pairs in range(1, most + 1)]
    return lambda device, pairs: table[pairs - 1][device]


def stream_bound_s(blocks: Sequence[Sequence[Tuple[float, float]]], tau: float) -> Floats:
    """Return a bound on what many blocks of one token take in all, when they share one budget of mass.

    For any price of mass, every selection that keeps ``tau`` of the mass of all blocks takes at least the sum of what
    is cheapest in each block, less what the budget is worth at that price. The price that makes this largest is taken.

    Args:
        blocks: What each block can do, of :func:`choices_s`; the first is to lose nothing.
        tau: The share of the mass of all blocks that is kept at least.

    Returns:
        (blocks,), seconds of which only the sum is a bound.
    """
    if not len(blocks):
        return np.zeros(0)
    most = max(map(len, blocks))
    seconds = np.array([[s for s, _ in block] + [np.inf] * (most - len(block)) for block in blocks])
    lost = np.array([[m for _, m in block] + [0.0] * (most - len(block)) for block in blocks])
    lose = 1.0 - tau

    def bound(price: float) -> Floats:
        cheapest: Floats = (seconds + price * lost).min(axis=1) - price * lose
        return cheapest

    # The sum is concave in the price. Above the largest gain for a unit of mass nothing is dropped any more.
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = np.where(lost > 0, (seconds[:, :1] - seconds) / lost, 0.0)
    low, high = 0.0, float(np.nan_to_num(rates, posinf=0.0, neginf=0.0).max()) + 1e-12
    for _ in range(_STEPS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if bound(left).sum() < bound(right).sum():
            low = left
        else:
            high = right
        if high - low < 1e-9 * high:
            break
    return bound(0.5 * (low + high))


def _water_level(begins: Floats, ends: Floats, price: Floats, budget: float) -> float:
    """Return how far the level comes down for a budget.

    Args:
        begins: (P,), the level from which on a pair is being dropped, evenly.
        ends: (P,), the level at which all of it is dropped.
        price: (P,), what all of it costs.
        budget: What may be spent.
    """
    if not len(price):
        return 0.0
    rate = price / np.maximum(begins - ends, 1e-300)
    levels = np.concatenate([begins, ends])
    order = (-levels).argsort(kind="stable")
    levels = levels[order]
    slope = np.concatenate([rate, -rate])[order].cumsum()
    spent = np.concatenate(([0.0], (slope[:-1] * -np.diff(levels)).cumsum()))
    place = int(np.searchsorted(spent, budget, side="right")) - 1
    if place + 1 >= len(levels):
        return max(0.0, float(levels[-1]))
    if slope[place] <= 0:
        return float(levels[place + 1])
    return max(0.0, float(levels[place] - (budget - spent[place]) / slope[place]))
