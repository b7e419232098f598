"""What a channel gives: the rates that each link has over time, in a few figures. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from payloads.linkd.channel import DIRECTIONS, Channel
from payloads.station.rates import channel_states, offered_mbit, start_shares
from testbed.links.channels.pathloss import Array

__all__ = ["QUANTILES", "describe", "weighted_quantiles"]

QUANTILES = {"p5_mbit": 0.05, "p50_mbit": 0.5, "p95_mbit": 0.95}


def describe(channel: Channel) -> list[dict[str, Any]]:
    """Return one row for each device and direction, with the shares that the channel starts with.

    Args:
        channel: The channel.

    Returns:
        Rows with ``device``, ``direction``, ``share``, ``mean_mbit``, ``p5_mbit``, ``p50_mbit``, ``p95_mbit`` and
        ``outage``: the part of the time (0 to 1) in which the channel offers less than the lowest rate.
    """
    lengths = np.asarray(channel.lengths_s())
    shares = start_shares(channel)
    offered = offered_mbit(channel.rule, channel_states(channel), shares)
    rates = np.clip(offered, channel.rule.min_mbit, channel.rule.max_mbit)
    rows = []
    for number, device in enumerate(channel.devices):
        for side, direction in enumerate(DIRECTIONS):
            values = rates[side, :, number]
            out = offered[side, :, number] < channel.rule.min_mbit
            quantiles = weighted_quantiles(values, lengths, list(QUANTILES.values()))
            rows.append(
                {
                    "device": device,
                    "direction": direction,
                    "share": float(shares[side, 0, number]),
                    "mean_mbit": float(values @ lengths / lengths.sum()),
                    **dict(zip(QUANTILES, quantiles, strict=True)),
                    "outage": float(lengths[out].sum() / lengths.sum()),
                }
            )
    return rows


def weighted_quantiles(values: Array, weights: Array, quantiles: Sequence[float]) -> list[float]:
    """Return for each quantile the lowest value that at least that part of the weight does not exceed."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order])
    places = np.searchsorted(below, np.asarray(quantiles) * below[-1] * (1 - 1e-12))
    return [float(value) for value in values[order][np.minimum(places, len(values) - 1)]]
