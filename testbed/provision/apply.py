"""Provision many hosts, each by itself: ask it, plan, apply, and look again. None waits for another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from testbed.config.inventory import Host
from testbed.errors import HeldError, HostError, TestbedError
from testbed.hosts.deadline import Deadline
from testbed.hosts.fleet import Fleet, Outcome
from testbed.provision.aspect import Change, Site
from testbed.provision.hands import Hands, Progress
from testbed.provision.limit import FailLimit
from testbed.provision.plan import HostPlan, plan_host, steps_of
from testbed.provision.survey import ask_host

__all__ = ["HOST_TIMEOUT_S", "HostResult", "Way", "apply_plans", "provision_fleet"]

HOST_TIMEOUT_S = 7200.0
NOT_REACHED = "not reached"
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
        states: What became of each of the plan's changes: ``done``, ``failed`` or ``not reached``; empty where none was
            begun.
    """

    plan: HostPlan
    changed: bool = False
    after: HostPlan | None = None
    error: TestbedError | OSError | None = None
    states: tuple[str, ...] = ()

    def items(self, state: str) -> list[str]:
        """Return the items of the changes that are in some state."""
        states = self.states or (NOT_REACHED,) * len(self.plan.changes)
        return [
            change.item for change, found in zip(self.plan.changes, states, strict=True) if found == state
        ]

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
        last, plan = self.last, self.plan.as_json()
        states = self.states or (NOT_REACHED,) * len(plan["changes"])
        changes = [one | {"state": state} for one, state in zip(plan["changes"], states, strict=True)]
        return plan | {
            "changes": changes,
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
            after = plan
            try:
                for _ in range(ROUNDS):
                    last = after
                    done.planned += _without(last.changes, done.planned)
                    self._do(last, done.new(last.changes), done, hands)
                    after = self._look_again(plan.host, deadline)
                    if not after.ok or not done.new(after.changes):
                        break
            except (TestbedError, OSError) as error:
                if isinstance(error, HeldError) and not hands.done:
                    done.begun, done.at = [], None  # refused before anything was begun
                failed = () if done.at is None else (done.at,)
                return done.result(plan, failed, changed=hands.done, error=error)
        done.planned += _without(after.changes, done.planned)
        left = _left(after, done)
        return done.result(plan, left, changed=True, after=after, error=_not_held(plan.host, left))

    def _do(self, plan: HostPlan, changes: Sequence[Change], done: _Done, hands: Hands) -> None:
        for change in changes:
            self.limit.check(plan.host.name)
            done.begun.append(change)
            done.at = change
            for step in steps_of(change, plan.facts):
                hands.do(step)
            done.at = None
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
    """The changes of one host.

    Attributes:
        planned: All that came up, in order.
        begun: Those that were begun.
        at: The one that is at work; None between two.
    """

    planned: list[Change] = field(default_factory=list)
    begun: list[Change] = field(default_factory=list)
    at: Change | None = None

    def new(self, changes: Sequence[Change]) -> list[Change]:
        """Return those of some changes that were not begun before."""
        return _without(changes, self.begun)

    def result(self, plan: HostPlan, failed: Sequence[Change], **about: Any) -> HostResult:
        """Return a host's result: its plan with the changes that came up later, and what became of each.

        Args:
            plan: What was to be done at first.
            failed: The changes that failed or did not hold.
            **about: What else the result says.
        """
        wrong, begun = set(map(_key, failed)), set(map(_key, self.begun))
        states = tuple(
            "failed" if _key(one) in wrong else "done" if _key(one) in begun else NOT_REACHED
            for one in self.planned
        )
        return HostResult(replace(plan, changes=tuple(self.planned)), states=states, **about)


def _key(change: Change) -> tuple[str, str, bool]:
    """Return what a change is known by: before and after may be worded otherwise when it is planned again."""
    return change.item, change.title, change.reboots


def _without(changes: Sequence[Change], known: Sequence[Change]) -> list[Change]:
    keys = set(map(_key, known))
    return [change for change in changes if _key(change) not in keys]


def _left(after: HostPlan, done: _Done) -> Sequence[Change]:
    """Return what was done and did not hold, or has no end; what else there is to do a failure keeps from beginning."""
    new = done.new(after.changes)
    return after.changes if after.ok else [change for change in after.changes if change not in new]


def _not_held(host: Host, left: Sequence[Change]) -> HostError | None:
    items = ", ".join(dict.fromkeys(change.item for change in left))
    return HostError(host.name, f"still not as it should be: {items}") if left else None
