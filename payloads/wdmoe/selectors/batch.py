"""The budget policy for a block of several tokens: how far the bottleneck comes down for a given loss of mass.

Two ways, and the better result is taken. The first drops pairs off the bottleneck, each token's best pair safe: with
many tokens and a small budget that is as good as it gets. But where a token may lose its best pair too, which one it
should keep depends on where time is short. So the second way sets a *price* on each device's seconds: pairs go in the
order of mass over priced seconds, a token keeps the pair for which that is largest, and the devices that then are
slower than others get dearer, until all that matter are equally slow. Those prices are the multipliers of the linear
program that the block is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Tuple

import numpy as np

from payloads.wdmoe.routing import LayerView
from payloads.wdmoe.selectors.front import REPLACE_FROM
from payloads.wdmoe.selectors.pairs import Pairs, pairs_of
from payloads.wdmoe.selectors.rows import best_column, order_of, row_any
from payloads.wdmoe.selectors.shed import shed

if TYPE_CHECKING:
    from numpy import bool_, floating, int64
    from numpy.typing import NDArray

    Floats = NDArray[floating[Any]]

__all__ = ["dropped_at_prices", "lighten", "losable"]

ROUNDS = 12
"""How often the prices of the devices are set anew."""

EXPONENT, DECAY = 1.0, 0.9
"""How strongly a price follows its device's time, and how that calms down from round to round."""

REPLACE_ROUNDS = 3


class _Light(NamedTuple):
    """A block after pairs were dropped: the places of those in the flattened (N, k), seconds (D,), the lost mass."""

    places: NDArray[int64]
    seconds: Floats
    lost: float


def lighten(
    view: LayerView, budget: float, most: float, replace: bool
) -> Tuple[Optional[NDArray[int64]], NDArray[bool_]]:
    """Take pairs off the bottleneck devices until the budget is used up or nothing more can be gained.

    Args:
        view: The layer.
        budget: The mass that may be lost, over all tokens.
        most: The mass that one token may lose.
        replace: Whether pairs that are dropped may go to a similarly scored expert of a device that has the time.

    Returns:
        (N, k), the experts, ``None`` where they are the router's; and (N, k), which pairs are sent.
    """
    pairs = pairs_of(view)
    may_drop = losable(pairs.mass, most)
    light = _lightened(pairs, may_drop, budget)
    index, keep, lost = _moved(view, pairs, light) if replace else (None, _kept(pairs, light), light.lost)
    best, spend = float(light.seconds.max()), budget
    for _ in range(REPLACE_ROUNDS if replace else 0):
        # What moving has saved may be lost elsewhere.
        spend += 0.9 * (budget - lost)
        light = _lightened(pairs, may_drop, spend)
        now = float(light.seconds.max())
        if now >= best:
            break
        again = _moved(view, pairs, light)
        if again[2] > budget * (1 + 1e-12):
            break
        index, keep, lost = again
        best = now
    return index, keep


def losable(mass: Floats, most: float) -> NDArray[bool_]:
    """Return (N, k), the pairs of each token that it may lose when it may lose ``most`` of its mass.

    Of two pairs, each that has no more; only one of them can go. Of more, those with the least mass that together
    have no more.
    """
    if most >= 1.0:
        return np.ones(mass.shape, dtype=bool)
    limit = most * (1 + 1e-6)
    if mass.shape[1] <= 2:
        return np.asarray(mass <= limit)
    order = mass.argsort(axis=1, kind="stable")
    within = np.take_along_axis(mass, order, axis=1).cumsum(axis=1) <= limit
    small = np.zeros(mass.shape, dtype=bool)
    np.put_along_axis(small, order, within, axis=1)
    return small


def _lightened(pairs: Pairs, may_drop: NDArray[bool_], budget: float) -> _Light:
    """Drop pairs in the better of the two ways."""
    rows, best = np.arange(len(may_drop)), best_column(pairs.mass)
    others = may_drop.copy()
    others[rows, best] = False
    done = shed(pairs.mass, pairs.gains_s, pairs.device, others, pairs.seconds, pairs.loads.pairs, budget)
    light = _Light(done.places, done.seconds, done.spent)
    if may_drop[rows, best].any():
        return _priced(pairs, may_drop, budget, light)
    return light


def _priced(pairs: Pairs, may_drop: NDArray[bool_], budget: float, light: _Light) -> _Light:
    """Drop pairs by the prices of the devices' seconds; return the best of what comes up and of ``light``."""
    price = np.sqrt(pairs.seconds / pairs.seconds.max()) + 1e-9
    exponent = EXPONENT
    for _ in range(ROUNDS):
        now = _at_prices(pairs, may_drop, budget, price)
        slowest = now.seconds.max()
        if slowest < light.seconds.max():
            light = now
        price = np.maximum(price * np.maximum(now.seconds / slowest, 0.05) ** exponent, 1e-9)
        price /= price.max()
        exponent *= DECAY
    return light


