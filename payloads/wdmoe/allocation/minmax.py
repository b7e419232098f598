"""Bandwidth for one layer: the shares with which its last device is done as early as can be.

Device k is done after

    t_k = fixed_k + downlink bits / R(downlink state, share) + uplink bits / R(uplink state, share)

and the attention waiting latency, the largest t_k, is minimised over the shares (the per-block form of WDMoE's
bandwidth allocation; a reconstruction). ``same`` gives a device one share for both directions, the papers' B_k;
``separate`` shares each direction's band for itself, which is never worse. Exactness, methods and costs:
docs/bandwidth.md.

A few devices are solved in plain floats (minmax_few.py, minmax_bands.py, minmax_rows.py), as fast as a base station
needs it before each layer; many devices and many problems at once in arrays (minmax_many.py, minmax_separate.py).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, List, Optional, Sequence, Tuple

import numpy as np

from payloads.wdmoe.allocation.bandwidth import DEFAULT_FLOOR, kept_share
from payloads.wdmoe.allocation.inverse import Sent
from payloads.wdmoe.allocation.minmax_bands import few_separate
from payloads.wdmoe.allocation.minmax_few import Link, few_same
from payloads.wdmoe.allocation.minmax_rows import Sending, rows_same, rows_separate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from payloads.linkd.rule import Rule
    from payloads.station.link_state import LinkState
    from payloads.wdmoe.latency import Demand

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
    if len(loaded) <= FEW_DEVICES:
        found = _minmax_few(demand, links, budget, directions, kept_share(floor, len(loaded)))
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
    from payloads.wdmoe.allocation.minmax_many import many_same
    from payloads.wdmoe.allocation.minmax_separate import many_separate

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
    """Return the shares (2, D), or ``None`` where numbers are too far apart for floats."""
    loaded = demand.loaded.tolist()
    at = [number for number, some in enumerate(loaded) if some]
    devices = len(loaded)
    bands = [float(band) for band in budget]
    if not at:
        return np.array([[band / devices] * devices for band in bands])
    fixed = np.asarray(demand.fixed_s, float).tolist()
    fixed = [fixed[number] for number in at]
    left = 1.0 - floor * (devices - len(at))
    parts: Optional[Tuple[List[float], List[float]]]
    if links.rule.kind == "table":
        mbit = np.array([demand.downlink_bits, demand.uplink_bits]) * _MBIT
        states = links.states
        if len(at) < devices:
            mbit, states = mbit[:, at], states[:, at]
        sending = Sending(fixed, mbit, states, bands, left, floor)
        if directions == "same":
            one = rows_same(links.rule, sending)
            parts = one, one
        else:
            parts = rows_separate(links.rule, sending)
    else:
        down, up = _links(demand, links, bands, at, fixed)
        if directions == "same":
            some = few_same(fixed, down, up, left, floor)
            parts = None if some is None else (some, some)
        else:
            parts = few_separate(fixed, down, up, left, floor)
    if parts is None:
        return None
    shares = [[floor * band] * devices for band in bands]
    for row, part, band in zip(shares, parts, bands):
        for number, share in zip(at, part):
            row[number] = share * band
    return np.array(shares)


def _links(
    demand: Demand, links: LinkState, bands: Sequence[float], at: Sequence[int], fixed: List[float]
) -> Tuple[List[Link], List[Link]]:
    """Return the links of the devices ``at``; to their ``fixed`` is added what takes its time whatever the share."""
    rule = links.rule
    linear = rule.kind == "linear"
    sides: List[List[Link]] = []
    for band, states, bits in zip(bands, links.states.tolist(), (demand.downlink_bits, demand.uplink_bits)):
        each = bits.tolist()
        width = band * rule.bandwidth_mhz
        pace = width * rule.scale / _LN_2
        side = []
        for place, number in enumerate(at):
            state, mbit = states[number], each[number] * _MBIT
            sigma = math.inf if linear else state / width
            if mbit == 0.0 or state <= 0.0:
                fixed[place] += mbit / rule.min_mbit
                side.append(Link(0.0, sigma, 0.0, 0.0))
            else:
                work = mbit / (state * band if linear else pace)
                side.append(Link(work, sigma, mbit / rule.max_mbit, mbit / rule.min_mbit))
        sides.append(side)
    return sides[0], sides[1]


_LN_2 = math.log(2.0)
