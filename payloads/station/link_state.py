"""The links at one moment, and links that exist in a virtual time only.

What the base station shapes (linkd) and what a simulator or a quality pass imagines is the same to a policy: a rule, a
state and a share for each device and direction. Row 0 is the downlink, row 1 the uplink; columns are devices, in the
order of the latency model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Sequence

import numpy as np

from payloads.linkd.channel import Channel, ChannelError, Rule
from payloads.station.rates import channel_states, rates_mbit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["LinkState", "VirtualLinks"]

_SHARE_SLACK = 1e-9


@dataclass(frozen=True)
class LinkState:
    """The links' states and shares, and what makes rates of them.

    Attributes:
        rule: What makes a rate of a state and a share.
        states: (2, D), not negative; their unit is the rule's.
        shares: (2, D), of the whole band, not negative.
    """

    rule: Rule
    states: Array
    shares: Array

    def rates_mbit(self) -> Array:
        """Return the rates in force, (2, D), in Mbit/s."""
        return rates_mbit(self.rule, self.states, self.shares)

    def with_shares(self, shares: Array) -> LinkState:
        """Return the same links with other shares, (2, D)."""
        return LinkState(self.rule, self.states, shares)

    def with_states(self, states: Array) -> LinkState:
        """Return the same links in other states, (2, D)."""
        return LinkState(self.rule, states, self.shares)


class VirtualLinks:
    """A channel under a clock that the caller holds; nothing real is shaped.

    Args:
        channel: The channel.
        devices: The devices' names, in the order of the columns.

    Raises:
        ChannelError: The channel knows no such device.
    """

    def __init__(self, channel: Channel, devices: Sequence[str]) -> None:
        at = {name: number for number, name in enumerate(channel.devices)}
        for name in devices:
            if name not in at:
                raise ChannelError(f"the channel has no device {name!r}; it has: {', '.join(at)}")
        columns = [at[name] for name in devices]
        self._channel = channel
        self._states = np.ascontiguousarray(channel_states(channel)[:, :, columns].transpose(1, 0, 2))
        self._shares: Array = np.array([channel.shares_downlink, channel.shares_uplink], float)[:, columns]
        #: What the channel's other devices have of both bands, and keep.
        self._others = np.array([sum(channel.shares_downlink), sum(channel.shares_uplink)])
        self._others -= self._shares.sum(axis=1)
        self._block = -1
        self._now = LinkState(channel.rule, self._states[0], self._shares)
        self.changes = 0

    @property
    def blocks(self) -> int:
        """How many blocks the channel has before it starts again."""
        return len(self._states)

    @property
    def shares(self) -> Array:
        """The shares in force, (2, D)."""
        return self._shares

    def at(self, elapsed_s: float) -> LinkState:
        """Return the links at a time, in seconds since the channel was started."""
        return self.at_block(self._channel.block_at(elapsed_s))

    def at_block(self, block: int) -> LinkState:
        """Return the links in a block; after the last comes the first again."""
        block %= len(self._states)
        if block != self._block:
            self._block = block
            self._now = LinkState(self._channel.rule, self._states[block], self._shares)
        return self._now

    def best(self, from_s: float, to_s: float) -> LinkState:
        """Return the links as :meth:`at` does, each in the best state that it is in at any time from one to another.

        Args:
            from_s: A time, in seconds since the channel was started.
            to_s: A later one.
        """
        count = len(self._states)
        first, last = self._channel.block_at(from_s), self._channel.block_at(to_s)
        if count == 1 or (first == last and to_s - from_s < self._channel.duration_s):
            return self.at_block(first)
        if to_s - from_s >= self._channel.duration_s:
            blocks = list(range(count))
        else:
            blocks = [(first + number) % count for number in range((last - first) % count + 1)]
        return self.at_block(first).with_states(self._states[blocks].max(axis=0))

    def give(self, shares: Any, why: str) -> None:
        """Put other shares in force.

        Args:
            shares: (2, D), of the whole band.
            why: What they are for; said when they are refused.

        Raises:
            ChannelError: A share is negative or none, or a band is shared out more than once.
        """
        given = np.array(shares, float)
        if given.shape != self._shares.shape:
            raise ChannelError(
                f"{why}: shares of shape {self._shares.shape} were expected, not {given.shape}"
            )
        totals = given.sum(axis=1) + self._others
        if not (given >= 0).all() or not (totals <= 1 + _SHARE_SLACK).all():
            text = "shares of at least 0 and of at most 1 together were expected"
            raise ChannelError(f"{why}: {text}, not {totals[0]:.6g} and {totals[1]:.6g}")
        self._shares = given
        self._block = -1
        self.changes += 1
