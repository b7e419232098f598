"""Bandwidth for several layers at once: one allocation with which the sum of their latencies is least.

Over shares s, and T_i for layer i,

    minimise sum of T_i   subject to   fixed_ik + sum over directions of bits_ik / R_k(s_k) <= T_i   for each device k,
                                       sum of s_k <= 1,   s_k >= floor

which is WDMoE's allocation for a given selection (a reconstruction) in epigraph form. Under the linear rule and
Shannon's it is convex, and solved to a duality gap of 1e-7 of the objective (:mod:`payloads.wdmoe.interior`).

Limits of the rates and tables are not convex. There a relaxed problem is solved, the limits left out and a table
smoothed or taken as linear at the rows in force, and its T_i are scaled until the smallest shares that reach them
(:mod:`payloads.wdmoe.inverse`) fit; a few times, from two beginnings, and the best is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from payloads.wdmoe.bandwidth import DEFAULT_FLOOR, kept_share
from payloads.wdmoe.interior import Epigraph, solve
from payloads.wdmoe.inverse import Inverse, Sent, inverse_of, share_of_rate
from payloads.wdmoe.minmax_many import least_time, many_same
from payloads.wdmoe.minmax_separate import many_separate
from payloads.wdmoe.rates import offered_mbit, rates_mbit

if TYPE_CHECKING:
    from numpy import bool_
    from numpy.typing import NDArray

    from payloads.linkd.rule import Rule
    from payloads.wdmoe.latency import Demand
    from payloads.wdmoe.link_state import LinkState

    Array = NDArray[np.float64]
    Mask = NDArray[bool_]

__all__ = ["epigraph"]

_ROUNDS = 6
#: Layers that are solved for themselves where a limit or a table matters.
_MOST_EACH = 32
#: Where a table's row is looked up for a device that has no band at all.
_LEAST_SHARE = 1e-6
_MBIT = 1e-6
_LN_2 = float(np.log(2.0))


def epigraph(
    demands: Sequence[Demand],
    links: LinkState,
    budget: Sequence[float] = (1.0, 1.0),
    directions: str = "same",
    floor: float = DEFAULT_FLOOR,
) -> Array:
    """Share both bands once for all layers so that the sum over layers of the slowest device's time is least.

    Args:
        demands: What each layer asks of the links.
        links: The links as they are; their shares do not matter.
        budget: What of the downlink's and of the uplink's band there is to share.
        directions: ``same`` (one share for both directions) or ``separate``.
        floor: The part of the budget that every device keeps; at most half of an equal share.

    Returns:
        (2, D) shares of the whole band, in each direction the budget together at most.
    """
    devices = links.states.shape[1]
    bands = np.asarray(budget, float)
    taking = [demand for demand in demands if demand.loaded.any()]
    if not taking:
        return np.repeat(bands[:, None] / devices, devices, axis=1)
    loaded = np.array([demand.loaded for demand in taking])
    bits = [[demand.downlink_bits for demand in taking], [demand.uplink_bits for demand in taking]]
    layers = _Layers(
        rule=links.rule,
        fixed_s=np.where(loaded, np.array([demand.fixed_s for demand in taking], float), 0.0),
        sent=Sent(
            mbit=np.where(loaded, np.array(bits, float) * _MBIT, 0.0),
            states=np.repeat(links.states[:, None].astype(float), len(taking), axis=1),
            bands=bands,
        ),
        loaded=loaded,
        floor=kept_share(floor, devices),
        same=directions == "same",
    )
    shares: Array = _best(layers) * bands[:, None]
    return shares


class _Layers(NamedTuple):
    """I layers of D devices that get one allocation together; shares are fractions of what there is to share."""

    rule: Rule
    fixed_s: Array
    sent: Sent
    loaded: Mask
    floor: float
    same: bool

    def parts_s(self, shares: Array) -> Array:
        """Return the time of each direction, (2, I, D), with shares (2, D)."""
        states = self.sent.states[:, 0]
        parts: Array = self.sent.mbit / self._rates(shares, states)[:, None]
        return parts

    def _rates(self, shares: Array, states: Array) -> Array:
        return rates_mbit(self.rule, states, shares * self.sent.bands[:, None])

    def tops_s(self, shares: Array) -> Array:
        """Return the layers' latencies, (I,), with shares (2, D)."""
        times = self.fixed_s + self.parts_s(shares).sum(axis=0)
        tops: Array = np.where(self.loaded, times, 0.0).max(axis=1)
        return tops

    def limited(self, shares: Array) -> Tuple[Mask, Mask]:
        """Return which links (2, D) meet the highest rate with shares (2, D), and which the lowest."""
        offered = offered_mbit(self.rule, self.sent.states[:, 0], shares * self.sent.bands[:, None])
        used = (self.sent.mbit > 0).any(axis=1)
        return used & (offered > self.rule.max_mbit), used & (offered < self.rule.min_mbit)


def _best(layers: _Layers) -> Array:
    """Return the best shares (2, D) that are found."""
    devices = layers.loaded.shape[1]
    equal = np.full((2, devices), 1.0 / devices)
    nothing = np.zeros(equal.shape, bool)
    dead = (layers.sent.mbit > 0).any(axis=1) & (layers.sent.states[:, 0] <= 0)
    shares = _relaxed(layers, nothing, dead, None)
    high, lost = layers.limited(shares)
    if layers.rule.kind != "table" and not (high | lost & ~dead).any():
        return shares
    inverses = _inverses(layers)
    best, best_s = equal, float(layers.tops_s(equal).sum())
    for seed in (_mean_of_each(layers), shares):
        shares, before = seed, np.inf
        for _ in range(_ROUNDS):
            found = [shares, _fitted(layers, inverses, shares)]
            sums = [float(layers.tops_s(each).sum()) for each in found]
            shares = found[int(np.argmin(sums))]
            if min(sums) < best_s:
                best, best_s = shares, min(sums)
            if not min(sums) < before * (1 - 1e-9):
                break
            before = min(sums)
            high, lost = layers.limited(shares)
            shares = _relaxed(layers, high, lost | dead, shares)
    return best


