"""One start of a run: from the files to a plan, and from the plan to a report.

``new``, ``evaluation`` and ``resumed`` say what is to be run, ``dry_run`` plans it, ``execute`` does it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from testbed.artifacts.weights import require_tokenizer, require_weights
from testbed.campaigns.describe import describe_run
from testbed.campaigns.files import check_unchanged, file_digests
from testbed.campaigns.journal import Journal, read_journal
from testbed.campaigns.passes import passes_of
from testbed.campaigns.plan import plan_run
from testbed.campaigns.prepare import Probed, gather, needs_rack, probe_hosts, probe_phase, refuse_held
from testbed.campaigns.progress import Progress
from testbed.campaigns.runner import Runner
from testbed.campaigns.spec import load_prompts
from testbed.campaigns.target import Evaluation, Finished, Plan, Target
from testbed.config.broadcast import BroadcastCampaign
from testbed.config.campaign import Campaign
from testbed.config.campaign_base import CampaignBase, check_campaign
from testbed.config.inventory import Inventory, load_inventory
from testbed.config.workloads import AnyCampaign, load_any_campaign
from testbed.errors import InputError, RefusedError, TestbedError
from testbed.hosts.authority import lab_authority
from testbed.hosts.fleet import Fleet
from testbed.records import RecordWriter, find_run, read_manifest, write_manifest
from testbed.records.lock import locked
from testbed.records.manifest import MANIFEST_NAME
from testbed.simulate.assumed import check_calibration

__all__ = [
    "Evaluation",
    "Finished",
    "Plan",
    "Target",
    "dry_run",
    "evaluation",
    "execute",
    "experts_campaign",
    "new",
    "resumed",
]

PROBE_TIMEOUT_S = 8.0
NOBODY = Probed({}, {}, frozenset())
"""What is known where no host was asked, since none is needed."""


def new(results: Path, campaign_file: Path, inventory_file: Path | None, limit: Sequence[str]) -> Target:
    """Return a run that has not been started yet, named after its campaign and the next free number.

    Raises:
        InputError: A file is wrong, or they do not fit each other.
    """
    campaign = load_any_campaign(campaign_file)
    inventory_file = campaign.lab_file(inventory_file)
    inventory = _checked(campaign, load_inventory(inventory_file), limit)
    run = _free_name(results, campaign)
    return Target(run, results / run, campaign_file, inventory_file, campaign, inventory, tuple(limit))


def evaluation(
    results: Path,
    campaign_file: Path,
    inventory_file: Path | None,
    limit: Sequence[str],
    asked: Evaluation,
) -> Target:
    """Return a run of quality passes only that has not been started yet.

    Raises:
        InputError: A file is wrong, they do not fit each other, the campaign measures no quality, or it has no
            policy or scenario of a name.
    """
    target = replace(new(results, campaign_file, inventory_file, limit), evaluation=asked)
    campaign = experts_campaign(target)
    if campaign.quality is None:
        raise InputError(
            f"{campaign_file}: the campaign measures no quality",
            hint="give it `quality` with `texts` or `choices`; docs/quality.md has the keys",
        )
    passes_of(campaign, asked.policies, asked.scenarios)  # refuses a name that is not there
    return target


def experts_campaign(target: Target) -> Campaign:
    """Return the campaign of what only split experts have, such as quality passes and an API.

    Raises:
        InputError: The campaign is one of another workload.
    """
    if not isinstance(target.campaign, Campaign):
        text = "split experts were expected: a broadcast has no experts, policies or prompts"
        raise target.campaign.mistake((("workload",), text))
    return target.campaign


def _free_name(results: Path, campaign: CampaignBase) -> str:
    """Return the campaign's name and the next free number."""
    taken = [path.name.rpartition("-")[2] for path in results.glob(f"{campaign.campaign}-*")]
    number = max((int(tail) for tail in taken if tail.isdigit()), default=0) + 1
    return f"{campaign.campaign}-{number:04d}"


