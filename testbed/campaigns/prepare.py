"""Gather what a plan follows from: the hosts' facts, the sharded model, the placement."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from payloads.wdmoe.bs.spec import quality_name
from testbed.artifacts.manifest import Manifest
from testbed.artifacts.shard import Sharded, shard_model
from testbed.artifacts.shard_progress import ShardProgress
from testbed.campaigns.journal import Journal
from testbed.campaigns.passes import Pass
from testbed.campaigns.phases import Phase
from testbed.campaigns.plan import RunInputs
from testbed.campaigns.trials import Trial
from testbed.config.campaign import AutoPlacement, Campaign
from testbed.config.folders import cache_folder
from testbed.config.inventory import Host, Inventory
from testbed.errors import HostError, HostKeyError, TestbedError
from testbed.hosts.authority import Authority, host_certificates, new_authority
from testbed.hosts.facts import Facts, assume_facts, facts_command, gather_facts
from testbed.hosts.fleet import Fleet
from testbed.hosts.steps import Command
from testbed.hosts.transport import Transport
from testbed.placement.memory import capacities
from testbed.placement.place import Placement, place_auto, place_explicit
from testbed.provision.plan import plan_fleet
from testbed.records.manifest import MANIFEST_NAME, read_manifest
from testbed.simulate.assumed import latency_model

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Probed",
    "frequency_of",
    "gather",
    "place",
    "probe_hosts",
    "probe_phase",
    "sharded",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Probed:
    """What the hosts said of themselves.

    Attributes:
        facts: The facts of each host, some of them assumed where it did not answer.
        why_assumed: Why a host's facts had to be assumed.
        objects_at_bs: The digests of the objects that the base station holds.
    """

    facts: Mapping[str, Facts]
    why_assumed: Mapping[str, str]
    objects_at_bs: frozenset[str]

    def as_json(self) -> dict[str, Any]:
        """Return the facts as plain data."""
        return {name: facts.as_json() for name, facts in self.facts.items()}

    def as_lines(self) -> list[str]:
        """Return a line a host, an assumed fact marked as such."""
        lines = []
        for name, facts in self.facts.items():
            lines.append(f"{name}: {facts.describe()}")
            if name in self.why_assumed:
                lines.append(f"  assumed, since {self.why_assumed[name]}")
        return lines


def probe_phase(inventory: Inventory) -> Phase:
    """Return the phase that only looks: the facts of every host, and what the base station holds already."""
    steps = [facts_command(host) for host in inventory.hosts.values()]
    return Phase("probe", (*steps, _listing(inventory.base_station)))


def _listing(bs: Host) -> Command:
    """Return the command that lists the objects that the base station holds."""
    shell = 'if [ -d "$HOME/.testbed/objects" ]; then ls -1 "$HOME/.testbed/objects"; fi'
    return Command(bs.name, shell, "list objects")


def probe_hosts(fleet: Fleet, *, assume: bool, journal: Journal | None = None) -> Probed:
    """Ask every host for its facts.

    Args:
        fleet: The hosts.
        assume: Whether a host that does not answer gets assumed facts; else it is an error.
        journal: Where the steps are written.

    Raises:
        TestbedError: A host did not answer, and nothing is to be assumed; each such host is named.
    """
    phase = probe_phase(fleet.inventory)
    numbers = {step.line(): number for number, step in enumerate(phase.steps)}

    def journalled(command: Command, action: Callable[[], T]) -> T:
        def write(state: str, detail: str = "") -> None:
            if journal:
                journal.write(numbers[command.line()], phase.name, state, command, detail)

        write("begin")
        try:
            answer = action()
        except BaseException as error:
            write("failed", str(error))
            raise
        write("end")
        return answer

    def ask(host: Host, transport: Transport) -> tuple[Facts, frozenset[str]]:
        facts = journalled(facts_command(host), lambda: gather_facts(host, transport, trust_memory=True))
        if host.is_device:
            return facts, frozenset()
        listing = _listing(host)
        return facts, frozenset(journalled(listing, lambda: transport.run(listing)).stdout.split())

    facts: dict[str, Facts] = {}
    why: dict[str, str] = {}
    objects: frozenset[str] = frozenset()
    failures: list[TestbedError | OSError] = []
    for outcome in fleet.each(ask):
        host = outcome.host
        if outcome.error is None:
            facts[host.name], found = outcome.get()
            objects |= found
        elif assume and isinstance(outcome.error, HostError):
            facts[host.name] = assume_facts(host)
            why[host.name] = outcome.error.message
        else:
            failures.append(outcome.error)
    if failures:
        raise _together(failures)
    return Probed(facts, why, objects)


def _together(errors: Sequence[TestbedError | OSError]) -> TestbedError | OSError:
    """Return one error that names every host which failed; a refused key decides the exit code."""
    if len(errors) == 1:
        return errors[0]
    first = next((error for error in errors if isinstance(error, HostKeyError)), errors[0])
    text = "\n".join(["some hosts could not be asked:", *(f"  {error}" for error in errors)])
    together = TestbedError(text, hint=getattr(first, "hint", ""))
    together.exit_code = getattr(first, "exit_code", TestbedError.exit_code)
    return together


def sharded(model: Path, experts: Literal["int8"] | None = None) -> Sharded:
    """Return a model's objects, made in the cache where they are not there yet.

    Args:
        model: The model's folder.
        experts: How the experts' weights are held; as in the checkpoint where None.
    """
    place = hashlib.sha256(str(model.resolve()).encode()).hexdigest()[:12]  # two models may have one name
    held = f"-{experts}" if experts else ""
    folder = cache_folder() / "shards" / f"{model.name}-{place}{held}"
    with ShardProgress(model.name) as progress:
        return shard_model(model, folder, experts=experts, on_progress=progress)


def place(
    campaign: Campaign, inventory: Inventory, manifest: Manifest, facts: Mapping[str, Facts]
) -> Placement:
    """Return which devices hold which expert.

    Raises:
        InputError: The model does not fit, or the campaign's own placement is wrong.
    """
    devices, settings = capacities(inventory, facts), campaign.placement
    if settings == "auto":
        settings = AutoPlacement(kind="auto")
    if not isinstance(settings, AutoPlacement):
        return place_explicit(manifest, settings, devices, campaign.dtype)
    return place_auto(
        manifest,
        devices,
        campaign.dtype,
        frequency=frequency_of(campaign, manifest),
        copies=settings.copies,
        hot_copies=settings.hot_copies,
    )


def frequency_of(campaign: Campaign, manifest: Manifest) -> NDArray[np.float64] | None:
    """Return how often each expert (L, E) is asked for, where the campaign's placement names a run that tells.

    Raises:
        InputError: There is no such run, or it tells nothing of this model.
    """
    settings = campaign.placement
    if not isinstance(settings, AutoPlacement) or settings.frequency is None:
        return None
    from testbed.placement.frequency import routing_frequency

    return routing_frequency(settings.frequency, manifest)


def gather(
    run: str,
    folder: Path,
    campaign: Campaign,
    inventory: Inventory,
    all_trials: Sequence[Trial],
    all_passes: Sequence[Pass],
    probed: Probed,
    authority: Authority | None = None,
) -> RunInputs:
    """Return all that the plan of a run (or of what is left of it) follows from.

    Args:
        run: The run's name.
        folder: Its local folder.
        campaign: The campaign.
        inventory: The fleet.
        all_trials: All trials of the run.
        all_passes: All quality passes of the run.
        probed: What the hosts answered.
        authority: What certifies the hosts for the data plane. Where there is none, as in a dry run, one does that is
            forgotten at once.
    """
    model = sharded(campaign.model, campaign.experts)
    whole = _whole_parts(
        folder, asks_questions=campaign.quality is not None and bool(campaign.quality.choices)
    )
    trials = [trial for trial in all_trials if trial.name not in whole]
    return RunInputs(
        run=run,
        campaign=campaign,
        inventory=inventory,
        manifest=model.manifest,
        shards=model.path.parent,
        placement=_recorded_placement(folder) or place(campaign, inventory, model.manifest, probed.facts),
        trials=trials,
        all_trials=all_trials,
        passes=[one for one in all_passes if one.name not in whole],
        latency=latency_model(campaign, inventory, model.manifest),
        provision=plan_fleet(inventory, probed.facts),
        objects_at_bs=probed.objects_at_bs,
        key=secrets.token_hex(32),
        certificates=_certificates(inventory, authority),
        folder=folder,
    )


def _certificates(inventory: Inventory, authority: Authority | None) -> dict[str, dict[str, bytes]]:
    if inventory.network.security != "tls":
        return {}
    now = datetime.now(UTC)
    return host_certificates(authority or new_authority(inventory.lab, now), inventory, now)


def _recorded_placement(folder: Path) -> Placement | None:
    """Return the placement that a run was started with: its memory may look otherwise now, its trials must not."""
    if not (folder / MANIFEST_NAME).is_file():
        return None
    given = read_manifest(folder).get("placement")
    return {
        int(layer): {int(expert): tuple(names) for expert, names in row.items()}
        for layer, row in (given or {}).items()
    } or None


def _whole_parts(folder: Path, *, asks_questions: bool) -> set[str]:
    """Return the trials and quality passes that are whole on disk."""
    if not (folder / "tables").is_dir():
        return set()
    from testbed.records import load_run

    run = load_run(folder)
    # Of a pass' tables this one is written last.
    rated = run.choices if asks_questions else run.quality
    passes = rated[["policy", "scenario"]].drop_duplicates()
    names = {
        quality_name(str(row.policy), row.scenario if isinstance(row.scenario, str) else None)
        for row in passes.itertuples()
    }
    return {str(name) for name in run.completed["trial"]} | names
