"""Bandwidth for one layer: the shares with which its last device is done as early as can be.

Device k is done after

    t_k = fixed_k + downlink bits / R(downlink state, share) + uplink bits / R(uplink state, share)

and the attention waiting latency, the largest t_k, is minimised over the shares (the per-block form of WDMoE's
bandwidth allocation; a reconstruction). ``same`` gives a device one share for both directions, the papers' B_k;
``separate`` shares each direction's band for itself, which is never worse. Exactness, methods and costs:
docs/bandwidth.md.

A few devices are solved in plain floats (minmax_few.py), everything else in arrays (minmax_many.py,
minmax_separate.py), to the same result.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, List, Optional, Sequence

import numpy as np

from payloads.wdmoe.bandwidth import DEFAULT_FLOOR, kept_share
from payloads.wdmoe.inverse import Sent
from payloads.wdmoe.minmax_few import Link, few_same, few_separate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from payloads.linkd.rule import Rule
    from payloads.wdmoe.latency import Demand
    from payloads.wdmoe.link_state import LinkState

    Array = NDArray[np.float64]

__all__ = ["FEW_DEVICES", "minmax", "minmax_batch"]

#: Up to here, about, plain floats are faster than arrays (scripts/bench/allocation.py).
FEW_DEVICES = 128
_MBIT = 1e-6


def minmax(
    demand: Demand,
    links: LinkState,
    budget: Sequence[float] = (1.0, 1.0),
    directions: str = "same",
    floor: float = DEFAULT_FLOOR,
) -> Array:
    """Share both bands so that the slowest device of one layer is as fast as can be.

    Args:
        demand: What the layer asks of the links.
        links: The links as they are; their shares do not matter.
        budget: What of the downlink's and of the uplink's band there is to share.
        directions: ``same`` or ``separate``.
        floor: The part of the budget that every device keeps, also one without load; at most half of an equal share.

    Returns:
        (2, D) shares of the whole band, none negative, in each direction the budget together. Under a table they may
        be less together: what is left over would only lower somebody's SNR.
    """
    loaded = demand.loaded
    devices = len(loaded)
    if devices <= FEW_DEVICES and links.rule.kind != "table":
        found = _minmax_few(demand, links, budget, directions, kept_share(floor, devices))
        if found is not None:
            return found
    bits = np.array([demand.downlink_bits, demand.uplink_bits], float)
    return minmax_batch(
        np.asarray(demand.fixed_s), bits, loaded, links.rule, links.states, budget, directions, floor
    )


def minmax_batch(
    fixed_s: Any,
    bits: Any,
    loaded: Any,
    rule: Rule,
    states: Any,
    budget: Sequence[float] = (1.0, 1.0),
    directions: str = "same",
    floor: float = DEFAULT_FLOOR,
) -> Array:
    """Solve many layers at once; all have the same devices, rule and budget.

    Args:
        fixed_s: (..., D), what each device takes beside its bits.
        bits: (..., 2, D), the bits in both directions.
        loaded: (..., D) bool, which devices take part.
        rule: The links' rule.
        states: (..., 2, D), the links' states.
        budget: What of the downlink's and of the uplink's band there is to share.
        directions: ``same`` or ``separate``.
        floor: The part of the budget that every device keeps; at most half of an equal share.

    Returns:
        (..., 2, D) shares of the whole band.
    """
    from payloads.wdmoe.minmax_many import many_same
    from payloads.wdmoe.minmax_separate import many_separate

    bits, states = np.broadcast_arrays(np.asarray(bits, float), np.asarray(states, float))
    front, devices = bits.shape[:-2], bits.shape[-1]
    fixed = np.broadcast_to(np.asarray(fixed_s, float), (*front, devices)).reshape(-1, devices)
    taking = np.broadcast_to(np.asarray(loaded, bool), (*front, devices)).reshape(-1, devices)
    sent = Sent(
        mbit=np.moveaxis(bits, -2, 0).reshape(2, -1, devices) * _MBIT,
        states=np.moveaxis(states, -2, 0).reshape(2, -1, devices),
        bands=np.asarray(budget, float),
    )
    kept = kept_share(floor, devices)
    if directions == "same":
        one = many_same(rule, fixed, sent, taking, kept)
        parts = np.stack([one, one])
    else:
        parts = many_separate(rule, fixed, sent, taking, kept)
    if rule.kind != "table":
        # What is left over, as where a rate is at its limit, goes to the devices that take part.
        weights = np.where(taking, parts, 0.0)
        total = weights.sum(axis=-1, keepdims=True)
        parts = parts + weights * (1.0 - parts.sum(axis=-1, keepdims=True)) / np.where(total > 0, total, 1.0)
    # Where nobody is sent anything all are alike.
    parts = np.where(np.any(taking, axis=-1, keepdims=True), parts, 1.0 / devices)
    shares = parts * sent.bands[:, None, None]
    return np.moveaxis(shares, 0, -2).reshape(*front, 2, devices)


def _minmax_few(
    demand: Demand, links: LinkState, budget: Sequence[float], directions: str, floor: float
) -> Optional[Array]:
    """Return the shares (2, D), or ``None`` where a limit of the rates matters, or floats are too far apart."""
    loaded = demand.loaded.tolist()
    at = [number for number, some in enumerate(loaded) if some]
    devices = len(loaded)
    bands = [float(band) for band in budget]
    if not at:
        return np.array([[band / devices] * devices for band in bands])
    rule = links.rule
    fixed = np.asarray(demand.fixed_s, float).tolist()
    fixed = [fixed[number] for number in at]
    states = links.states.tolist()
    sides: List[List[Link]] = []
    for row, bits in enumerate((demand.downlink_bits, demand.uplink_bits)):
        side = []
        each = bits.tolist()
        for number in at:
            state, mbit = states[row][number], each[number] * _MBIT
            if state <= 0.0:
                if mbit:
                    return None
                side.append(Link(0.0, 1.0 if rule.kind == "shannon" else math.inf))
            elif rule.kind == "linear":
                side.append(Link(mbit / (state * bands[row]), math.inf))
            else:
                width = bands[row] * rule.bandwidth_mhz
                side.append(Link(mbit * _LN_2 / (width * rule.scale), state / width))
        sides.append(side)
    if not any(link.work for side in sides for link in side):
        return None
    left = 1.0 - floor * (devices - len(at))
    if directions == "same":
        one = few_same(fixed, sides[0], sides[1], left, floor)
        parts = None if one is None else (one, one)
    else:
        parts = few_separate(fixed, sides[0], sides[1], left, floor)
    if parts is None:
        return None
    for band, side, part, row in zip(bands, sides, parts, states):
        pace = band * rule.bandwidth_mhz * rule.scale / _LN_2
        for number, link, share in zip(at, side, part):
            if link.work:
                if rule.kind == "linear":
                    rate = row[number] * band * share
                else:
                    rate = pace * share * math.log1p(link.sigma / share)
                if not rule.min_mbit <= rate <= rule.max_mbit:
                    return None
    shares = [[floor * band] * devices for band in bands]
    for row, part in enumerate(parts):
        for number, share in zip(at, part):
            shares[row][number] = share * bands[row]
    return np.array(shares)


_LN_2 = math.log(2.0)
