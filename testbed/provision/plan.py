"""The plan for a host and for a fleet: what is to be changed, and what only a person can change. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from testbed.config.inventory import Host, Inventory
from testbed.errors import TestbedError
from testbed.hosts.facts import Facts
from testbed.hosts.steps import Command, Step
from testbed.provision.aspect import Change, Finding, Site
from testbed.provision.aspects import RUN_ITEMS, aspects_of
from testbed.provision.code import PayloadCode, load_payload_code
from testbed.provision.record import is_recorded, record_step

__all__ = ["HostPlan", "check_host", "plan_changes", "plan_fleet", "plan_host", "steps_of"]


@dataclass(frozen=True)
class HostPlan:
    """What is to be done on one host.

    Attributes:
        host: The host.
        facts: What it is; None where it could not be asked.
        changes: What is to be changed.
        findings: What cannot be changed from here.
        error: Why it could not be asked. With assumed facts beside it, the plan holds all the same.
    """

    host: Host
    facts: Facts | None = None
    changes: tuple[Change, ...] = ()
    findings: tuple[Finding, ...] = ()
    error: TestbedError | OSError | None = None

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings that keep the host from being used."""
        return tuple(finding for finding in self.findings if finding.level == "failure")

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of all changes, in order."""
        return tuple(step for change in self.changes for step in steps_of(change, self.facts))

    @property
    def ok(self) -> bool:
        """Whether the host could be asked and nothing keeps it from being used."""
        return self.facts is not None and not self.failures

    def as_json(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return {
            "host": self.host.name,
            "assumed": bool(self.facts and self.facts.assumed),
            "changes": [
                {
                    "item": change.item,
                    "title": change.title,
                    "before": change.before,
                    "after": change.after,
                    "steps": [step.line() for step in steps_of(change, self.facts)],
                }
                for change in self.changes
            ],
            "findings": [
                {"level": f.level, "item": f.item, "text": f.text, "hint": f.hint} for f in self.findings
            ],
            "facts": self.facts.as_json() if self.facts else None,
            "error": str(self.error) if self.error else None,
        }


def plan_changes(
    host: Host, facts: Facts, site: Site, items: Collection[str] | None = None
) -> tuple[Change, ...]:
    """Return what has to change on a host; nothing where it is as it should be.

    Args:
        host: The host.
        facts: What it is.
        site: What all hosts have in common.
        items: The aspects that are looked at; all where left out.
    """
    aspects = [aspect for aspect in aspects_of(site) if items is None or aspect.item in items]
    return tuple(change for aspect in aspects for change in aspect.changes(host, facts))


def check_host(host: Host, facts: Facts, site: Site, changes: Sequence[Change] = ()) -> tuple[Finding, ...]:
    """Return what is wrong on a host besides what the changes put right; nothing where nobody has asked it.

    Args:
        host: The host.
        facts: What it is.
        site: What all hosts have in common.
        changes: What is about to be changed.
    """
    if facts.assumed:
        return ()
    broken = tuple(
        Finding(host.name, "failure", part, f"the probe of its {part} failed: {text}")
        for part, text in facts.errors.items()
    )
    found = (finding for aspect in aspects_of(site) for finding in aspect.findings(host, facts, changes))
    return (*broken, *found)


def plan_host(host: Host, facts: Facts, site: Site, items: Collection[str] | None = None) -> HostPlan:
    """Return the plan for one host from what it is; arguments as for :func:`plan_changes`."""
    wanted = plan_changes(host, facts, site, items)
    refused = () if site.reboot else tuple(change for change in wanted if change.reboots)
    changes = tuple(change for change in wanted if change not in refused)
    hint = "`testbed provision --reboot` reboots it, when nobody else works there"
    reboots = (
        Finding(host.name, "failure", change.item, f"{change.title} needs a reboot", hint)
        for change in refused
    )
    # Findings are told of all that is wanted: what would be put right by a reboot is not said twice.
    return HostPlan(host, facts, changes, (*check_host(host, facts, site, wanted), *reboots))


def steps_of(change: Change, facts: Facts | None) -> tuple[Step, ...]:
    """Return a change's steps, before them the one that notes what there was, where that is not noted yet."""
    *steps, last = change.steps
    if change.reboots and isinstance(last, Command):
        last = replace(last, reboots=True)
    note = () if facts is not None and is_recorded(change, facts) else (record_step(change),)
    return (*note, *steps, last)


def plan_fleet(
    inventory: Inventory, facts: Mapping[str, Facts], code: PayloadCode | None = None
) -> tuple[Step, ...]:
    """Return the steps that make all hosts of an inventory ready for a run, each host's in order.

    Only what a run needs is put right; what else a host lacks is for `testbed provision`.

    Args:
        inventory: The hosts.
        facts: What each of them is.
        code: The payload code that they should have; this machine's where left out.

    Raises:
        TestbedError: A host cannot be used as it is, and only a person can change that.
    """
    site = Site(code or load_payload_code())
    plans = [plan_host(host, facts[host.name], site, RUN_ITEMS) for host in inventory.hosts.values()]
    failures = [failure for plan in plans for failure in plan.failures]
    if failures:
        lines = [f"  {f.host}: {f.text}" + (f" (hint: {f.hint})" if f.hint else "") for f in failures]
        raise TestbedError(
            "\n".join(["some hosts cannot be used as they are:", *lines]),
            hint="`testbed provision` looks again",
        )
    return tuple(step for plan in plans for step in plan.steps)
