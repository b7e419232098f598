"""Gather what a plan follows from: the hosts' facts, and what is to run on them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from testbed.campaigns.journal import Journal, is_collected, read_journal
from testbed.campaigns.phases import Phase
from testbed.campaigns.plan import RunInputs
from testbed.campaigns.trials import Trial
from testbed.campaigns.work import Work
from testbed.config.broadcast import BroadcastCampaign
from testbed.config.inventory import Host, Inventory
from testbed.errors import HeldError, HostError, HostKeyError, TestbedError
from testbed.hosts.authority import Authority, host_certificates, new_authority
from testbed.hosts.facts import Facts, assume_facts, facts_command, gather_facts
from testbed.hosts.fleet import Fleet
from testbed.hosts.leases import ask_lease, lease_command, refuse_others, together
from testbed.hosts.steps import Command
from testbed.hosts.transport import Transport
from testbed.provision.plan import plan_fleet

if TYPE_CHECKING:
    from testbed.campaigns.target import Target

__all__ = ["Probed", "gather", "needs_rack", "probe_hosts", "probe_phase", "refuse_held"]

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


def refuse_held(fleet: Fleet) -> None:
    """Refuse a lab that somebody else has, before anything is written here or there.

    What is refused for certain only as the hosts are held, such as a second run of one's own, is not looked for.

    Raises:
        TestbedError: Somebody else has a host; or one did not answer.
    """

    def ask(host: Host, transport: Transport) -> None:
        refuse_others(host, ask_lease(host, transport, lease_command(host, "show")))

    failures = [outcome.error for outcome in fleet.each(ask) if outcome.error is not None]
    held = [failure for failure in failures if isinstance(failure, HeldError)]
    if held:
        raise together(held)
    if failures:
        raise _together(failures)


def _together(errors: Sequence[TestbedError | OSError]) -> TestbedError | OSError:
    """Return one error that names every host which failed; a refused key decides the exit code."""
    if len(errors) == 1:
        return errors[0]
    first = next((error for error in errors if isinstance(error, HostKeyError)), errors[0])
    text = "\n".join(["some hosts could not be asked:", *(f"  {error}" for error in errors)])
    together = TestbedError(text, hint=getattr(first, "hint", ""))
    together.exit_code = getattr(first, "exit_code", TestbedError.exit_code)
    return together


def gather(target: Target, probed: Probed, authority: Authority | None = None) -> RunInputs:
    """Return all that the plan of a run (or of what is left of it) follows from.

    Args:
        target: What is to be run.
        probed: What the hosts answered.
        authority: What certifies the hosts for the data plane. Where there is none, as in a dry run, one does that is
            forgotten at once.
    """
    work = _work(target, probed)
    trials, rack = _trials_left(target), needs_rack(target)
    return RunInputs(
        run=target.run,
        campaign=target.campaign,
        inventory=target.inventory,
        work=work,
        trials=[trial for trial in trials if not target.on_paper(trial)],
        computed=[trial for trial in trials if target.on_paper(trial)],
        provision=plan_fleet(target.inventory, probed.facts) if rack else (),
        objects_at_bs=probed.objects_at_bs,
        key=secrets.token_hex(32),
        certificates=_certificates(target.inventory, authority),
        folder=target.folder,
        rack=rack,
    )


def needs_rack(target: Target) -> bool:
    """Return whether hosts are needed for what is left of a run: for what runs there, or the logs of what ran there."""
    left = _trials_left(target)
    if not left or not all(map(target.on_paper, left)):
        return True
    devices = {device.name for device in target.inventory.devices}
    return not is_collected(read_journal(target.folder / "journal.jsonl"), devices)


def _trials_left(target: Target) -> list[Trial]:
    whole = _whole_trials(target.folder)
    return [trial for trial in target.trials if trial.name not in whole]


def _work(target: Target, probed: Probed) -> Work:
    """Return what is run, by the campaign's workload."""
    if isinstance(target.campaign, BroadcastCampaign):
        from testbed.campaigns.broadcast import broadcast_of

        return broadcast_of(target.run, target.campaign, target.inventory, target.trials)
    from testbed.campaigns.experts import experts_of

    return experts_of(
        target.run,
        target.folder,
        target.campaign,
        target.inventory,
        target.trials,
        target.passes,
        probed.facts,
        target.serving,
    )


def _certificates(inventory: Inventory, authority: Authority | None) -> dict[str, dict[str, bytes]]:
    if inventory.network.security != "tls":
        return {}
    now = datetime.now(UTC)
    return host_certificates(authority or new_authority(inventory.lab, now), inventory, now)


def _whole_trials(folder: Path) -> set[str]:
    """Return the trials that are whole on disk."""
    if not (folder / "tables").is_dir():
        return set()
    from testbed.records import load_run

    return {str(name) for name in load_run(folder).completed["trial"]}
