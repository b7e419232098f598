"""Ask the hosts of a fleet what they are, and plan what has to change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from testbed.config.inventory import Host
from testbed.errors import ConnectError, DeadlineError
from testbed.hosts.deadline import Deadline
from testbed.hosts.facts import Facts, assume_facts, gather_facts
from testbed.hosts.fleet import Fleet, Outcome
from testbed.hosts.steps import Command
from testbed.hosts.transport import Transport
from testbed.provision.aspect import Site
from testbed.provision.bounded import Bounded
from testbed.provision.hands import Progress
from testbed.provision.plan import HostPlan, plan_host

__all__ = ["ask_host", "survey_fleet"]


def ask_host(fleet: Fleet, host: Host, deadline: Deadline, *, afresh: bool = False) -> Facts:
    """Ask one host for its facts; where a password for sudo was given, prove that it does.

    Args:
        fleet: The hosts' connections.
        host: The host.
        deadline: By when, at the latest.
        afresh: Whether to try again what could be imported when the host was last asked, and is as it was.

    Raises:
        HostError: The host cannot be reached, cannot answer, or does not take the password.
    """
    transport = Bounded(fleet, host, deadline)
    facts = gather_facts(host, transport, trust_memory=not afresh)
    if fleet.become is not None and not facts.sudo:
        transport.run(Command(host.name, "true", "become root", become=True))
        facts = replace(facts, sudo=True)
    return facts


def survey_fleet(
    fleet: Fleet,
    hosts: Sequence[Host],
    site: Site,
    *,
    assume: bool = False,
    afresh: bool = False,
    host_timeout_s: float = math.inf,
    progress: Progress = lambda host, text: None,
) -> list[HostPlan]:
    """Ask the hosts what they are and plan what has to change.

    Args:
        fleet: The hosts' connections.
        hosts: The hosts to plan for.
        site: What they have in common.
        assume: Plan from assumed facts where a host cannot be reached.
        afresh: Whether to try again what could be imported when a host was last asked.
        host_timeout_s: The most seconds for one host, its connect included.
        progress: Is told what happens.

    Returns:
        One plan for each host, in the inventory's order.
    """
    deadlines = {host.name: Deadline(host_timeout_s) for host in hosts}

    def ask(host: Host, _transport: Transport) -> Facts:
        progress(host.name, "ask for facts")
        return ask_host(fleet, host, deadlines[host.name], afresh=afresh)

    def plan(outcome: Outcome[Facts]) -> HostPlan:
        if outcome.ok:
            return plan_host(outcome.host, outcome.get(), site)
        if assume and isinstance(outcome.error, ConnectError | DeadlineError):
            return replace(plan_host(outcome.host, assume_facts(outcome.host), site), error=outcome.error)
        return HostPlan(outcome.host, error=outcome.error)

    outcomes = fleet.each(
        ask, hosts, on_done=lambda outcome: progress(outcome.host.name, ""), deadlines=deadlines
    )
    return [plan(outcome) for outcome in outcomes]
