"""The budget policy for a block of several tokens where the band is shared anew for whatever is sent.

At given shares the *prices* of the devices' seconds follow from which of them are slow (:mod:`.batch`). Here the
allocation makes all of them equally slow, and its multipliers say what a second of each is worth. Pairs go in the
order of mass over priced seconds; the band is shared for what is left, which gives other prices; and so on. Beside
that the plain way is tried, in which a selection at given shares and an allocation take turns. Whatever comes up is
compared by what the layer takes with the band shared for it, and the best is returned: never worse than the first
choice at the scenario's shares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Tuple

import numpy as np

from payloads.wdmoe.routing import LayerView, Selection, loads_of
from payloads.wdmoe.selectors.batch import dropped_at_prices, lighten, losable
from payloads.wdmoe.selectors.pairs import gains_of, pairs_of

if TYPE_CHECKING:
    from numpy import bool_, floating, int64
    from numpy.typing import NDArray

    from payloads.wdmoe.allocation.band import Band
    from payloads.wdmoe.costs import Costs
    from payloads.wdmoe.routing import Loads

    Floats = NDArray[floating[Any]]

__all__ = ["lighten_together"]

ROUNDS = 6
"""How often prices are set anew, at most."""

TURNS = 3
"""How often a selection at given shares and an allocation take turns, at most."""

_WORTHLESS = 1e-6
_CALM = 0.5


class _Found(NamedTuple):
    """A choice, what it asks of the devices, and with the band shared for it the layer's latency and the costs."""

    index: Optional[NDArray[int64]]  # type: ignore[assignment]  # the name of a method of tuples
    keep: NDArray[bool_]
    loads: Loads
    seconds: float
    costs: Costs


def lighten_together(
    view: LayerView, band: Band, budget: float, most: float, replace: bool
) -> Tuple[Optional[NDArray[int64]], NDArray[bool_]]:
    """Take pairs away until the budget is used up or nothing more can be gained; the band is shared for what is left.

    Args:
        view: The layer, with the costs at the scenario's shares.
        band: What it takes when the band is shared for it.
        budget: The mass that may be lost, over all tokens.
        most: The mass that one token may lose.
        replace: Whether pairs may go to a similarly scored expert of another device instead of being dropped.

    Returns:
        (N, k), the experts, ``None`` where they are the router's; and (N, k), which pairs are sent.
    """
    everything = _found(view, band, None, np.ones(view.routing.index.shape, dtype=bool))
    best = min(
        everything,
        _in_turn(view, band, budget, most, replace),
        key=_seconds,
    )
    best = min(best, _by_prices(view, band, best, budget, most), key=_seconds)
    if replace:
        at_best = view._replace(costs=best.costs)
        best = min(best, _in_turn(at_best, band, budget, most, replace), key=_seconds)
    return best.index, best.keep


def _in_turn(view: LayerView, band: Band, budget: float, most: float, replace: bool) -> _Found:
    """Let a selection at given shares and an allocation take turns; return the best choice that comes up."""
    best: Optional[_Found] = None
    for _ in range(TURNS):
        now = _found(view, band, *lighten(view, budget, most, replace))
        if best is not None and now.seconds >= best.seconds:
            break
        best = now
        view = view._replace(costs=now.costs)
    assert best is not None
    return best


def _by_prices(view: LayerView, band: Band, best: _Found, budget: float, most: float) -> _Found:
    """Drop pairs by what a second of each device is worth, from the allocation of the best choice so far on."""
    pairs = pairs_of(view)
    may_drop = losable(pairs.mass, most)
    before: Optional[Floats] = None
    loads, stuck = best.loads, 0
    for _ in range(ROUNDS):
        costs, price = band.prices(loads)
        gains_s = gains_of(view._replace(costs=costs), pairs.device, pairs.loads, False)
        worth = gains_s * price[pairs.device]
        # Prices that jump back and forth meet half-way.
        worth = worth if before is None else worth**_CALM * before ** (1 - _CALM)
        before = np.maximum(worth, 1e-300)
        useful = may_drop & (price > _WORTHLESS)[pairs.device]
        keep = np.ones(pairs.mass.shape, dtype=bool)
        keep.ravel()[dropped_at_prices(pairs.mass, before, useful, budget)[0]] = False
        now = _found(view, band, None, keep)
        stuck = stuck + 1 if now.seconds >= best.seconds * (1 - 1e-6) else 0
        best = min(best, now, key=_seconds)
        if stuck:
            break
        loads = now.loads
    return best


def _found(view: LayerView, band: Band, index: Optional[NDArray[int64]], keep: NDArray[bool_]) -> _Found:
    routing = view.routing
    sent = Selection(routing.index if index is None else index, keep, routing.weights)
    loads = loads_of(sent, view.device_of, len(view.costs.fixed_s))
    return _Found(index, keep, loads, *band.outcome(loads))


def _seconds(found: _Found) -> float:
    return found.seconds
