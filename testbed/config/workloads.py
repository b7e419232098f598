"""Campaign files of any workload: the key `workload` says which."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from testbed.config.broadcast import BroadcastCampaign
from testbed.config.campaign import Campaign
from testbed.config.campaign_base import parsed
from testbed.config.model import shown
from testbed.config.yaml import read_yaml
from testbed.errors import InputError

__all__ = ["AnyCampaign", "load_any_campaign"]

AnyCampaign = Campaign | BroadcastCampaign


def load_any_campaign(path: Path) -> AnyCampaign:
    """Read a campaign file of any workload.

    Args:
        path: The file.

    Raises:
        InputError: The file cannot be read or holds a mistake; one line for each.
    """
    document = read_yaml(path)
    given = document.data.get("workload") if isinstance(document.data, Mapping) else None
    if given == "broadcast":
        return parsed(document, BroadcastCampaign)
    if given not in (None, "split-experts"):
        text = f"`split-experts` or `broadcast` was expected, not {shown(given)}"
        raise InputError(document.problem(("workload",), text))
    return parsed(document, Campaign)
