"""Provision many hosts, each by itself: ask it, plan, apply, and look again. None waits for another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from testbed.config.inventory import Host
from testbed.errors import HostError, TestbedError
from testbed.hosts.deadline import Deadline
from testbed.hosts.fleet import Fleet, Outcome
from testbed.provision.aspect import Change, Site
from testbed.provision.hands import Hands, Progress
from testbed.provision.limit import FailLimit
from testbed.provision.plan import HostPlan, plan_host, steps_of
from testbed.provision.survey import ask_host

__all__ = ["HOST_TIMEOUT_S", "HostResult", "Way", "apply_plans", "provision_fleet"]

HOST_TIMEOUT_S = 7200.0
ROUNDS = 3  # how often a host is planned anew, for what shows itself only when other things are done


@dataclass(frozen=True)
class Way:
    """How hosts are provisioned.

    Attributes:
        host_timeout_s: The most seconds for one host, its connect included.
        fail_percent: Once more of a hundred hosts have failed, nothing more is begun.
        afresh: Whether to try again what could be imported when a host was last asked.
        progress: Is told what happens.
    """

    host_timeout_s: float = HOST_TIMEOUT_S
    fail_percent: float = 100.0
    afresh: bool = False
    progress: Progress = lambda host, text: None


@dataclass(frozen=True)
class HostResult:
    """What came of one host.

    Attributes:
        plan: What was to be done, with all that came up on the way.
        changed: Whether something was done.
        after: What the host is afterwards, where something was done.
        error: What went wrong.
    """

    plan: HostPlan
    changed: bool = False
    after: HostPlan | None = None
    error: TestbedError | OSError | None = None

    @property
    def last(self) -> HostPlan:
        """What the host was when it was last looked at."""
        return self.after or self.plan

    @property
    def ok(self) -> bool:
        """Whether the host is as it should be now."""
        return self.error is None and self.last.ok

    def as_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        last = self.last
        return self.plan.as_json() | {
            "ok": self.ok,
            "changed": self.changed,
            "findings": last.as_json()["findings"],
            "facts": last.facts.as_json() if last.facts else None,
            "error": str(self.error) if self.error else None,
        }


def provision_fleet(
    fleet: Fleet,
    hosts: Sequence[Host],
    site: Site,
    way: Way | None = None,
    *,
    on_result: Callable[[HostResult], None] = lambda result: None,
) -> list[HostResult]:
    """Ask hosts what they are and make them ready, side by side.

    Args:
        fleet: The hosts' connections.
        hosts: The hosts.
        site: What they have in common.
        way: How it is done.
        on_result: Is given each result when it is there, from the host's thread.

    Returns:
        One result for each host, in the inventory's order.
    """
    way = way or Way()
    work = _Work(fleet, site, way, FailLimit(len(hosts), way.fail_percent))

    def one(host: Host, deadline: Deadline) -> HostResult:
        work.limit.check(host.name)
        way.progress(host.name, "ask for facts")
        facts = ask_host(fleet, host, deadline, afresh=way.afresh)
        return work.apply(plan_host(host, facts, site), deadline)

    return _results(fleet, hosts, work, one, on_result)


def apply_plans(
    fleet: Fleet, plans: Sequence[HostPlan], site: Site, way: Way | None = None
) -> list[HostResult]:
    """Do what was planned, host by host side by side, and look at each changed host again.

    A host that something keeps from being used is left as it is.

    Args:
        fleet: The hosts' connections.
        plans: The plans.
        site: What the hosts have in common.
        way: How it is done.

    Returns:
        One result for each plan, in the inventory's order.
    """
    way = way or Way()
    work = _Work(fleet, site, way, FailLimit(len(plans), way.fail_percent))
    by_name = {plan.host.name: plan for plan in plans}

    def one(host: Host, deadline: Deadline) -> HostResult:
        plan = by_name[host.name]
        return HostResult(plan, error=plan.error) if plan.error else work.apply(plan, deadline)

    return _results(fleet, [plan.host for plan in plans], work, one, lambda result: None)


def _results(
    fleet: Fleet,
    hosts: Sequence[Host],
    work: _Work,
    one: Callable[[Host, Deadline], HostResult],
    on_result: Callable[[HostResult], None],
) -> list[HostResult]:
    def result_of(outcome: Outcome[HostResult]) -> HostResult:
        if outcome.error is None:
            return outcome.get()
        return HostResult(HostPlan(outcome.host, error=outcome.error), error=outcome.error)

    def done(outcome: Outcome[HostResult]) -> None:
        result = result_of(outcome)
        work.limit.note(failed=not result.ok)
        work.way.progress(outcome.host.name, "")
        on_result(result)

    deadlines = {host.name: Deadline(work.way.host_timeout_s) for host in hosts}
    outcomes = fleet.each(
        lambda host, transport: one(host, deadlines[host.name]), hosts, on_done=done, deadlines=deadlines
    )
    return [result_of(outcome) for outcome in outcomes]


@dataclass(frozen=True)
class _Work:
    """What all hosts' work has in common."""

    fleet: Fleet
    site: Site
    way: Way
    limit: FailLimit

    def apply(self, plan: HostPlan, deadline: Deadline) -> HostResult:
        """Do what was planned on one host and look again, until nothing new comes up."""
        if not plan.ok or not plan.changes:
            return HostResult(plan)
        done = _Done()
        with Hands(self.fleet, plan.host, "provision", deadline, self.way.progress) as hands:
            after: HostPlan | None = None
            try:
                for _ in range(ROUNDS):
                    last = after or plan
                    self._do(last, done.new(last.changes), done, hands)
                    after = self._look_again(plan.host, deadline)
                    if not after.ok or not done.new(after.changes):
                        break
            except (TestbedError, OSError) as error:
                return HostResult(done.over(plan), hands.done, error=error)
        return HostResult(done.over(plan), changed=True, after=after, error=_left(after, done))

    def _do(self, plan: HostPlan, changes: Sequence[Change], done: _Done, hands: Hands) -> None:
        for change in changes:
            self.limit.check(plan.host.name)
            done.changes.append(change)
            for step in steps_of(change, plan.facts):
                hands.do(step)
            if change.reboots:
                return  # what else there is to do shows itself when it has been looked at again
            if change.reconnect:
                self.fleet.reconnect(plan.host.name)

    def _look_again(self, host: Host, deadline: Deadline) -> HostPlan:
        self.way.progress(host.name, "look again")
        facts = ask_host(self.fleet, host, deadline)
        return plan_host(host, facts, self.site)


@dataclass
class _Done:
    """The changes that were begun on one host."""

    changes: list[Change] = field(default_factory=list)

    def new(self, changes: Sequence[Change]) -> list[Change]:
        """Return those of some changes that were not begun before."""
        known = {(change.item, change.title, change.reboots) for change in self.changes}
        return [change for change in changes if (change.item, change.title, change.reboots) not in known]

    def over(self, plan: HostPlan) -> HostPlan:
        """Return a plan with the changes that came up later."""
        return replace(
            plan, changes=(*plan.changes, *(one for one in self.changes if one not in plan.changes))
        )


def _left(after: HostPlan | None, done: _Done) -> HostError | None:
    """Return the error for a host where something that was done did not hold, or where there is no end to it."""
    if after is None or not after.changes:
        return None
    new = done.new(after.changes)
    left = after.changes if after.ok else [change for change in after.changes if change not in new]
    if not left:
        return None  # what else there is to do was not begun: a failure says why
    items = ", ".join(dict.fromkeys(change.item for change in left))
    return HostError(after.host.name, f"still not as it should be: {items}")
