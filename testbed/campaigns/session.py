"""One start of a run: from the files to a plan, and from the plan to a report.

``new`` and ``resumed`` say what is to be run, ``dry_run`` plans it, ``execute`` does it.
"""

from __future__ import annotations

import fcntl
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.campaigns.describe import describe_run
from testbed.campaigns.journal import Journal, read_journal
from testbed.campaigns.phases import Phase, phase_lines, phases_json
from testbed.campaigns.plan import plan_run
from testbed.campaigns.prepare import Probed, gather, probe_hosts, probe_phase
from testbed.campaigns.progress import Progress
from testbed.campaigns.runner import Runner
from testbed.campaigns.spec import load_prompts
from testbed.campaigns.trials import Trial, interleave
from testbed.config.campaign import Campaign, check_campaign, load_campaign
from testbed.config.inventory import Inventory, load_inventory
from testbed.errors import InputError, RefusedError, TestbedError
from testbed.hosts.fleet import Fleet
from testbed.records import find_run, read_manifest, write_manifest
from testbed.records.manifest import LOCK_NAME, MANIFEST_NAME

__all__ = ["Finished", "Plan", "Target", "dry_run", "execute", "new", "resumed"]

PROBE_TIMEOUT_S = 8.0


@dataclass(frozen=True)
class Target:
    """What is to be run.

    Attributes:
        run: The run's name.
        folder: Its local folder.
        campaign_file: The campaign file.
        inventory_file: The inventory file.
        campaign: The campaign.
        inventory: The fleet.
        limit: The devices that the run is limited to; all where it is empty.
        resumed: Whether the run was started before.
    """

    run: str
    folder: Path
    campaign_file: Path
    inventory_file: Path
    campaign: Campaign
    inventory: Inventory
    limit: tuple[str, ...] = ()
    resumed: bool = False

    @property
    def trials(self) -> list[Trial]:
        """All trials of the campaign, in order."""
        return interleave(
            [policy.name for policy in self.campaign.policies],
            [scenario.name for scenario in self.campaign.scenarios],
            self.campaign.repeats,
            self.campaign.seed,
        )

    @property
    def command(self) -> str:
        """The command that makes such a run again."""
        words = ["testbed", "run", str(self.campaign_file), "--inventory", str(self.inventory_file)]
        for name in self.limit:
            words += ["--limit", name]
        return shlex.join(words)


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        target: What is to be run.
        probed: What the hosts answered, or what was assumed of them.
        phases: The phases, the probe first.
    """

    target: Target
    probed: Probed
    phases: Sequence[Phase]

    def as_json(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return {
            "run": self.target.run,
            "trials": len(self.target.trials),
            "facts": self.probed.as_json(),
            "phases": phases_json(self.phases),
        }

    def as_text(self) -> str:
        """Return the plan for people: the facts that it rests on, then each phase's steps."""
        campaign = self.target.campaign
        shape = f"{len(campaign.policies)} policies x {len(campaign.scenarios)} scenarios x {campaign.repeats} repeats"
        lines = [
            f"run {self.target.run}: {len(self.target.trials)} trials ({shape}), nothing is changed",
            "",
            "facts",
        ]
        lines += [f"  {line}" for line in self.probed.as_lines()]
        lines += phase_lines(self.phases)
        return "\n".join(lines)


@dataclass(frozen=True)
class Finished:
    """How a run ended.

    Attributes:
        run: The run's name.
        folder: Its folder.
        report: The report's path.
        completed: How many trials of the campaign are whole, earlier starts included.
        planned: How many trials the campaign has.
        failed: What each failed trial said.
        stopped: What else went wrong, or an empty string.
    """

    run: str
    folder: Path
    report: Path
    completed: int
    planned: int
    failed: dict[str, str]
    stopped: str

    def as_json(self) -> dict[str, Any]:
        """Return the outcome as plain data."""
        return {
            "run": self.run,
            "folder": str(self.folder),
            "report": str(self.report),
            "completed": self.completed,
            "planned": self.planned,
            "failed": self.failed,
            "stopped": self.stopped,
        }

    def as_text(self) -> str:
        """Return the outcome for people."""
        lines = [f"{self.run}: {self.completed} of {self.planned} trials completed"]
        lines += [f"  {trial} failed: {error}" for trial, error in self.failed.items()]
        if self.stopped:
            lines.append(f"  {self.stopped}")
        if self.completed < self.planned:
            lines.append(f"  the others: testbed run --resume {self.folder}")
        lines.append(f"report: {self.report}")
        return "\n".join(lines)


def new(results: Path, campaign_file: Path, inventory_file: Path | None, limit: Sequence[str]) -> Target:
    """Return a run that has not been started yet, named after its campaign and the next free number.

    Raises:
        InputError: A file is wrong, or they do not fit each other.
    """
    campaign = load_campaign(campaign_file)
    inventory_file = inventory_file or campaign.inventory
    inventory = _checked(campaign, load_inventory(inventory_file), limit)
    taken = [path.name.rpartition("-")[2] for path in results.glob(f"{campaign.campaign}-*")]
    number = max((int(tail) for tail in taken if tail.isdigit()), default=0) + 1
    run = f"{campaign.campaign}-{number:04d}"
    return Target(run, results / run, campaign_file, inventory_file, campaign, inventory, tuple(limit))


