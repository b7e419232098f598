"""How long a layer's dispatches take on links whose rates change while they are on their way.

A policy decides by the rates at the moment when it decides, and takes every link to be idle. What it decided is then
carried here: the bits of a message pass at the rate of the block that they are in, and a token bucket that an earlier
message has emptied holds the next one back, as :mod:`payloads.wdmoe.buckets` has it for links of fixed rates.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from payloads.linkd.channel import Channel
from payloads.linkd.model import DEFAULT_SLACK_US, Framing
from payloads.station.link_state import LinkState
from payloads.station.rates import channel_states, rates_mbit
from payloads.wdmoe.latency import LatencyModel
from payloads.wdmoe.routing import Loads

__all__ = ["Carried", "Carrier"]

Floats = NDArray[np.float64]
_GRACE_S = 1e-6  # as in payloads.linkd.channel: who comes just before a block is in it


class Carried(NamedTuple):
    """When the dispatches of a layer did what, in seconds on the trial's clock; (D,), meaningless without a load.

    Attributes:
        loaded: Whether the device was sent anything.
        received: The device has all of it.
        replied: The device begins to send its answer.
        done: The base station has all of the answer.
    """

    loaded: NDArray[np.bool_]
    received: Floats
    replied: Floats
    done: Floats


class Carrier:
    """The links of one trial: what they carry, and what their token buckets remember.

    Args:
        channel: The channel, whose clock is the trial's; None where nothing shapes the links and bits take no time.
        model: The latency model.
        delay_ms: (D,), the one-way delay that each link is given beside its rate.
    """

    def __init__(self, channel: Channel | None, model: LatencyModel, delay_ms: Floats) -> None:
        self._channel = channel
        self._delay_ms = delay_ms
        # The part of a demand's fixed time that is not computation: half of it is the way there, half the way back.
        trips = "round-trip" in model.terms
        fixed_ms = np.array([speed.fixed_ms or 0.0 for speed in model.speeds])
        self._way_s = (fixed_ms + 2 * delay_ms) / 2e3 * trips
        self._pair_way_s = np.array([speed.pair_ms for speed in model.speeds]) / 2e3 * trips
        self._remembers = "framing" in model.terms and not model.first_frame
        # Every bit of a message, the first frame's too: what of them a bucket lets pass at once is counted here.
        self._whole = model.with_first_frame(True) if self._remembers else model
        self._frame_bits = 8.0 * Framing.of_mtu(model.mtu).frame_bytes
        self._saved_bits = np.full((2, len(model.devices)), np.inf)
        self._at_s = np.zeros((2, len(model.devices)))
        if channel is not None:
            columns = [channel.devices.index(name) for name in model.devices]
            self._states = channel_states(channel)[:, :, columns]
            self._ends = np.array([*channel.t_s[1:], channel.duration_s])

    def carry(self, begin: Floats, loads: Loads, links: LinkState | None) -> Carried:
        """Carry the dispatches of a layer.

        Args:
            begin: (D,), when each begins, in seconds since the trial's start; it never goes back.
            loads: What is sent where.
            links: The links as they are then; None where nothing shapes them.
        """
        demand = self._whole.demand(loads, self._delay_ms)
        way_s = (self._way_s + self._pair_way_s * loads.pairs) * demand.loaded
        compute_s = demand.fixed_s - 2 * way_s
        if links is None or self._channel is None:
            received = begin + way_s
            replied = received + compute_s
            return Carried(demand.loaded, received, replied, replied + way_s)
        rates = links.rates_mbit() * 1e6
        received = self._sent(0, begin, np.asarray(demand.downlink_bits, float), links, rates[0]) + way_s
        replied = received + compute_s
        done = self._sent(1, replied + way_s, np.asarray(demand.uplink_bits, float), links, rates[1])
        return Carried(demand.loaded, received, replied, done)

    def _sent(self, row: int, begin_s: Floats, bits: Floats, links: LinkState, rate: Floats) -> Floats:
        """Return when each device's message has left its link; a device without one is left as it is."""
        if not self._remembers:
            return self._through(row, begin_s, bits, links, rate)
        loaded = bits > 0
        # What an idle link earned is reckoned at the rate that it has now.
        earned = np.maximum(begin_s - self._at_s[row], 0.0) * rate
        full = self._frame_bits + DEFAULT_SLACK_US / 1e6 * rate
        saved = np.minimum(full, self._saved_bits[row] + earned)
        end_s = self._through(row, begin_s, np.maximum(bits - saved, 0.0), links, rate)
        self._saved_bits[row] = np.where(loaded, np.maximum(saved - bits, 0.0), self._saved_bits[row])
        self._at_s[row] = np.where(loaded, end_s, self._at_s[row])
        return end_s

    def _through(self, row: int, begin_s: Floats, bits: Floats, links: LinkState, rate: Floats) -> Floats:
        """Return when the last bit of each device's message has passed, by the rates of the blocks that it meets."""
        channel = self._channel
        assert channel is not None
        end_s: Floats = begin_s + bits / rate
        going = np.flatnonzero(bits > 0)
        if len(self._ends) == 1 or not len(going):
            return end_s
        # Which block each device is in, counted from the channel's first start.
        count, length_s = len(self._ends), channel.duration_s
        cycle = np.floor((begin_s + _GRACE_S) / length_s).astype(np.int64)
        phase = begin_s + _GRACE_S - cycle * length_s
        block = cycle * count + np.minimum(np.searchsorted(self._ends, phase, side="right"), count - 1)
        now, left = begin_s.copy(), bits.astype(float)
        while len(going):
            cycle, number = np.divmod(block[going], count)
            until = cycle * length_s + self._ends[number]
            state = self._states[row, number, going]
            speed = rates_mbit(channel.rule, state, links.shares[row, going]) * 1e6
            passes = speed * np.maximum(until - now[going], 0.0)
            last = left[going] <= passes
            over = going[last]
            now[over] += left[over] / speed[last]
            going = going[~last]
            left[going] -= passes[~last]
            now[going] = np.maximum(now[going], until[~last])
            block[going] += 1
        return now
