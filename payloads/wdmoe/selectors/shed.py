"""Take pairs off the bottleneck device, the cheapest for each second first: the core of the budget policy.

The bottleneck device drops its pair of least cost per second gained; then the device that now is the bottleneck drops
one; and so on, until the budget is used up or the bottleneck has nothing left that it may drop. Done pair by pair this
is slow. But the time at which a device stands just before it drops its n-th pair, its *level*, follows from its own
pairs alone. So all pairs are sorted once by level, and the budget says how far down the list it goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from payloads.wdmoe.selectors.rows import order_of

if TYPE_CHECKING:
    from numpy import bool_, floating, int64
    from numpy.typing import NDArray

    Floats = NDArray[floating[Any]]

__all__ = ["Shed", "shed"]


class Shed(NamedTuple):
    """What was dropped.

    Attributes:
        places: Places of the dropped pairs in the flattened (N, k), in the order in which they were dropped.
        levels: The bottleneck's seconds just before each was dropped, falling.
        seconds: (D,), what the devices take then.
        spent: The cost of what was dropped.
        stuck: Whether it ended because the bottleneck had nothing left to drop, not because of the budget.
    """

    places: NDArray[int64]
    levels: Floats
    seconds: Floats
    spent: float
    stuck: bool


def shed(
    cost: Floats,
    gains_s: Floats,
    device: NDArray[int64],
    may_drop: NDArray[bool_],
    seconds: Floats,
    pairs: NDArray[int64],
    budget: float,
) -> Shed:
    """Drop pairs of the bottleneck until the budget is used up.

    Args:
        cost: (N, k), what dropping each pair costs, not negative.
        gains_s: (N, k), what it takes off its device, above 0.
        device: (N, k), its device.
        may_drop: (N, k), which pairs may be dropped, in any combination.
        seconds: (D,), what the devices take before.
        pairs: (D,), how many pairs they are sent before: one that is left with none takes no time at all.
        budget: The cost that may be spent.

    Returns:
        What was dropped. The largest of its ``seconds`` is the least that the budget allows, up to one pair, where
        every pair of a device gains the same.
    """
    places = may_drop.ravel().nonzero()[0]
    owner = device.ravel()[places]
    gain = gains_s.ravel()[places]
    # No device gets below what it cannot drop, and none needs to get below the highest of these floors.
    floors = seconds - np.bincount(owner, weights=gain, minlength=len(seconds))
    floors[np.bincount(owner, minlength=len(seconds)) == pairs] = 0.0
    floor = float(floors.max())
    hot = seconds > floor
    if not hot.all():
        of_hot = hot[owner]
        places, owner, gain = places[of_hot], owner[of_hot], gain[of_hot]
    price = cost.ravel()[places]
    # By device, and within a device by cost per second: two sorts, the second one stable and of small numbers.
    order = order_of(price / gain)
    order = order[owner[order].astype(np.uint16).argsort(kind="stable")]
    places, owner, gain, price = places[order], owner[order], gain[order], price[order]
    run = gain.cumsum()
    starts = np.searchsorted(owner, np.arange(len(seconds)))
    before = np.concatenate(([0.0], run))[starts]
    levels = seconds[owner] - (run - gain - before[owner])
    useful = levels > floor * (1 + 1e-12)
    if not useful.all():
        places, owner, gain = places[useful], owner[useful], gain[useful]
        price, levels = price[useful], levels[useful]
    order = order_of(levels)[::-1]
    bill = price[order].cumsum()
    count = int(np.searchsorted(bill, budget * (1 + 1e-12), side="right"))
    order_kept = order[:count]
    gone = owner[order_kept]
    left = seconds - np.bincount(gone, weights=gain[order_kept], minlength=len(seconds))
    left[np.bincount(gone, minlength=len(seconds)) == pairs] = 0.0
    return Shed(
        places[order_kept],
        levels[order_kept],
        left,
        float(bill[count - 1]) if count else 0.0,
        count == len(order),
    )
