"""Give hosts back as they were: what was noted before each change is brought back, the last change first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.config.inventory import Host
from testbed.errors import HostError, TestbedError
from testbed.hosts.deadline import Deadline
from testbed.hosts.facts import Facts
from testbed.hosts.fleet import Fleet, Outcome
from testbed.hosts.payload import HOME, shell_path
from testbed.hosts.steps import Command, Step
from testbed.hosts.transport import Transport
from testbed.provision.apply import Way
from testbed.provision.aspect import Site
from testbed.provision.aspects import aspects_of
from testbed.provision.hands import Hands
from testbed.provision.limit import FailLimit
from testbed.provision.record import RECORD
from testbed.provision.survey import ask_host

__all__ = ["UndoPlan", "UndoResult", "Undoing", "plan_undo", "undo_fleet"]

REMOVE_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Undoing:
    """What brings back what there was before one change.

    Attributes:
        item: What was changed.
        unix_s: When, on the host's clock; None for the record itself, which goes at the end.
        steps: What brings it back.
    """

    item: str
    unix_s: float | None
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class UndoPlan:
    """What is to be undone on one host.

    Attributes:
        host: The host.
        undoings: What is to be undone, in order; nothing where nothing was ever changed.
    """

    host: Host
    undoings: tuple[Undoing, ...] = ()


@dataclass(frozen=True)
class UndoResult:
    """What came of one host.

    Attributes:
        host: The host.
        plan: What was to be undone; None where the host could not be asked.
        undone: How many of it were undone, from the first on.
        changed: Whether something was done.
        error: What went wrong.
    """

    host: Host
    plan: UndoPlan | None = None
    undone: int = 0
    changed: bool = False
    error: TestbedError | OSError | None = None

    @property
    def ok(self) -> bool:
        """Whether the host is as it was."""
        return self.error is None

    def as_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        undoings = self.plan.undoings if self.plan else ()
        return {
            "host": self.host.name,
            "ok": self.ok,
            "changed": self.changed,
            "undone": [
                {
                    "item": one.item,
                    "unix_s": one.unix_s,
                    "steps": [step.line() for step in one.steps],
                    "done": index < self.undone,
                }
                for index, one in enumerate(undoings)
            ],
            "error": str(self.error) if self.error else None,
        }


def plan_undo(host: Host, facts: Facts, site: Site) -> UndoPlan:
    """Return what brings a host back to what it was before testbed first changed it. Pure.

    Args:
        host: The host.
        facts: What it is.
        site: What all hosts have in common.

    Raises:
        HostError: The record holds what this testbed does not know, or root is needed and cannot be had.
    """
    aspects = {aspect.item: aspect for aspect in aspects_of(site)}
    unknown = sorted({entry.item for entry in facts.record} - set(aspects))
    if unknown:
        raise HostError(
            host.name,
            f"its record holds {', '.join(unknown)}, which this testbed does not know; nothing was undone",
            hint="use the testbed that provisioned it, or a newer one",
        )
    undoings = [
        Undoing(entry.item, entry.unix_s, tuple(aspects[entry.item].undo(host, facts, entry.recorded)))
        for entry in reversed(facts.record)
    ]
    if any(isinstance(step, Command) and step.become for one in undoings for step in one.steps):
        _check_root(host, facts)
    end = _end(host, facts)
    if end:
        undoings.append(Undoing("record", None, end))
    return UndoPlan(host, tuple(one for one in undoings if one.steps))


def _check_root(host: Host, facts: Facts) -> None:
    if not facts.sudo:
        raise HostError(
            host.name,
            f"{facts.user} cannot become root without a password, which undoing needs",
            hint="give the password by --ask-become-password",
        )


def _end(host: Host, facts: Facts) -> tuple[Step, ...]:
    """Return the steps by which the record goes, and with it ``~/.testbed`` where testbed made that.

    The folder gets another name first, in one go: if it is cut off, what is left is known for what it is.
    """
    if not facts.record and not facts.left:
        return ()
    home, gone, record = shell_path(HOME), shell_path(f"{HOME}.undone"), shell_path(RECORD)
    folders = [entry.recorded for entry in facts.record if entry.item == "folders"]
    parts = [f"rm -rf {gone}"]
    if any(recorded.get("sudo_mark") is False for recorded in folders):
        # Sudo's own note that the user has used it, which we made it write; no step after this one uses it.
        parts.append(f"rm -f {shell_path('~/.sudo_as_admin_successful')}")
    if any("." in recorded.get("made", ()) for recorded in folders):
        parts += [f"if [ -d {home} ]; then mv -T {home} {gone}; fi", f"rm -rf {gone}"]
    else:
        parts.append(f"rm -f {record}")
    return (Command(host.name, " && ".join(parts), "remove the record", REMOVE_TIMEOUT_S),)


def undo_fleet(
    fleet: Fleet,
    hosts: Sequence[Host],
    site: Site,
    way: Way | None = None,
    *,
    dry_run: bool = False,
    on_result: Callable[[UndoResult], None] = lambda result: None,
) -> list[UndoResult]:
    """Give hosts back as they were, side by side.

    Args:
        fleet: The hosts' connections.
        hosts: The hosts.
        site: What they have in common.
        way: How it is done.
        dry_run: Whether to plan only.
        on_result: Is given each result when it is there, from the host's thread.

    Returns:
        One result for each host, in the inventory's order.
    """
    way = way or Way()
    limit = FailLimit(len(hosts), way.fail_percent)

    deadlines = {host.name: Deadline(way.host_timeout_s) for host in hosts}

    def one(host: Host, _transport: Transport) -> UndoResult:
        limit.check(host.name)
        deadline = deadlines[host.name]
        way.progress(host.name, "ask for facts")
        plan = plan_undo(host, ask_host(fleet, host, deadline), site)
        if dry_run or not plan.undoings:
            return UndoResult(host, plan)
        undone = 0
        with Hands(fleet, host, "provision --undo", deadline, way.progress) as hands:
            try:
                hands.hold()
                # Asked again, now that nobody else changes it: with the record goes what only the record tells of.
                plan = plan_undo(host, ask_host(fleet, host, deadline), site)
                for undoing in plan.undoings:
                    limit.check(host.name)
                    for step in undoing.steps:
                        hands.do(step)
                    undone += 1
            except (TestbedError, OSError) as error:
                return UndoResult(host, plan, undone, hands.done, error)
        return UndoResult(host, plan, undone, changed=hands.done)

    def result_of(outcome: Outcome[UndoResult]) -> UndoResult:
        return outcome.get() if outcome.error is None else UndoResult(outcome.host, error=outcome.error)

    def done(outcome: Outcome[UndoResult]) -> None:
        result = result_of(outcome)
        limit.note(failed=not result.ok)
        way.progress(outcome.host.name, "")
        on_result(result)

    outcomes = fleet.each(one, hosts, on_done=done, deadlines=deadlines)
    return [result_of(outcome) for outcome in outcomes]
