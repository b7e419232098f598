"""The rule of a channel for whole arrays of states: the same rates as payloads.linkd.rule gives one by one. Pure.

It stands here and not beside the rule because linkd itself runs without NumPy.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from payloads.linkd.channel import Channel, Rule

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["channel_states", "offered_mbit", "rates_mbit", "start_shares"]


def offered_mbit(rule: Rule, states: Any, shares: Any) -> Array:
    """Return what the channel offers, in Mbit/s, for states and shares of shapes that go together."""
    state, share = np.broadcast_arrays(np.asarray(states, float), np.asarray(shares, float))
    if rule.kind == "linear":
        linear: Array = state * share
        return linear
    band = share * rule.bandwidth_mhz
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        snr = state / band
    usable = (band > 0) & np.isfinite(snr)
    snr = np.where(usable, snr, 0.0)
    if rule.kind == "shannon":
        rates = band * (np.log1p(snr) / math.log(2)) * rule.scale
    else:
        row = np.searchsorted(np.asarray(rule.thresholds), snr, side="right") - 1
        efficiency = np.where(row >= 0, np.asarray(rule.efficiencies)[np.maximum(row, 0)], 0.0)
        rates = band * efficiency * (1 - rule.overhead) * rule.scale
    return np.where(usable, rates, 0.0)


def rates_mbit(rule: Rule, states: Any, shares: Any) -> Array:
    """Return the rates that links are given, in Mbit/s, for states and shares of shapes that go together."""
    return np.clip(offered_mbit(rule, states, shares), rule.min_mbit, rule.max_mbit)


def channel_states(channel: Channel) -> Array:
    """Return a channel's states, of shape (direction, block, device); downlink first."""
    return np.array([channel.downlink, channel.uplink], dtype=float)


def start_shares(channel: Channel) -> Array:
    """Return the shares that a channel starts with, of shape (direction, 1, device)."""
    return np.array([[channel.shares_downlink], [channel.shares_uplink]], dtype=float)