def _mean_of_each(layers: _Layers) -> Array:
    """Return the mean of the shares (2, D) that would be best for each layer alone; with one layer the best."""
    sent = layers.sent
    few = slice(0, None, max(1, len(layers.loaded) // _MOST_EACH))
    each = sent._replace(mbit=sent.mbit[:, few], states=sent.states[:, few])
    solver = many_same if layers.same else many_separate
    shares = solver(layers.rule, layers.fixed_s[few], each, layers.loaded[few], layers.floor)
    both = np.stack([shares, shares]) if layers.same else shares
    mean: Array = both.mean(axis=1)
    return mean


def _relaxed(layers: _Layers, high: Mask, lost: Mask, around: Optional[Array]) -> Array:
    """Return the best shares (2, D) of the convex problem without limits.

    Args:
        layers: The problem.
        high: (2, D), links that have the highest rate, with a share that suffices for it.
        lost: (2, D), links that have the lowest rate, whatever their share.
        around: (2, D), shares at whose efficiencies a table is taken as linear; ``None`` takes a smooth curve through
            its rows instead.
    """
    rule, sent = layers.rule, layers.sent
    states = sent.states[:, 0]
    width = sent.bands[:, None] * rule.bandwidth_mhz
    sigma: Optional[Array] = states / width
    pace = np.broadcast_to(width * rule.scale / _LN_2, states.shape)
    ends = np.ones(states.shape)
    if rule.kind == "shannon":
        ends = share_of_rate(states / width, rule.max_mbit / pace)
    elif rule.kind == "linear":
        sigma, pace = None, states * sent.bands[:, None]
        ends = rule.max_mbit / np.where(high, pace, 1.0)
    elif around is None:
        curve = np.log2(1.0 + np.asarray(rule.thresholds))
        pace = pace * (1 - rule.overhead) * float(np.mean(np.asarray(rule.efficiencies) / curve))
    else:
        some = np.maximum(around, _LEAST_SHARE)
        sigma, pace = None, rates_mbit(rule, states, some * sent.bands[:, None]) / some
        high, lost = np.zeros_like(high), np.zeros_like(lost)
    limit = np.where(high, rule.max_mbit, rule.min_mbit)
    limited = high | lost
    held_s = layers.fixed_s + (sent.mbit * (limited / limit)[:, None]).sum(axis=0)
    work = sent.mbit * np.where(limited, 0.0, 1.0 / np.where(pace > 0, pace, 1.0))[:, None]
    low = np.full(states.shape, layers.floor)
    if around is not None:
        low = np.where(high, np.maximum(np.minimum(ends, around), low), low)
    if layers.same:
        low = np.repeat(low.max(axis=0)[None], 2, axis=0)
    return solve(Epigraph(held_s, work, sigma, layers.loaded, low, layers.same)).shares


def _inverses(layers: _Layers) -> List[Inverse]:
    sides = [np.ones(2)] if layers.same else list(np.eye(2))
    return [
        inverse_of(
            layers.rule, layers.sent._replace(mbit=layers.sent.mbit * side[:, None, None]), layers.floor
        )
        for side in sides
    ]


def _fitted(layers: _Layers, inverses: Sequence[Inverse], shares: Array) -> Array:
    """Return the shares (2, D) that reach the latencies of other shares, all scaled by the least factor that fits.

    With separate shares each device's time is divided between its directions as those shares divide it.
    """
    tops_s, parts_s = layers.tops_s(shares), layers.parts_s(shares)
    total = parts_s.sum(axis=0)
    divided = parts_s / np.where(total > 0, total, 1.0) if len(inverses) == 2 else np.ones((1, *total.shape))
    divided = np.maximum(divided, 1e-9)

    def smallest(factor: float) -> Tuple[Array, Array]:
        span = np.where(layers.loaded, factor * tops_s[:, None] - layers.fixed_s, 1e300)
        found = [inverse(part * span) for inverse, part in zip(inverses, divided)]
        return np.stack([each[0].max(axis=0) for each in found]), span

    def area(factor: Array) -> Tuple[Array, Array, Array]:
        sums = smallest(float(factor[0]))[0].sum(axis=1)
        return np.zeros(1), np.array([sums.max()]), np.zeros(1)

    best_s = np.stack([inverse.best_s for inverse in inverses]) / divided
    needed = np.where(layers.loaded, layers.fixed_s + best_s, 0.0).max(axis=(0, 2)) / tops_s
    # With the shares themselves the factor is 1; no device has less than the floor, which may take a little more.
    most = 2.0
    while area(np.array([most]))[1][0] > 1.0 and most < 1e12:
        most *= 2.0
    factor = least_time(area, np.array([needed.max()]), np.array([most]))
    found = np.minimum(smallest(float(factor[0]))[0], 1.0)
    if layers.rule.kind != "table":
        above = np.maximum(found - layers.floor, 0.0)
        room = above.sum(axis=1, keepdims=True)
        left = 1.0 - found.sum(axis=1, keepdims=True)
        found = found + np.where(room > 0, above * (left / np.where(room > 0, room, 1.0)), 0.0)
    return np.repeat(found, 2, axis=0) if layers.same else found