def resumed(results: Path, run: str, limit: Sequence[str]) -> Target:
    """Return a run that was cut off.

    Raises:
        InputError: There is no such run, it is complete, or a file that it was made from has changed since.
    """
    folder = find_run(results, run)
    manifest = read_manifest(folder)
    if manifest.get("simulated") and manifest.get("workload") == "broadcast":
        raise InputError(
            f"{folder.name} is a simulation", hint=f"it goes on with: testbed simulate --resume {folder}"
        )
    if manifest.get("simulated"):
        raise InputError(
            f"{folder.name} is a simulation, which does not go on where it was",
            hint=f"simulate it again: {manifest.get('command') or 'testbed simulate CAMPAIGN'}",
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not {"campaign", "inventory", "limit"} <= files.keys():
        raise InputError(
            f"{folder / MANIFEST_NAME}: it does not say which files the run was made from",
            hint="this run can be read but not resumed; start a new one",
        )
    if files.get("serving"):
        raise InputError(
            f"{folder.name} was served, which does not go on where it was",
            hint=f"serve it again: {manifest.get('command') or 'testbed serve CAMPAIGN'}",
        )
    if manifest["state"] == "completed":
        raise InputError(
            f"{folder.name} is complete: there is nothing to go on with",
            hint=f"`testbed report {folder}` makes its report again",
        )
    if limit:
        raise InputError("--limit cannot change when a run goes on", hint="start a new run for other devices")
    campaign_file, inventory_file = Path(files["campaign"]), Path(files["inventory"])
    campaign = load_any_campaign(campaign_file)
    if campaign.text != manifest["campaign"]:
        raise InputError(
            f"{campaign_file}: the file has changed since {folder.name} was started",
            hint=f"put it back as it is in {folder / MANIFEST_NAME}, or start a new run",
        )
    check_unchanged(files.get("read") or {}, campaign, folder.name)
    limit = tuple(files["limit"])
    inventory = _checked(campaign, load_inventory(inventory_file), limit)
    if inventory.resolved() != manifest.get("inventory"):
        raise InputError(
            f"{inventory_file}: the lab has changed since {folder.name} was started",
            hint=f"put it back as it is in {folder / MANIFEST_NAME}, or start a new run",
        )
    asked = files.get("evaluation")
    return Target(
        str(manifest["run"]),
        folder,
        campaign_file,
        inventory_file,
        campaign,
        inventory,
        limit,
        resumed=True,
        evaluation=asked and Evaluation(tuple(asked["policies"]), tuple(asked["scenarios"])),
    )


def dry_run(target: Target) -> Plan:
    """Return what a run would do; a host that does not answer gets assumed facts."""
    if target.resumed and not needs_rack(target):
        return Plan(target, NOBODY, [])
    with Fleet(target.inventory, connect_timeout_s=PROBE_TIMEOUT_S) as fleet:
        probed = probe_hosts(fleet, assume=True)
    inputs = gather(target, probed)
    return Plan(target, probed, [probe_phase(target.inventory), *plan_run(inputs)])


def execute(target: Target, make_runner: Callable[..., Runner] = Runner) -> Finished:
    """Run what is to be run and return how it ended.

    Args:
        target: What is to be run.
        make_runner: Makes what carries it out, given what a :class:`Runner` is given.

    Raises:
        TestbedError: Something other than a trial failed; what was recorded is kept and can be resumed.
        KeyboardInterrupt: The user stopped the run; likewise.
    """
    with locked(target.folder):
        if not target.resumed and (target.folder / MANIFEST_NAME).exists():
            raise RefusedError(
                f"{target.run} was started by another testbed just now", hint="give the same command again"
            )
        journal_file = target.folder / "journal.jsonl"
        entries = read_journal(journal_file)
        journal = Journal(journal_file, session=entries[-1].session + 1 if entries else 1)
        try:
            return _execute(target, journal, make_runner)
        finally:
            journal.close()


def _execute(target: Target, journal: Journal, make_runner: Callable[..., Runner]) -> Finished:
    probing, probed = probe_phase(target.inventory), NOBODY
    if not target.resumed or needs_rack(target):
        with Fleet(target.inventory, connect_timeout_s=PROBE_TIMEOUT_S) as fleet:
            probed = probe_hosts(fleet, assume=False, journal=journal)
            refuse_held(fleet)
    inputs = gather(target, probed, lab_authority(target.inventory))
    offsets = {name: facts.clock_offset_s or 0.0 for name, facts in probed.facts.items()}
    if target.resumed:
        manifest = read_manifest(target.folder)
        started_unix = float(manifest["started_unix"])
        if changed := inputs.work.changed(manifest):
            raise InputError(
                f"{changed} has changed since {target.folder.name} was started", hint="start a new run"
            )
    else:
        started_unix = time.time() + offsets[target.inventory.base_station.name]
        manifest = describe_run(inputs, probed, target.command, started_unix)
        manifest["files"] = {
            "campaign": str(target.campaign_file.resolve()),
            "inventory": str(target.inventory_file.resolve()),
            "limit": list(target.limit),
            "evaluation": target.evaluation and target.evaluation.as_json(),
            "serving": target.serving and target.serving.words,
            "read": file_digests(target.campaign),
        }
        write_manifest(target.folder, manifest)
    from testbed.campaigns.finish import finish, update_manifest

    update_manifest(target.folder, state="running")
    state = "failed"
    inputs.work.begin(RecordWriter(target.folder))
    with Progress(len(inputs.trials) + len(inputs.computed)) as progress:
        runner = make_runner(
            lambda: Fleet(target.inventory),
            target.folder,
            target.run,
            started_unix,
            journal,
            progress,
            offsets,
            inputs.work.read,
        )
        try:
            outcome = runner.execute(plan_run(inputs), first_number=len(probing.steps))
            runner.compute(inputs.work, inputs.computed)
            if not outcome.failed and not outcome.stopped:
                state = "completed"
        except KeyboardInterrupt:
            state = "interrupted"
            again = "" if target.serving else f"; go on with: testbed run --resume {target.folder}"
            progress.note(f"stopped{again}")
            raise
        except TestbedError as error:
            if not runner.begun and not target.resumed and error.exit_code == RefusedError.exit_code:
                (target.folder / MANIFEST_NAME).unlink()  # a run that was refused is none
            again = target.command if target.serving else f"testbed run --resume {target.folder}"
            error.hint = error.hint or f"mend the cause, then: {again}"
            raise
        finally:
            if (target.folder / MANIFEST_NAME).exists():
                report = finish(target.folder, target.inventory, state)
            if state == "interrupted":
                progress.note(f"what was measured so far: {report}")
    whole = len(target.trials) - len(inputs.trials) - len(inputs.computed) + len(outcome.completed)
    return Finished(
        target.run,
        target.folder,
        report,
        whole,
        len(target.trials),
        outcome.failed,
        outcome.stopped,
        None if target.evaluation is None else len(target.passes),
        resumable=target.serving is None,
    )


def _checked(campaign: AnyCampaign, lab: Inventory, limit: Sequence[str]) -> Inventory:
    """Return the lab with what takes part, once all that can be seen without a host is right."""
    check_campaign(campaign, lab)  # the whole lab: a scenario may speak of a device that is left out
    inventory = campaign.taking_part(lab, limit)
    if isinstance(campaign, BroadcastCampaign):
        from testbed.semcast.check import check_playable

        check_playable(campaign)
        return inventory
    load_prompts(campaign)
    require_weights(campaign.model)
    require_tokenizer(campaign.model)
    check_calibration(campaign, inventory)
    return inventory
