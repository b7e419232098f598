"""What a campaign may ask of its links, by what shapes them in the lab."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from testbed.config.model import Problem

if TYPE_CHECKING:
    from testbed.config.campaign_base import CampaignBase
    from testbed.config.inventory import Inventory, Network
    from testbed.config.scenario import LinkScenario
    from testbed.config.yaml import Place

__all__ = ["IMPAIRMENTS", "no_impairments", "shaping_problems", "unshared_problems"]

IMPAIRMENTS = ("delay_ms", "jitter_ms", "loss_percent")


def shaping_problems(campaign: CampaignBase, inventory: Inventory) -> Iterator[Problem]:
    """Yield what a campaign asks for and the lab's `network.shaping` cannot give.

    Args:
        campaign: The campaign.
        inventory: The lab's inventory.
    """
    network = inventory.network
    if network.shaping == "none":
        yield from _unshaped_problems(campaign)
    if why := no_impairments(network):
        for number, scenario in enumerate(campaign.scenarios):
            yield from _impairment_problems(("scenarios", number, "links"), scenario, why)


def no_impairments(network: Network) -> str:
    """Return why the links of a lab have no delay, jitter or loss; nothing where they may have."""
    if network.leaf == "tbf":
        return "a token bucket gives a rate only (`network.leaf` is tbf)"
    if network.shaping == "device" and network.leaf != "netem":
        return "a device gives a rate only, unless its kernel has netem and `network.leaf` says so"
    return {
        "pacing": "a paced socket gives a rate only (`network.shaping` is pacing)",
        "none": "nothing shapes this lab's links (`network.shaping` is none)",
    }.get(network.shaping, "")


def _unshaped_problems(campaign: CampaignBase) -> Iterator[Problem]:
    why = "nothing shapes this lab's links (`network.shaping` is none)"
    for number, scenario in enumerate(campaign.scenarios):
        place: Place = ("scenarios", number)
        if scenario.channel is not None:
            yield Problem((*place, "channel"), f"{why}, so that no channel can be played; leave it out")
        for name, link in scenario.links.items():
            if link.downlink_mbit is not None or link.uplink_mbit is not None:
                yield Problem((*place, "links", name), f"{why}; leave the rates out: `links: {{}}`")
    if "verify" in campaign.model_fields_set:
        yield Problem(("verify",), f"{why}, so that there is nothing to verify; leave it out")


def unshared_problems(asked: Iterable[Place], shaping: str) -> Iterator[Problem]:
    """Yield what asks for a share of the band where nobody can give one.

    Args:
        asked: The places of a campaign file that do.
        shaping: The lab's `network.shaping`.
    """
    why = {
        "device": "each device shapes its own uplink (`network.shaping` is device), so that the base station "
        "cannot share the band out",
        "none": "nothing shapes this lab's links (`network.shaping` is none)",
    }
    for place in asked if shaping in why else ():
        yield Problem(place, f"{why[shaping]}; leave it out")


def _impairment_problems(place: Place, scenario: LinkScenario, why: str) -> Iterator[Problem]:
    for name, link in scenario.links.items():
        for key in IMPAIRMENTS:
            if getattr(link, key):
                yield Problem((*place, name, key), f"{why}; leave it out")
