"""One simulation, from its files to its report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from payloads.wdmoe.user_policy import UserPolicyError
from testbed.artifacts.weights import has_weights
from testbed.campaigns.spec import load_prompts
from testbed.campaigns.trials import trials_of
from testbed.config.broadcast import BroadcastCampaign
from testbed.config.campaign import Campaign, check_campaign
from testbed.config.inventory import Inventory, load_inventory
from testbed.config.workloads import load_any_campaign
from testbed.errors import InputError
from testbed.records import Run, find_run, load_run
from testbed.records.outline import was_served
from testbed.semcast.target import BroadcastTarget, broadcast_target, resumed_target
from testbed.simulate.assumed import check_calibration
from testbed.simulate.playable import check_playable
from testbed.simulate.prepare import prepare
from testbed.simulate.run import Simulated, run_simulation

if TYPE_CHECKING:
    from testbed.semcast.simulate import PlayedCampaign

__all__ = ["Target", "dry_run", "execute", "resumed_target", "target"]


@dataclass(frozen=True)
class Target:
    """What is to be simulated.

    Attributes:
        campaign: The campaign, with the repeats and the calibration that were asked for.
        inventory: The lab.
        results: The folder of the runs.
        command: The command that makes such a simulation again.
        predicts: The run that it is compared with.
        batch_tokens: How many tokens the prompts of a shape have; by their texts where it is None.
    """

    campaign: Campaign
    inventory: Inventory
    results: Path
    command: str
    predicts: Run | None = None
    batch_tokens: int | None = None


def target(
    campaign_file: Path,
    results: Path,
    *,
    inventory_file: Path | None = None,
    run: str | None = None,
    calibration: Path | None = None,
    repeats: int | None = None,
    batch_tokens: int | None = None,
    command: str = "",
) -> Target | BroadcastTarget:
    """Return what is to be simulated, once all files are right.

    Args:
        campaign_file: The campaign file.
        results: The folder of the runs.
        inventory_file: The lab; the run's, or else the campaign's where left out.
        run: The name or folder of a run to be predicted.
        calibration: A calibration in place of the campaign's.
        repeats: Repeats in place of the campaign's.
        batch_tokens: How many tokens the prompts of a model without weights have.
        command: The command that makes such a simulation again.

    Raises:
        InputError: A file is wrong, or they do not fit each other.
    """
    campaign = load_any_campaign(campaign_file)
    if isinstance(campaign, BroadcastCampaign):
        for option, given in (("--calibration", calibration), ("--batch-tokens", batch_tokens)):
            if given is not None:
                raise InputError(f"{option}: a broadcast has no latency model and no tokens; leave it out")
        return broadcast_target(
            campaign,
            campaign_file,
            results,
            inventory_file=inventory_file,
            run=run,
            repeats=repeats,
            command=command,
        )
    changes: dict[str, Any] = {}
    if calibration is not None:
        changes["latency"] = campaign.latency.model_copy(update={"calibration": calibration})
    if repeats is not None:
        changes["repeats"] = repeats
    campaign = campaign.model_copy(update=changes)
    if batch_tokens is not None and has_weights(campaign.model):
        raise InputError(
            f"--batch-tokens: {campaign.model_name} has weights, so that its prompts are as long as they are",
            hint="leave it out, or name a model without weights such as mixtral-8x7b-shape",
        )
    if run is not None and not has_weights(campaign.model):
        raise InputError(
            f"--run: {campaign.model_name} has no weights, so that no run of it was measured",
            hint="name a campaign that was run",
        )
    predicts = load_run(find_run(results, run)) if run is not None else None
    limit: tuple[str, ...] = ()
    if predicts is not None:
        if predicts.manifest.get("simulated"):
            raise InputError(f"{predicts.name} is simulated itself", hint="name a run that was measured")
        if was_served(predicts.manifest):
            text = f"{predicts.name} was served: its requests were those of its clients, not the campaign's"
            raise InputError(text, hint="name a run of the campaign's own trials")
        files = predicts.manifest.get("files") or {}
        limit = tuple(files.get("limit", ()))
        if inventory_file is None and "inventory" in files:
            inventory_file = Path(files["inventory"])
    lab = load_inventory(campaign.lab_file(inventory_file))
    check_campaign(campaign, lab)
    check_playable(campaign)
    load_prompts(campaign)
    inventory = lab.limited(limit)
    check_calibration(campaign, inventory)
    return Target(campaign, inventory, results, command, predicts, batch_tokens)


def dry_run(wanted: Target | BroadcastTarget) -> dict[str, Any]:
    """Return what would be simulated, as plain data."""
    if isinstance(wanted, BroadcastTarget):
        return wanted.as_json()
    campaign = wanted.campaign
    weights = has_weights(campaign.model)
    return {
        "trials": len(trials_of(campaign)),
        "policies": [policy.name for policy in campaign.policies],
        "scenarios": [scenario.name for scenario in campaign.scenarios],
        "repeats": campaign.repeats,
        "devices": [device.name for device in wanted.inventory.devices],
        "model": campaign.model_name,
        "routing": "recorded from the model" if weights else "drawn, as the model has no weights",
        "calibration": str(campaign.latency.calibration) if campaign.latency.calibration else None,
        "predicts": wanted.predicts.name if wanted.predicts else None,
    }


def execute(
    wanted: Target | BroadcastTarget, *, jobs: int, say: Callable[[str], None]
) -> Simulated | PlayedCampaign:
    """Simulate what is to be simulated.

    Args:
        wanted: What that is.
        jobs: How many processes work on it.
        say: Told how far it is.

    Raises:
        InputError: The model, its placement or a channel is wrong, or a policy of the user's own fails.
    """
    if isinstance(wanted, BroadcastTarget):
        from testbed.semcast.simulate import play_campaign

        return play_campaign(wanted, jobs=jobs, say=say)
    prepared = prepare(
        wanted.campaign, wanted.inventory, run=wanted.predicts, batch_tokens=wanted.batch_tokens, say=say
    )
    trials = len(prepared.world.trials)
    try:
        return run_simulation(
            prepared,
            wanted.campaign,
            wanted.inventory,
            wanted.results,
            wanted.command,
            predicts=wanted.predicts,
            jobs=jobs,
            done=lambda number: say(f"{number} of {trials} trials"),
        )
    except UserPolicyError as error:
        raise InputError(str(error)) from error
