"""What of a broadcast campaign is to be played on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from testbed.campaigns.trials import trials_of
from testbed.config.broadcast import BroadcastCampaign
from testbed.config.campaign_base import check_campaign
from testbed.config.inventory import Inventory, load_inventory
from testbed.config.workloads import load_any_campaign
from testbed.errors import InputError
from testbed.records import Run, find_run, load_run, read_manifest
from testbed.semcast.check import check_playable
from testbed.simulate.compare import BLOCK_KEYS, differences
from testbed.simulate.recorded import free_name

__all__ = ["BroadcastTarget", "broadcast_target", "resumed_target"]


@dataclass(frozen=True)
class BroadcastTarget:
    """What is to be played.

    Attributes:
        campaign: The campaign, with the repeats that were asked for.
        inventory: The lab, whose users' devices are named in the manifest; nothing runs there.
        folder: The simulation's folder.
        command: The command that makes such a simulation again.
        predicts: The run whose images are compared.
        differs: What of the campaign file was otherwise in that run.
        files: Which files it is made from, as the manifest has them.
        goes_on: Whether it was cut off and goes on.
    """

    campaign: BroadcastCampaign
    inventory: Inventory
    folder: Path
    command: str
    predicts: Run | None = None
    differs: Sequence[str] = ()
    files: Mapping[str, Any] = field(default_factory=dict)
    goes_on: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        campaign = self.campaign
        blocks = (
            sum(images.pairs for images in campaign.images)
            * len(campaign.bandwidth_ratios)
            * len(campaign.shares)
        )
        played = sum(max(1, len(scheme.models)) for scheme in campaign.schemes)
        return {
            "trials": len(trials_of(campaign)),
            "schemes": [scheme.name for scheme in campaign.schemes],
            "scenarios": [scenario.name for scenario in campaign.scenarios],
            "repeats": campaign.repeats,
            "users": list(campaign.users),
            "images": [images.called for images in campaign.images],
            "models": [model.name for model in campaign.configs],
            "frames": blocks * played * len(campaign.scenarios) * campaign.repeats,
            "predicts": self.predicts.name if self.predicts else None,
        }


def broadcast_target(
    campaign: BroadcastCampaign,
    campaign_file: Path,
    results: Path,
    *,
    inventory_file: Path | None = None,
    run: str | None = None,
    repeats: int | None = None,
    command: str = "",
) -> BroadcastTarget:
    """Return what is to be played, once all files are right.

    Args:
        campaign: The campaign.
        campaign_file: Its file.
        results: The folder of the runs.
        inventory_file: The lab; the campaign's where left out.
        run: The name or folder of a run of the campaign, whose images are compared.
        repeats: Repeats in place of the campaign's.
        command: The command that makes such a simulation again.

    Raises:
        InputError: A file is wrong, or they do not fit each other.
    """
    predicts = load_run(find_run(results, run)) if run is not None else None
    if predicts is not None and (predicts.manifest.get("simulated") or predicts.schemes.empty):
        text = "is simulated itself" if predicts.manifest.get("simulated") else "is no run of a broadcast"
        raise InputError(f"{predicts.name} {text}", hint="name a run of the campaign that was measured")
    other = differences(campaign.text, str(predicts.manifest.get("campaign"))) if predicts is not None else []
    if predicts is not None and (blocks := [key for key in other if key in ("seed", *BLOCK_KEYS)]):
        raise InputError(
            f"{predicts.name} sent other frames: its campaign file differs in {', '.join(blocks)}",
            hint="name a run of this campaign file",
        )
    if repeats is not None:
        campaign = campaign.model_copy(update={"repeats": repeats})
    inventory_file = campaign.lab_file(inventory_file)
    lab = load_inventory(inventory_file)
    check_campaign(campaign, lab)
    check_playable(campaign)
    files = {
        "campaign": str(campaign_file.resolve()),
        "inventory": str(inventory_file.resolve()),
        "repeats": repeats,
        "predicts": str(predicts.path.resolve()) if predicts is not None else None,
    }
    folder = results / free_name(results, campaign)
    return BroadcastTarget(campaign, campaign.taking_part(lab, ()), folder, command, predicts, other, files)


def resumed_target(results: Path, run: str) -> BroadcastTarget:
    """Return a simulation that was cut off, once it is seen that nothing has changed since.

    Args:
        results: The folder of the runs.
        run: Its name or folder.

    Raises:
        InputError: There is no such simulation, it is complete or none of a broadcast, or a file has changed.
    """
    folder = find_run(results, run)
    manifest = read_manifest(folder)
    if not manifest.get("simulated") or manifest.get("workload") != "broadcast":
        raise InputError(
            f"{folder.name} is no simulation of a broadcast, which alone goes on where it was",
            hint=f"make it again: {manifest.get('command') or 'testbed simulate CAMPAIGN'}",
        )
    if manifest["state"] == "completed":
        raise InputError(f"{folder.name} is complete: there is nothing to go on with")
    files = manifest["files"]
    file = Path(files["campaign"])
    campaign = load_any_campaign(file)
    if not isinstance(campaign, BroadcastCampaign) or campaign.text != manifest["campaign"]:
        raise InputError(
            f"{file}: the file has changed since {folder.name} was started", hint="start a new simulation"
        )
    target = broadcast_target(
        campaign,
        file,
        results,
        inventory_file=Path(files["inventory"]),
        run=files["predicts"],
        repeats=files["repeats"],
        command=str(manifest["command"]),
    )
    return replace(target, folder=folder, goes_on=True)
