"""What the scenarios of a campaign give the devices of a lab, before anything is run. Pure, but for trace files."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from payloads.linkd.channel import DIRECTIONS, linear_channel
from testbed.config.campaign_base import CampaignBase, check_campaign
from testbed.config.inventory import Inventory
from testbed.config.scenario import LinkScenario
from testbed.errors import InputError
from testbed.links.channels.describe import describe
from testbed.links.channels.draw import budgets_of, channel_of

__all__ = ["preview_rows"]


def preview_rows(
    campaign: CampaignBase, inventory: Inventory, *, scenario: str | None = None, repeat: int = 0
) -> list[dict[str, Any]]:
    """Return one row for each scenario, device and direction.

    Args:
        campaign: The campaign.
        inventory: The lab.
        scenario: One scenario's name; all of them where it is left out.
        repeat: Whose draw is shown, from 0: each repeat has a channel of its own.

    Returns:
        Rows with ``scenario``, ``model`` (``fixed`` or the channel's), the figures of ``describe``, ``delay_ms``,
        ``jitter_ms``, ``loss_percent``, and where they apply (else None) ``distance_m``, ``los``,
        ``path_loss_db``, ``shadowing_db`` and ``snr_db`` (the mean over the whole band).

    Raises:
        InputError: There is no such scenario, or the campaign does not fit the lab.
    """
    check_campaign(campaign, inventory)
    devices = [device.name for device in inventory.devices]
    return [row for one in _chosen(campaign, scenario) for row in _rows(one, devices, campaign.seed, repeat)]


def _chosen(campaign: CampaignBase, name: str | None) -> Sequence[LinkScenario]:
    names = [scenario.name for scenario in campaign.scenarios]
    if name is None:
        return campaign.scenarios
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"its scenarios are {', '.join(names)}"
        raise InputError(f"the campaign {campaign.campaign} has no scenario {name!r}", hint=hint)
    return [campaign.scenario(name)]


def _rows(scenario: LinkScenario, devices: Sequence[str], seed: int, repeat: int) -> list[dict[str, Any]]:
    channel = channel_of(scenario, devices, seed=seed, repeat=repeat)
    budgets = budgets_of(scenario, devices, seed=seed, repeat=repeat)
    if channel is None:
        fixed = {name: scenario.rates(name) for name in devices}
        channel = linear_channel({name: (one.downlink_mbit, one.uplink_mbit) for name, one in fixed.items()})
    rows = []
    for row in describe(channel):
        delay_ms, jitter_ms, loss_percent = scenario.impairments(row["device"])
        budget = budgets.get(row["device"])
        snr_db = None
        if budget is not None:
            snr_db = budget.downlink_snr_db if row["direction"] == DIRECTIONS[0] else budget.uplink_snr_db
        rows.append(
            {
                "scenario": scenario.name,
                "model": scenario.channel.model if scenario.channel else "fixed",
                **row,
                "delay_ms": delay_ms,
                "jitter_ms": jitter_ms,
                "loss_percent": loss_percent,
                "distance_m": budget.distance_m if budget else None,
                "los": budget.los if budget else None,
                "path_loss_db": budget.path_loss_db if budget else None,
                "shadowing_db": budget.shadowing_db if budget else None,
                "snr_db": snr_db,
            }
        )
    return rows
