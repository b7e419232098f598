"""Labs of other sizes than the inventory's: fewer of its devices, or copies of them. Pure."""

from __future__ import annotations

from testbed.config.campaign import Campaign
from testbed.config.inventory import Inventory
from testbed.config.scenario import Scenario

__all__ = ["resized"]


def resized(campaign: Campaign, inventory: Inventory, devices: int) -> tuple[Campaign, Inventory]:
    """Return a campaign and a lab with so many devices.

    The first ones of the inventory take part; where there are not enough, they are copied in turn, each copy with its
    original's board, pace and place in every scenario.

    Args:
        campaign: The campaign.
        inventory: The lab.
        devices: How many devices, at least 1.
    """
    there = inventory.devices
    if devices <= len(there):
        return campaign, inventory.limited([device.name for device in there[:devices]])
    hosts = dict(inventory.hosts)
    originals: dict[str, str] = {}
    for number in range(len(there), devices):
        original = there[number % len(there)]
        name = f"{original.name}-{number // len(there) + 1}"
        while name in hosts:
            name += "x"
        hosts[name] = original.model_copy(update={"name": name})
        originals[name] = original.name
    scenarios = tuple(_with_copies(scenario, originals) for scenario in campaign.scenarios)
    # model_copy and not a new check: all parts were checked, and the addresses of copies are nobody's.
    return campaign.model_copy(update={"scenarios": scenarios}), inventory.model_copy(update={"hosts": hosts})


def _with_copies(scenario: Scenario, originals: dict[str, str]) -> Scenario:
    """Return a scenario in which each copy stands where its original does."""
    links = {copy: scenario.links[name] for copy, name in originals.items() if name in scenario.links}
    changes: dict[str, object] = {"links": {**scenario.links, **links}}
    if scenario.channel is not None:
        known = scenario.channel.devices
        placed = {copy: known[name] for copy, name in originals.items() if name in known}
        changes["channel"] = scenario.channel.model_copy(update={"devices": {**known, **placed}})
    return scenario.model_copy(update=changes)
