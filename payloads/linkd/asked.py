"""What rates are asked for: links of fixed rates or a channel, and the shares of the bandwidth. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

from payloads.linkd.channel import Channel, ChannelError, Rates, Rule, changed_shares, equal_shares
from payloads.linkd.errors import LinksError
from payloads.linkd.links import Link, parse_rates, with_rates
from payloads.linkd.model import MAX_RATE_MBIT, MIN_RATE_MBIT

__all__ = ["Asked", "ask"]

#: States by device: downlink, uplink; None where the direction is left alone and nobody knows.
States = Dict[str, Tuple[Optional[float], Optional[float]]]

_LINEAR = Rule("linear", min_mbit=MIN_RATE_MBIT, max_mbit=MAX_RATE_MBIT)


@dataclass(frozen=True)
class Asked:
    """What the links are to be, and why.

    Attributes:
        links: The links, with the rates in force.
        base: The rate of each device and direction with an equal share of the band; None where the channel rules.
        shares: The share of the band of each device and direction.
        channel: The channel, where there is one. It may have more devices than there are links.
        block: The block of the channel that is in force; None: its mean over time.
    """

    links: Tuple[Link, ...]
    base: Optional[Rates]
    shares: Dict[str, Tuple[float, float]]
    channel: Optional[Channel] = None
    block: Optional[int] = None

    def _in_force(self) -> Asked:
        """Return the same with the links' rates as they follow from the rest."""
        if self.base is not None:
            rates = _shared(self.base, self.shares)
        else:
            assert self.channel is not None
            if self.block is None:
                rates = self.channel.mean_rates(self.shares)
            else:
                rates = self.channel.rates(self.block, self.shares)
        links = tuple(with_rates(link, *rates[link.device]) for link in self.links)
        return replace(self, links=links)

    def at_block(self, block: int) -> Asked:
        """Return the same with a block of the channel in force."""
        return replace(self, base=None, block=block)._in_force()

    @property
    def rule(self) -> Rule:
        """What makes the rates in force of :meth:`states` and the shares."""
        return (
            _LINEAR
            if self.channel is None or self.base is not None or self.block is None
            else self.channel.rule
        )

    def states(self) -> States:
        """Return the state of each link, from which :attr:`rule` makes the rates for whatever shares.

        The means of a channel that does not play yet are no state of it: there it is what a linear rule needs.
        """
        if self.channel is not None and self.base is None and self.block is not None:
            column = {name: number for number, name in enumerate(self.channel.devices)}
            down, up = self.channel.downlink[self.block], self.channel.uplink[self.block]
            return {link.device: (down[column[link.device]], up[column[link.device]]) for link in self.links}
        if self.base is not None:
            count = len(self.shares)
            return {
                link.device: (
                    None if link.downlink_mbit is None else self.base[link.device][0] * count,
                    None if link.uplink_mbit is None else self.base[link.device][1] * count,
                )
                for link in self.links
            }
        return {
            link.device: (
                _whole_band(link.downlink_mbit, self.shares[link.device][0]),
                _whole_band(link.uplink_mbit, self.shares[link.device][1]),
            )
            for link in self.links
        }

    @property
    def varies(self) -> bool:
        """Whether the rates change by themselves."""
        return self.channel is not None and len(self.channel.t_s) > 1

    def highest(self) -> Tuple[Link, ...]:
        """Return the links with the highest rate that each comes to with the present shares, whenever that is."""
        if self.channel is None:
            return self.links
        peaks = self.channel.highest_rates(self.shares)
        return tuple(with_rates(link, *peaks[link.device]) for link in self.links)

    def rerated(self, rates: Any) -> Asked:
        """Return the same with other base rates of some devices.

        What a channel gave the others becomes their base.

        Args:
            rates: Device -> ``downlink_mbit``, ``uplink_mbit`` or one of them.

        Raises:
            LinksError: A device has no link, or a rate is out of range.
        """
        given = parse_rates(rates, self.links)
        base = dict(self.base) if self.base is not None else self._base_of_channel()
        for device, (down, up) in given.items():
            old_down, old_up = base[device]
            base[device] = (old_down if down is None else down, old_up if up is None else up)
        return replace(self, base=base, block=None)._in_force()

    def _base_of_channel(self) -> Rates:
        result: Rates = {}
        count = len(self.shares)
        for link in self.links:
            pair = zip((link.downlink_mbit or 0.0, link.uplink_mbit or 0.0), self.shares[link.device])
            down, up = (rate / (share * count) if share else rate for rate, share in pair)
            result[link.device] = (down, up)
        return result

    def allocated(self, shares: Any) -> Asked:
        """Return the same with other shares of the band.

        Raises:
            LinksError: A device is unknown, or a direction's shares add up to more than 1.
        """
        if isinstance(shares, Mapping):
            for link in self.links:
                given = shares.get(link.device)
                for direction in given if isinstance(given, Mapping) else ():
                    if getattr(link, f"{direction}_mbit", 0.0) is None:
                        text = f"its {direction} was set to be left alone"
                        raise LinksError(f"shares: {link.device}: {text}")
        try:
            changed = changed_shares(self.shares, shares)
        except ChannelError as error:
            raise LinksError(str(error)) from None
        return replace(self, shares=changed)._in_force()


def ask(links: Sequence[Link], channel: Optional[Channel] = None) -> Asked:
    """Return what is asked for at first: the links' own rates, or a channel's means.

    Raises:
        LinksError: The channel does not have one of the devices.
    """
    if channel is None:
        base = {link.device: (link.downlink_mbit or 0.0, link.uplink_mbit or 0.0) for link in links}
        return Asked(tuple(links), base, equal_shares([link.device for link in links]))
    missing = sorted({link.device for link in links} - set(channel.devices))
    if missing:
        raise LinksError(f"channel: it has no {missing[0]}; there are: {', '.join(channel.devices)}")
    return Asked(tuple(links), None, channel.shares(), channel)._in_force()


def _whole_band(rate_mbit: Optional[float], share: float) -> Optional[float]:
    """Return what a link would have with the whole band, as a linear rule has it."""
    return rate_mbit / share if rate_mbit is not None and share > 0 else rate_mbit


def _shared(base: Rates, shares: Mapping[str, Tuple[float, float]]) -> Rates:
    count = len(shares)

    def rate(base_mbit: float, share: float) -> float:
        if share == 1 / count:
            return base_mbit
        return min(max(base_mbit * share * count, MIN_RATE_MBIT), MAX_RATE_MBIT)

    return {
        name: (rate(down, shares[name][0]), rate(up, shares[name][1])) for name, (down, up) in base.items()
    }