def _at_prices(pairs: Pairs, may_drop: NDArray[bool_], budget: float, price: Floats) -> _Light:
    """Drop pairs in the order of mass over priced seconds, until the budget is used up."""
    owner, gain = pairs.device.ravel(), pairs.gains_s.ravel()
    devices = len(pairs.seconds)
    places, lost = dropped_at_prices(pairs.mass, price[pairs.device] * pairs.gains_s, may_drop, budget)
    of = owner[places]
    seconds = pairs.seconds - np.bincount(of, weights=gain[places], minlength=devices)
    seconds[np.bincount(of, minlength=devices) == pairs.loads.pairs] = 0.0
    return _Light(places, seconds, lost)


def dropped_at_prices(
    mass: Floats, worth: Floats, may_drop: NDArray[bool_], budget: float
) -> Tuple[NDArray[int64], float]:
    """Drop pairs in the order of mass over what dropping them is worth, until the budget is used up.

    Args:
        mass: (N, k), the mass of each pair.
        worth: (N, k), what dropping it is worth, above 0.
        may_drop: (N, k), which pairs may be dropped. Of each token the pair with the most mass for its worth stays.
        budget: The mass that may be lost.

    Returns:
        The places of the dropped pairs in the flattened (N, k), and the mass that is lost.
    """
    rate = (mass / worth).ravel()
    places = _all_but_dearest(rate.reshape(mass.shape))
    places = places[may_drop.ravel()[places]]
    places = places[order_of(rate[places])]
    bill = mass.ravel()[places].cumsum()
    count = int(np.searchsorted(bill, budget * (1 + 1e-12), side="right"))
    return places[:count], float(bill[count - 1]) if count else 0.0


def _all_but_dearest(rate: Floats) -> NDArray[int64]:
    """Return the places in the flattened (N, k) of all but the largest of each row."""
    tokens, chosen = rate.shape
    if chosen == 2:
        return 2 * np.arange(tokens) + (rate[:, 1] <= rate[:, 0])
    may_drop = np.ones(rate.shape, dtype=bool)
    may_drop[np.arange(tokens), best_column(rate)] = False
    return may_drop.ravel().nonzero()[0]


def _kept(pairs: Pairs, light: _Light) -> NDArray[bool_]:
    keep = np.ones(pairs.mass.shape, dtype=bool)
    keep.ravel()[light.places] = False
    return keep


def _moved(view: LayerView, pairs: Pairs, light: _Light) -> Tuple[NDArray[int64], NDArray[bool_], float]:
    """Give dropped pairs to other experts, where these score similarly and their devices have the time.

    Returns:
        (N, k), the experts; (N, k), which pairs are sent; and the mass that is lost then.
    """
    index, keep = view.routing.index.copy(), _kept(pairs, light)
    scores, costs = view.routing.scores, view.costs
    slowest = light.seconds.max()
    # A device that has nothing to do would take a dispatch of its own.
    busy_s = np.where(light.seconds > 0, light.seconds, costs.fixed_s)
    room = (slowest - busy_s) / np.maximum(costs.pair_s, 1e-300)
    able = (room >= 1.0)[view.device_of]
    rows, columns = np.divmod(light.places, index.shape[1])
    # One of a token's pairs at most is moved, the first that was dropped, so that no expert is asked twice.
    rows, first = np.unique(rows, return_index=True)
    columns = columns[first]
    if not len(rows) or not able.any():
        return index, keep, light.lost
    value = scores[rows] * able
    for column in range(index.shape[1]):
        value[np.arange(len(rows)), index[rows, column]] = 0.0
    other = best_column(value)
    near = value[np.arange(len(rows)), other] / np.maximum(scores[rows, index[rows, columns]], 1e-300)
    good = near >= REPLACE_FROM
    rows, columns, other, near = rows[good], columns[good], other[good], np.minimum(near[good], 1.0)
    saved = pairs.mass[rows, columns] * near
    # The most valuable first, as many as each device has room for.
    order = (-saved).argsort(kind="stable")
    goal = view.device_of[other[order]]
    for device in np.unique(goal).tolist():
        there = order[goal == device][: int(room[device])]
        index[rows[there], columns[there]] = other[there]
        keep[rows[there], columns[there]] = True
        light = light._replace(lost=light.lost - float(saved[there].sum()))
    assert row_any(keep).all()
    return index, keep, light.lost
