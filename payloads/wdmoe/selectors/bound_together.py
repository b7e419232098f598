"""How fast a layer can be at best for a given loss of mass when the band may be shared in any way as well. Pure.

One token has few choices; each is taken with the band shared for it. For more tokens the bound is that of a relaxation
as in :mod:`.bound`, pairs dropped in part, and of the band:

A device is done within T if its load y, in pairs, is at most T' / (b1 / R1(w1) + b2 / R2(w2) + c): b1 and b2 the bits
of a pair, c its computation, T' what is left of T beside the round trip. The right side is a concave function of the
shares w, since a rate is (or lies below) a concave function of its share and the harmonic mean of such is concave too.
So it lies below its tangent at any shares, and with the tangent the condition is linear in loads and shares alike. A
sum of these conditions over the devices, with any weights, leaves the shares out, as these are the whole band
together. What is left says how much weighted load can be done within T; if no selection that keeps the mass gets by
with that, no policy is done within T. The shares and weights are those of the relaxed problem's solution, where the
tangents touch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, NamedTuple, Optional, Tuple

import numpy as np

from payloads.station.rates import offered_mbit
from payloads.wdmoe.allocation.band import Band
from payloads.wdmoe.costs import Demand
from payloads.wdmoe.routing import LayerView
from payloads.wdmoe.selectors.batch import dropped_at_prices
from payloads.wdmoe.selectors.bound import lower_bound_s, priced
from payloads.wdmoe.selectors.pairs import pairs_of
from payloads.wdmoe.selectors.together import choices_together

if TYPE_CHECKING:
    from numpy import bool_, floating
    from numpy.typing import NDArray

    from payloads.linkd.rule import Rule

    Floats = NDArray[floating[Any]]

__all__ = ["choices_together_s", "lower_bound_together_s"]

_ROUNDS = 12
_HALVINGS = 14
_EPSILON = 1e-5


class _Work(NamedTuple):
    """What the pairs of a block ask of the devices, of every pair the least that it can be reckoned as.

    Attributes:
        mass: (N, k), the mass of each pair.
        device: (N, k), its device.
        size: (N, k), its load: one where it needs a row each way and the least computation on its device.
        bits: (2,), bits of a load of one.
        other_s: (D,), the computation of a load of one.
        fixed_s: (D,), what a dispatch takes beside its load.
        free: (D,), the load whose bits a token bucket lets pass at once.
    """

    mass: Floats
    device: NDArray[Any]
    size: Floats
    bits: Floats
    other_s: Floats
    fixed_s: Floats
    free: Floats


def choices_together_s(view: LayerView, band: Band) -> Optional[List[Tuple[float, float]]]:
    """Return what a layer's only token can do with the band shared for it: seconds and lost mass.

    Args:
        view: The layer.
        band: What it takes when the band is shared for it.

    Returns:
        As :func:`payloads.wdmoe.selectors.bound.choices_s`; ``None`` where there are too many ways to try.
    """
    choices = choices_together(view, band, replace=False)
    return None if choices is None else [(choice.seconds, choice.lost) for choice in choices]


def lower_bound_together_s(
    view: LayerView,
    band: Band,
    tau: float,
    most_mass: float = 1.0,
    free_bits: float = 0.0,
    free_s: float = 0.0,
) -> float:
    """Return a bound on a layer's attention waiting latency, in seconds, over all shares of the band.

    Args:
        view: The layer: several tokens; the costs at any shares.
        band: The band: links, what there is to share, and what of it every device keeps.
        tau: The share of the gate's mass that is kept at least in this block.
        most_mass: The share of its own mass that a token may lose.
        free_bits: What of a message a full token bucket lets pass at once in each direction.
        free_s: The time in each direction whose bits it lets pass besides.

    Returns:
        What no selection that drops pairs, keeps one for every token, and keeps ``tau`` of the mass can go below,
        whatever the shares.
    """
    work = _work_of(view, band, free_bits)
    may_drop = work.mass <= most_mass * (1 + 1e-6)
    budget = (1.0 - tau) * len(work.mass)
    loads = _loads(work, np.ones(work.mass.shape))
    shares, high = _shared(work, band, loads)
    for number in range(_ROUNDS):
        # The least load at these shares' prices, and the band shared for that and for what it was before.
        weight, _ = _tangents(work, band, shares, high)
        if weight is None:
            break
        kept = np.ones(work.mass.shape)
        worth = np.maximum(weight[work.device] * work.size, 1e-300)
        kept.ravel()[dropped_at_prices(work.mass, worth, may_drop, budget)[0]] = 0.0
        loads += 2.0 / (number + 2.0) * (_loads(work, kept) - loads)
        shares, high = _shared(work, band, loads)

    def impossible(seconds: float) -> bool:
        weight, limit = _tangents(work, band, shares, seconds)
        return weight is not None and _least(work, weight, may_drop, budget) > limit * (1 + 1e-9)

    # Whatever shares the tangents are drawn at, what they rule out is impossible.
    low, high = 0.0, 2.0 * high
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if impossible(middle) else (low, middle)
    low = max(0.0, low - 2 * free_s)
    if band.links.rule.kind == "table":  # where all of the band may mean less of a rate
        return low
    # Nor is anybody faster than with all of the band, which counts where the rates have a limit.
    most = band.links.with_shares(band.allocator.limits(band.links)[1])
    saved_s = np.full(len(work.fixed_s), 2 * free_s) + band.at(most).bits_s(free_bits)
    alone = lower_bound_s(view._replace(costs=band.at(most)), tau, most_mass, saved_s)
    return max(low, alone)


def _least(work: _Work, weight: Floats, may_drop: NDArray[bool_], budget: float) -> float:
    """Return a bound on the weighted load that is kept (Lagrangian duality)."""
    kept = weight[work.device] * work.size
    worth = np.maximum(kept, 1e-300)
    places, _ = dropped_at_prices(work.mass, worth, may_drop, budget)
    rates = (worth / np.maximum(work.mass, 1e-300)).ravel()
    # What the last pair that goes is worth for its mass; where none goes, the first that would.
    prices = (0.0, float(rates[places[-1]]) if len(places) else float(rates.max()))
    return max(priced(kept, price * work.mass, may_drop) - price * budget for price in prices)


def _work_of(view: LayerView, band: Band, free_bits: float) -> _Work:
    pairs, costs = pairs_of(view, parts=True), view.costs
    devices, index, serving = len(pairs.seconds), view.routing.index, view.device_of
    row_bits, head_bits, fixed_s, pair_s = costs.sizes()
    computing = costs.parts_s(pairs.loads.counts, serving) + pair_s[serving]
    used = pairs.loads.counts > 0
    other_s = np.full(devices, np.inf)
    np.minimum.at(other_s, serving[used], computing[used])
    other_s[np.isinf(other_s)] = 0.0
    sharers = np.zeros(index.shape)
    for column in range(index.shape[1]):
        sharers += pairs.device == pairs.device[:, column : column + 1]
    # A row down that is shared: by how much the whole load is less, at the shares where that is most.
    size = 1.0 - (1.0 - 1.0 / sharers) * _down_part(band, devices)[pairs.device]
    # The head of a message goes first. Without a bucket it is left out: a device that is left out has none.
    free = np.full(devices, max(0.0, free_bits - head_bits) / row_bits)
    return _Work(pairs.mass, pairs.device, size, np.array([row_bits, row_bits]), other_s, fixed_s, free)


def _down_part(band: Band, devices: int) -> Floats:
    """Return (D,) the largest part of a pair's time on a device's links that its row down can be."""
    links, rule = band.links, band.links.rule
    low, high = band.allocator.limits(band.links)
    offered = offered_mbit(rule, links.states[:, None], np.stack([low, high], axis=1))
    within = (offered[:, 0] >= rule.min_mbit) & (offered[:, 1] <= rule.max_mbit)
    if rule.kind == "table" or not band.allocator.one_share(band.links):
        return np.ones(devices)
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = offered[1] / (offered[0] + offered[1])
    # Between the ends the ratio of both rates goes one way only, unless a limit is in between.
    return np.where(within.all(axis=0), parts.max(axis=0), 1.0)


def _loads(work: _Work, kept: Floats) -> Floats:
    """Return (D,) the load that is kept."""
    weights = (kept * work.size).ravel()
    loads: Floats = np.bincount(work.device.ravel(), weights=weights, minlength=len(work.fixed_s)).astype(
        float
    )
    return loads


def _shared(work: _Work, band: Band, loads: Floats) -> Tuple[Floats, float]:
    """Return the shares (2, D) for some loads, and the time that they take then."""
    paid = np.maximum(loads - work.free, 1e-9)
    demand = Demand(work.fixed_s + loads * work.other_s, paid * work.bits[0], paid * work.bits[1], loads > 0)
    links = band.given(demand)
    down, up = links.rates_mbit()
    seconds = demand.fixed_s + 1e-6 * (demand.downlink_bits / down + demand.uplink_bits / up)
    return links.shares, float(seconds[demand.loaded].max())


def _tangents(work: _Work, band: Band, shares: Floats, seconds: float) -> Tuple[Optional[Floats], float]:
    """Return (D,) weights of the devices' loads, and what the weighted load can be at most within a time.

    ``None`` for weights where nothing is known: in that time all can do only what buckets let pass.
    """
    links = band.links
    low, high = band.allocator.limits(band.links)
    rate, slope = _lines(links.rule, links.states, shares, low, high)
    # (y - free) * links + y * computation <= seconds - fixed, so of the computation of what is free nothing is left.
    left = seconds - work.fixed_s - work.free * work.other_s
    able = left > 0.0
    late = seconds <= work.fixed_s
    if not (able.any() or late.any()):
        return None, np.inf
    bit_s = 1e-6 / rate
    each_s = work.bits @ bit_s + work.other_s
    most = np.where(able, left / each_s, 0.0) + work.free * ~late
    # d most / d share, through each rate.
    rise = np.where(able, left / each_s**2, 0.0) * (work.bits[:, None] * bit_s / rate) * slope
    value = shares
    if band.allocator.one_share(band.links):
        # Both directions have the same part of their bands: one variable.
        bands = high[:, :1] / np.maximum(high[:1, :1], 1e-300)
        rise, value = (rise * bands).sum(axis=0, keepdims=True), shares[:1]
        low, total = low[:1], band.allocator.bands[:1]
    else:
        total = band.allocator.bands
    strength = rise.sum(axis=0)
    weight = np.where(strength > 0.0, 1.0 / np.maximum(strength, 1e-300), 0.0)
    weight[~able] = 0.0
    usual = float(weight.max()) or 1.0
    # Who has not even time for a round trip can do nothing; who has no time beyond what is free is not reckoned with.
    weight[late] = 1e3 * usual
    # The weighted sum of all tangents; the shares that make it largest are the floors, and the rest for one device.
    gain = rise * weight
    room = gain.max(axis=1) * (total - low.sum(axis=1)) + (gain * low).sum(axis=1)
    limit = float((weight * most).sum() - (gain * value).sum() + room.sum())
    return weight, limit


def _lines(rule: Rule, states: Floats, shares: Floats, low: Floats, high: Floats) -> Tuple[Floats, Floats]:
    """Return lines above the rates over all shares that a device can have: (2, D) Mbit/s at ``shares``, and slopes."""

    def rates(at: Floats) -> Floats:
        return np.minimum(offered_mbit(rule, states, at), rule.max_mbit)

    here = rates(shares)
    if rule.kind == "table":
        # Its rate is never above efficiency times width, for each row as far as its SNR is reached.
        best = max(rule.efficiencies) * (1 - rule.overhead) * rule.scale * rule.bandwidth_mhz
        widest = states / (rule.thresholds[0] * rule.bandwidth_mhz)
        ends = [states / (threshold * rule.bandwidth_mhz) for threshold in rule.thresholds]
        slope = np.minimum(here / np.maximum(shares, 1e-300), best)
        slope = np.where(shares >= widest, 0.0, slope)
        at = [np.clip(end * (1 - 1e-9), low, high) for end in ends] + [low, high]
        above = np.maximum.reduce([rates(each) - slope * (each - shares) for each in at])
        here = np.maximum(here, above)
    else:
        step = np.maximum(shares * _EPSILON, 1e-12)
        # The secant to the left is steeper than the tangent; from the point to its right it lies above the curve.
        slope = np.maximum((here - rates(shares - step)) / step, 0.0)
        after = np.maximum((rates(shares + step) - here) / step, 0.0)
        # Above the curve: at both sides of the point, whichever slope in between is taken.
        here = here + step * np.maximum(slope - after, 0.0)
        slope = np.where(here >= rule.max_mbit, 0.0, slope)
    # The lowest rate is there however small the share: the line has to be above it where the share is least.
    here = here + np.maximum(rule.min_mbit - (here - slope * (shares - low)), 0.0)
    return np.maximum(here, 1e-12), slope