def resumed(results: Path, run: str, limit: Sequence[str]) -> Target:
    """Return a run that was cut off.

    Raises:
        InputError: There is no such run, it is complete, or its campaign or inventory has changed since.
    """
    folder = find_run(results, run)
    manifest = read_manifest(folder)
    files = manifest.get("files")
    if not isinstance(files, dict) or not {"campaign", "inventory", "limit"} <= files.keys():
        raise InputError(
            f"{folder / MANIFEST_NAME}: it does not say which files the run was made from",
            hint="this run can be read but not resumed; start a new one",
        )
    if manifest["state"] == "completed":
        raise InputError(
            f"{folder.name} is complete: there is nothing to go on with",
            hint=f"`testbed report {folder}` makes its report again",
        )
    if limit:
        raise InputError("--limit cannot change when a run goes on", hint="start a new run for other devices")
    campaign_file, inventory_file = Path(files["campaign"]), Path(files["inventory"])
    campaign = load_campaign(campaign_file)
    if campaign.text != manifest["campaign"]:
        raise InputError(
            f"{campaign_file}: the file has changed since {folder.name} was started",
            hint=f"put it back as it is in {folder / MANIFEST_NAME}, or start a new run",
        )
    limit = tuple(files["limit"])
    inventory = _checked(campaign, load_inventory(inventory_file), limit)
    if inventory.resolved() != manifest.get("inventory"):
        raise InputError(
            f"{inventory_file}: the lab has changed since {folder.name} was started",
            hint=f"put it back as it is in {folder / MANIFEST_NAME}, or start a new run",
        )
    name = str(manifest["run"])
    return Target(
        name, folder, campaign_file, inventory_file, campaign, inventory, tuple(limit), resumed=True
    )


def dry_run(target: Target) -> Plan:
    """Return what a run would do; a host that does not answer gets assumed facts."""
    with Fleet(target.inventory, connect_timeout_s=PROBE_TIMEOUT_S) as fleet:
        probed = probe_hosts(fleet, assume=True)
    inputs = gather(target.run, target.folder, target.campaign, target.inventory, target.trials, probed)
    return Plan(target, probed, [probe_phase(target.inventory), *plan_run(inputs)])


def execute(target: Target) -> Finished:
    """Run what is to be run and return how it ended.

    Raises:
        TestbedError: Something other than a trial failed; what was recorded is kept and can be resumed.
        KeyboardInterrupt: The user stopped the run; likewise.
    """
    with _locked(target.folder):
        if not target.resumed and (target.folder / MANIFEST_NAME).exists():
            raise RefusedError(
                f"{target.run} was started by another testbed just now", hint="give the same command again"
            )
        journal_file = target.folder / "journal.jsonl"
        entries = read_journal(journal_file)
        journal = Journal(journal_file, session=entries[-1].session + 1 if entries else 1)
        try:
            return _execute(target, journal)
        finally:
            journal.close()


def _execute(target: Target, journal: Journal) -> Finished:
    probing = probe_phase(target.inventory)
    with Fleet(target.inventory, connect_timeout_s=PROBE_TIMEOUT_S) as fleet:
        probed = probe_hosts(fleet, assume=False, journal=journal)
    inputs = gather(target.run, target.folder, target.campaign, target.inventory, target.trials, probed)
    offsets = {name: facts.clock_offset_s or 0.0 for name, facts in probed.facts.items()}
    if target.resumed:
        manifest = read_manifest(target.folder)
        started_unix = float(manifest["started_unix"])
        if manifest["model"]["manifest"] != inputs.manifest.digest():
            raise InputError(
                f"{target.campaign.model}: the model has changed since {target.folder.name} was started",
                hint="start a new run",
            )
    else:
        started_unix = time.time() + offsets[target.inventory.base_station.name]
        manifest = describe_run(inputs, probed, target.command, started_unix)
        manifest["files"] = {
            "campaign": str(target.campaign_file.resolve()),
            "inventory": str(target.inventory_file.resolve()),
            "limit": list(target.limit),
        }
        write_manifest(target.folder, manifest)
    from testbed.campaigns.finish import finish, update_manifest

    update_manifest(target.folder, state="running")
    state = "failed"
    with Progress(len(inputs.trials)) as progress:
        runner = Runner(
            lambda: Fleet(target.inventory),
            target.folder,
            target.run,
            started_unix,
            journal,
            progress,
            offsets,
        )
        try:
            outcome = runner.execute(plan_run(inputs), first_number=len(probing.steps))
            if not outcome.failed and not outcome.stopped:
                state = "completed"
        except KeyboardInterrupt:
            state = "interrupted"
            progress.note(f"stopped; go on with: testbed run --resume {target.folder}")
            raise
        except TestbedError as error:
            error.hint = error.hint or f"mend the cause, then: testbed run --resume {target.folder}"
            raise
        finally:
            report = finish(target.folder, target.inventory, state)
            if state == "interrupted":
                progress.note(f"what was measured so far: {report}")
    whole = len(target.trials) - len(inputs.trials) + len(outcome.completed)
    return Finished(
        target.run, target.folder, report, whole, len(target.trials), outcome.failed, outcome.stopped
    )


def _checked(campaign: Campaign, lab: Inventory, limit: Sequence[str]) -> Inventory:
    """Return the lab, limited, once all that can be seen without a host is right."""
    inventory = lab.limited(limit)
    check_campaign(campaign, lab)  # a scenario may speak of a device that is left out
    load_prompts(campaign)
    return inventory


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder against a second controller; a run that could not even begin leaves no folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_NAME).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(
                f"{folder.name} is being run by another testbed",
                hint="wait until it ends, or stop it with Ctrl-C",
            ) from None
        try:
            yield
        finally:
            if not (folder / MANIFEST_NAME).exists():
                shutil.rmtree(folder)
