"""A scenario's links for those who only imagine them: what a quality pass lets a policy see. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from payloads.linkd.channel import Channel, linear_channel
from testbed.config.campaign_base import CampaignBase
from testbed.config.inventory import Inventory
from testbed.links.backends import is_shaped
from testbed.links.channels import channel_of

__all__ = ["Imagined", "imagined_links"]


@dataclass(frozen=True)
class Imagined:
    """The links of one scenario.

    Attributes:
        scenario: Its name.
        channel: Its channel, that of its first repeat; links of fixed rates are a channel of one block. None where
            nothing shapes the lab's links.
        delay_ms: The one-way delay that each device's link has beside its rate.
    """

    scenario: str
    channel: Channel | None
    delay_ms: Mapping[str, float]


def imagined_links(campaign: CampaignBase, inventory: Inventory, name: str) -> Imagined:
    """Return the links of a scenario.

    Args:
        campaign: The campaign.
        inventory: The lab.
        name: The scenario's name.
    """
    scenario = campaign.scenario(name)
    devices = [device.name for device in inventory.devices]
    channel: Channel | None = None
    if is_shaped(inventory):
        channel = channel_of(scenario, devices, seed=campaign.seed, repeat=0)
        if channel is None:
            rates = {device: scenario.rates(device) for device in devices}
            channel = linear_channel({n: (rate.downlink_mbit, rate.uplink_mbit) for n, rate in rates.items()})
    return Imagined(name, channel, {device: scenario.impairments(device)[0] for device in devices})
