"""Bandwidth for several layers at once: one allocation with which the sum of their latencies is least.

Over shares s, and T_i for layer i,

    minimise sum of T_i   subject to   fixed_ik + sum over directions of bits_ik / R_k(s_k) <= T_i   for each device k,
                                       sum of s_k <= 1,   s_k >= floor

which is WDMoE's allocation for a given selection (a reconstruction) in epigraph form. Under the linear rule and
Shannon's it is convex, and solved to a duality gap of 1e-7 of the objective
(:mod:`payloads.wdmoe.allocation.interior`).

Limits of the rates and tables are not convex. There a relaxed problem is solved, the limits left out and a table
smoothed or taken as linear at the rows in force, and its T_i are scaled until the smallest shares that reach them
(:mod:`payloads.wdmoe.allocation.inverse`) fit; a few times, from two beginnings, and the best is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from payloads.station.rates import offered_mbit, rates_mbit
from payloads.wdmoe.allocation.bandwidth import DEFAULT_FLOOR, kept_share
from payloads.wdmoe.allocation.interior import GAP, Epigraph, solve
from payloads.wdmoe.allocation.inverse import Inverse, Sent, inverse_of, share_of_rate
from payloads.wdmoe.allocation.minmax import minmax
from payloads.wdmoe.allocation.minmax_many import least_time

if TYPE_CHECKING:
    from numpy import bool_
    from numpy.typing import NDArray

    from payloads.linkd.rule import Rule
    from payloads.station.link_state import LinkState
    from payloads.wdmoe.latency import Demand

    Array = NDArray[np.float64]
    Mask = NDArray[bool_]

__all__ = ["epigraph"]

_ROUNDS = 6
#: Layers that are solved for themselves where a limit or a table matters.
_MOST_EACH = 32
#: What a round has to gain for another one to be worth it.
_ENOUGH = 1e-9
#: The same where a request waits for the answer, and what gap is small enough there.
_QUICK_ROUNDS = 4
_QUICK_ENOUGH = 1e-4
_QUICK_GAP = 1e-5
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
    quick: bool = False,
) -> Array:
    """Share both bands once for all layers so that the sum over layers of the slowest device's time is least.

    Args:
        demands: What each layer asks of the links.
        links: The links as they are; their shares do not matter.
        budget: What of the downlink's and of the uplink's band there is to share.
        directions: ``same`` (one share for both directions) or ``separate``.
        floor: The part of the budget that every device keeps; at most half of an equal share.
        quick: Whether somebody waits for it: a gap of 1e-5 is enough then, and where a limit or a table matters fewer
            beginnings are tried.

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
        quick=quick,
    )

    def seed() -> Array:
        if quick:
            return _in_force(links, layers.floor, layers.same)
        return _mean_of_each(taking, links, bands, directions, floor)

    shares: Array = _best(layers, seed) * bands[:, None]
    return shares


def _in_force(links: LinkState, floor: float, same: bool) -> Array:
    """Return the links' shares, (2, D), as fractions of what they are together, each at least the floor."""
    shares = np.repeat(links.shares.mean(axis=0)[None], 2, axis=0) if same else links.shares
    parts = shares / np.maximum(shares.sum(axis=1, keepdims=True), _LEAST_SHARE)
    above = np.maximum(parts - floor, 1e-12)
    room = 1.0 - floor * shares.shape[1]
    found: Array = floor + above * (room / above.sum(axis=1, keepdims=True))
    return found


class _Layers(NamedTuple):
    """I layers of D devices that get one allocation together; shares are fractions of what there is to share."""

    rule: Rule
    fixed_s: Array
    sent: Sent
    loaded: Mask
    floor: float
    same: bool
    quick: bool

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


def _best(layers: _Layers, seed: Callable[[], Array]) -> Array:
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
    for begun in (seed(), shares):
        shares, before = begun, np.inf
        for left in reversed(range(_QUICK_ROUNDS if layers.quick else _ROUNDS)):
            found = [shares, _fitted(layers, inverses, shares)]
            sums = [float(layers.tops_s(each).sum()) for each in found]
            shares = found[int(np.argmin(sums))]
            if min(sums) < best_s:
                best, best_s = shares, min(sums)
            if not left or not min(sums) < before * (1 - (_QUICK_ENOUGH if layers.quick else _ENOUGH)):
                break
            before = min(sums)
            high, lost = layers.limited(shares)
            shares = _relaxed(layers, high, lost | dead, shares)
    return best


def _mean_of_each(
    demands: Sequence[Demand], links: LinkState, bands: Array, directions: str, floor: float
) -> Array:
    """Return the mean of the shares (2, D) that would be best for each layer alone; with one layer the best."""
    few = demands[:: max(1, len(demands) // _MOST_EACH)]
    each = [minmax(demand, links, bands.tolist(), directions, floor) for demand in few]
    mean: Array = np.mean(each, axis=0) / bands[:, None]
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
    problem = Epigraph(held_s, work, sigma, layers.loaded, low, layers.same)
    return solve(problem, _QUICK_GAP if layers.quick else GAP).shares


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

    device = np.arange(parts_s.shape[2])

    def smallest(factor: float) -> Tuple[Array, Array]:
        """Return the smallest shares (1 or 2, D), and how fast they fall as the factor rises."""
        span = np.where(layers.loaded, factor * tops_s[:, None] - layers.fixed_s, 1e300)
        shares, bends = [], []
        for inverse, part in zip(inverses, divided):
            needs, falls = inverse(part * span)
            # Each device has what the layer that needs most needs.
            most = needs.argmax(axis=0), device
            shares.append(needs[most])
            bends.append((falls * part * tops_s[:, None])[most])
        return np.stack(shares), np.stack(bends)

    def area(factor: Array) -> Tuple[Array, Array, Array]:
        shares, bends = smallest(float(factor[0]))
        fuller = int(shares.sum(axis=1).argmax())
        share, bend = shares[fuller], bends[fuller]
        falls = np.where(bend > 0, share, 0.0).sum(keepdims=True)
        return falls, np.where(bend > 0, 0.0, share).sum(keepdims=True), bend.sum(keepdims=True)

    best_s = np.stack([inverse.best_s for inverse in inverses]) / divided
    needed = np.where(layers.loaded, layers.fixed_s + best_s, 0.0).max(axis=(0, 2)) / tops_s
    # With the shares themselves the factor is 1; no device has less than the floor, which may take a little more.
    most = 2.0
    while smallest(most)[0].sum(axis=1).max() > 1.0 and most < 1e12:
        most *= 2.0
    factor = least_time(area, np.array([needed.max()]), np.array([most]))
    found = np.minimum(smallest(float(factor[0]))[0], 1.0)
    if layers.rule.kind != "table":
        above = np.maximum(found - layers.floor, 0.0)
        room = above.sum(axis=1, keepdims=True)
        left = 1.0 - found.sum(axis=1, keepdims=True)
        found = found + np.where(room > 0, above * (left / np.where(room > 0, room, 1.0)), 0.0)
    return np.repeat(found, 2, axis=0) if layers.same else found
