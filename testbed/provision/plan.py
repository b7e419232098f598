"""The plan for a host and for a fleet: what is to be changed, and what only a person can change. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from testbed.config.inventory import Host, Inventory
from testbed.errors import TestbedError
from testbed.hosts.facts import Facts
from testbed.hosts.steps import Step
from testbed.provision.changes import Change, Desired, desired_state, plan_provision
from testbed.provision.check import Finding, check_host
from testbed.provision.code import PayloadCode, load_payload_code

__all__ = [
    "Change",
    "Desired",
    "HostPlan",
    "desired_state",
    "plan_fleet",
    "plan_host",
    "plan_provision",
]


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
        return tuple(step for change in self.changes for step in change.steps)

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
                    "steps": [step.line() for step in change.steps],
                }
                for change in self.changes
            ],
            "findings": [
                {"level": f.level, "item": f.item, "text": f.text, "hint": f.hint} for f in self.findings
            ],
            "facts": self.facts.as_json() if self.facts else None,
            "error": str(self.error) if self.error else None,
        }


def plan_host(host: Host, facts: Facts, code: PayloadCode) -> HostPlan:
    """Return the plan for one host from what it is."""
    changes = plan_provision(host, facts, code)
    return HostPlan(host, facts, tuple(changes), tuple(check_host(host, facts, changes)))


def plan_fleet(
    inventory: Inventory, facts: Mapping[str, Facts], code: PayloadCode | None = None
) -> tuple[Step, ...]:
    """Return the steps that make all hosts of an inventory ready, each host's in order.

    Args:
        inventory: The hosts.
        facts: What each of them is.
        code: The payload code that they should have; this machine's where left out.

    Raises:
        TestbedError: A host cannot be used as it is, and only a person can change that.
    """
    code = code or load_payload_code()
    plans = [plan_host(host, facts[host.name], code) for host in inventory.hosts.values()]
    failures = [failure for plan in plans for failure in plan.failures]
    if failures:
        lines = [f"  {f.host}: {f.text}" + (f" (hint: {f.hint})" if f.hint else "") for f in failures]
        raise TestbedError(
            "\n".join(["some hosts cannot be used as they are:", *lines]),
            hint="`testbed provision` looks again",
        )
    return tuple(step for plan in plans for step in plan.steps)
