"""Provision many hosts: ask them all, plan, apply, ask again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from testbed.config.inventory import Host
from testbed.errors import CommandError, ConnectError, DeadlineError, HostError, TestbedError
from testbed.hosts.facts import Facts, assume_facts, gather_facts
from testbed.hosts.fleet import Fleet, Outcome
from testbed.hosts.transport import Transport
from testbed.provision.code import PayloadCode
from testbed.provision.plan import HostPlan, plan_host

__all__ = ["HostResult", "Progress", "apply_plans", "survey_fleet"]

Progress = Callable[[str, str], None]
"""Is told a host's name and what happens there (nothing more: an empty text), from the host's thread."""


@dataclass(frozen=True)
class HostResult:
    """What came of one host.

    Attributes:
        plan: What was to be done.
        changed: Whether something was done.
        after: What the host is afterwards, where something was done.
        error: What went wrong.
    """

    plan: HostPlan
    changed: bool = False
    after: HostPlan | None = None
    error: TestbedError | OSError | None = None

    @property
    def ok(self) -> bool:
        """Whether the host is as it should be now."""
        return self.error is None and (self.after or self.plan).ok

    def as_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        last = self.after or self.plan
        return self.plan.as_json() | {
            "ok": self.ok,
            "changed": self.changed,
            "findings": last.as_json()["findings"],
            "facts": last.facts.as_json() if last.facts else None,
            "error": str(self.error) if self.error else None,
        }


def survey_fleet(
    fleet: Fleet,
    hosts: Sequence[Host],
    code: PayloadCode,
    *,
    assume: bool = False,
    progress: Progress = lambda host, text: None,
) -> list[HostPlan]:
    """Ask the hosts what they are and plan what has to change.

    Args:
        fleet: The hosts' connections.
        hosts: The hosts to plan for.
        code: The payload code that they should have.
        assume: Plan from assumed facts where a host cannot be reached.
        progress: Is told what happens.

    Returns:
        One plan for each host, in the inventory's order.
    """

    def ask(host: Host, transport: Transport) -> Facts:
        progress(host.name, "ask for facts")
        return gather_facts(host, transport)

    def plan(outcome: Outcome[Facts]) -> HostPlan:
        if outcome.ok:
            return plan_host(outcome.host, outcome.get(), code)
        if assume and isinstance(outcome.error, ConnectError | DeadlineError):
            return replace(plan_host(outcome.host, assume_facts(outcome.host), code), error=outcome.error)
        return HostPlan(outcome.host, error=outcome.error)

    outcomes = fleet.each(ask, hosts, on_done=lambda outcome: progress(outcome.host.name, ""))
    return [plan(outcome) for outcome in outcomes]


def apply_plans(
    fleet: Fleet,
    plans: Sequence[HostPlan],
    code: PayloadCode,
    *,
    progress: Progress = lambda host, text: None,
) -> list[HostResult]:
    """Do what was planned, host by host side by side, and look at each changed host again.

    A host that something keeps from being used is left as it is.

    Args:
        fleet: The hosts' connections.
        plans: The plans.
        code: The payload code, to look again.
        progress: Is told what happens.

    Returns:
        One result for each plan, in the inventory's order.
    """
    by_name = {plan.host.name: plan for plan in plans}

    def one(host: Host, transport: Transport) -> HostResult:
        plan = by_name[host.name]
        if not plan.ok or not plan.changes:
            return HostResult(plan, error=plan.error)
        done = False
        try:
            for change in plan.changes:
                for step in change.steps:
                    progress(host.name, step.title)
                    fleet.do(step)
                    done = True
                if change.reconnect:
                    fleet.reconnect(host.name)
            progress(host.name, "look again")
            same_python = all(change.item != "python" for change in plan.changes)
            facts = gather_facts(host, fleet.transport(host.name), before=plan.facts if same_python else None)
            after = plan_host(host, facts, code)
        except (TestbedError, OSError) as error:
            if isinstance(error, CommandError) and "ensurepip" in error.stderr and not error.hint:
                error.hint = "on the host: sudo apt install python3-venv"
            return HostResult(plan, changed=done, error=error)
        left = [change.item for change in after.changes]
        if left:
            text = f"still not as it should be: {', '.join(left)}"
            return HostResult(plan, changed=True, after=after, error=HostError(host.name, text))
        return HostResult(plan, changed=True, after=after)

    outcomes = fleet.each(
        one, [plan.host for plan in plans], on_done=lambda outcome: progress(outcome.host.name, "")
    )
    return [outcome.get() for outcome in outcomes]
