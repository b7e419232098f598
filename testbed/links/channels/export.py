"""A channel's rates written as traces, so that what was drawn here can be played elsewhere, or here again."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from payloads.linkd.channel import Channel
from payloads.station.rates import channel_states, rates_mbit, start_shares
from testbed.links.channels.traces import Trace, write_csv, write_mahimahi

__all__ = ["channel_traces", "write_traces"]


def channel_traces(channel: Channel) -> dict[str, Trace]:
    """Return each device's rates over time, with the shares that the channel starts with."""
    rates = rates_mbit(channel.rule, channel_states(channel), start_shares(channel))
    t_s = np.asarray(channel.t_s)
    return {
        name: Trace(t_s, channel.duration_s, rates[0, :, number], rates[1, :, number])
        for number, name in enumerate(channel.devices)
    }


def write_traces(channel: Channel, folder: Path) -> list[Path]:
    """Write each device's rates as `NAME.csv`, and as `NAME.down` and `NAME.up` for Mahimahi.

    Args:
        channel: The channel.
        folder: Where to; it is made where there is none.

    Returns:
        The files, in the devices' order.

    Raises:
        OSError: A file cannot be written.
        ValueError: A Mahimahi trace would take too many lines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, trace in channel_traces(channel).items():
        csv, down, up = (folder / f"{name}.{ending}" for ending in ("csv", "down", "up"))
        write_csv(csv, trace)
        write_mahimahi(down, trace, "downlink")
        write_mahimahi(up, trace, "uplink")
        written += [csv, down, up]
    return written
