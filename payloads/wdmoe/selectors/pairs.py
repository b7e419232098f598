"""What the pairs of one layer weigh and take: the arrays that the kinds of selection have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from payloads.wdmoe.gating import mass_of
from payloads.wdmoe.routing import LayerView, Loads, Selection, loads_of

if TYPE_CHECKING:
    from numpy import floating, int64
    from numpy.typing import NDArray

    Floats = NDArray[floating[Any]]

__all__ = ["Pairs", "gains_of", "pairs_of"]


class Pairs(NamedTuple):
    """The router's pairs of one layer.

    Attributes:
        mass: (N, k), each pair's share of its token's scores.
        device: (N, k), the device that serves its expert.
        seconds: (D,), what each device takes if all pairs are sent.
        gains_s: (N, k), the seconds that its device gains if this pair is dropped, see :func:`gains_of`.
        loads: What sending all pairs asks of the devices.
    """

    mass: Floats
    device: NDArray[int64]
    seconds: Floats
    gains_s: Floats
    loads: Loads


def pairs_of(view: LayerView, parts: bool = False) -> Pairs:
    """Return the router's pairs of a layer.

    Args:
        view: The layer.
        parts: What ``gains_s`` are, see :func:`gains_of`.
    """
    routing = view.routing
    keep = np.ones(routing.index.shape, dtype=bool)
    device = view.device_of.take(routing.index)
    loads = loads_of(Selection(routing.index, keep, routing.weights), view.device_of, len(view.costs.fixed_s))
    gains_s = gains_of(view, device, loads, parts)
    return Pairs(mass_of(routing), device, view.costs.dispatch_s(loads), gains_s, loads)


def gains_of(view: LayerView, device: NDArray[int64], loads: Loads, parts: bool) -> Floats:
    """Return how many seconds of its device go with each pair.

    A pair takes its row up, its part of its expert's computation, and a row down, which it may share with other pairs
    of its token on the device. An expert's tokens each have an equal part of its computation: taking all of them away
    saves the sum of their parts.

    Args:
        view: The layer.
        device: (N, k), the device of each pair.
        loads: What sending all pairs asks of the devices.
        parts: Whether pairs that share a row down each have an equal part of it, so that taking some of them away
            saves no more than their parts and taking all of them exactly the sum. Otherwise they have nothing of it:
            what dropping one of them saves while another stays. With parts, what goes with a pair to the byte: the
            entries of lists too, and of an expert's weights no more than its equal part.

    Returns:
        (N, k), above 0.
    """
    costs, index = view.costs, view.routing.index
    software_s = costs.pair_s - costs.down_s - costs.up_s - costs.expert_s
    tokens = np.maximum(loads.counts, 1)
    if parts:
        work_s = costs.parts_s(loads.counts, view.device_of)
        # One entry for the pair, and two for its expert.
        work_s = work_s + costs.entry_s()[view.device_of] * (1.0 + 2.0 / tokens)
    else:
        work_s = np.maximum(costs.token_s[view.device_of], costs.expert_s[view.device_of] / tokens)
    down_s = costs.down_s[view.device_of]
    alone_s = work_s + (costs.up_s + software_s)[view.device_of] + down_s
    gains_s: Floats = alone_s.take(index)
    chosen = index.shape[1]
    if chosen == 2:
        both = (device[:, 0] == device[:, 1]).nonzero()[0]
        gains_s[both] -= (0.5 if parts else 1.0) * down_s.take(index[both])
    elif chosen > 2:
        sharers = np.zeros(index.shape, dtype=np.int64)
        for column in range(chosen):
            sharers += device == device[:, column : column + 1]
        part = 1.0 / sharers if parts else sharers == 1
        gains_s += down_s.take(index) * (part - 1.0)
    return gains_s
