"""A fleet as it is: a table of facts, and its problems. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from testbed.hosts.facts import Facts
from testbed.provision.grouping import Problem, Told, group_problems, told_error, told_finding
from testbed.provision.plan import HostPlan

__all__ = ["HEADING", "fleet_json", "fleet_problems", "fleet_rows", "state_of"]

GIB = 2**30
HEADING = (
    "host", "board", "jetpack", "python", "torch", "cpus", "memory GiB", "disk GiB", "power", "clock ms", "sudo",
    "services", "state",
)  # fmt: skip
_UNKNOWN = "-"


def fleet_problems(plans: Sequence[HostPlan]) -> list[Problem]:
    """Return what is wrong in a fleet, equal problems as one, the worst first."""
    told: list[Told] = []
    for plan in plans:
        told += [told_finding(plan.host, finding) for finding in plan.findings]
        if plan.error is not None:
            told.append(told_error(plan.host, plan.error))
    return group_problems(told)


def state_of(plan: HostPlan) -> str:
    """Return how a host is, in a few words."""
    if plan.facts is None:
        return "not asked"
    if plan.failures:
        return "cannot be used"
    if plan.changes:
        items = ", ".join(dict.fromkeys(change.item for change in plan.changes))
        return f"to provision: {items}"
    return "ready"


def fleet_rows(plans: Sequence[HostPlan]) -> list[tuple[str, ...]]:
    """Return the table of facts with its heading; memory is free/all, disk what is free, clock ahead of ours."""
    return [HEADING, *(_row(plan) for plan in plans)]


def _row(plan: HostPlan) -> tuple[str, ...]:
    facts, name = plan.facts, plan.host.name
    if facts is None:
        empty = (_UNKNOWN,) * (len(HEADING) - 3)
        return (name, plan.host.board or _UNKNOWN, *empty, state_of(plan))
    jetpack = f"{facts.jetpack} ({facts.l4t})" if facts.jetpack else _UNKNOWN
    memory = _UNKNOWN
    if facts.memory_bytes is not None and facts.memory_free_bytes is not None:
        memory = f"{facts.memory_free_bytes / GIB:.1f}/{facts.memory_bytes / GIB:.1f}"
    disk = _UNKNOWN if facts.disk_free_bytes is None else f"{facts.disk_free_bytes / GIB:.1f}"
    return (
        name,
        facts.board_name or _UNKNOWN,
        jetpack,
        facts.python or _UNKNOWN,
        _torch(facts),
        str(facts.cpu_count or _UNKNOWN),
        memory,
        disk,
        facts.power_mode or _UNKNOWN,
        _UNKNOWN if facts.clock_offset_s is None else f"{round(facts.clock_offset_s * 1000):+d}",
        "yes" if facts.sudo else "no",
        "systemd" if facts.systemd else "supervisor",
        state_of(plan),
    )


def _torch(facts: Facts) -> str:
    if facts.torch is None:
        return _UNKNOWN
    gpu = f"CUDA {facts.cuda}, {facts.capability}" if facts.cuda else "CPU"
    return f"{facts.torch} ({gpu})"


def fleet_json(plans: Sequence[HostPlan]) -> dict[str, Any]:
    """Return the facts of each host and the problems of all as plain data."""
    hosts = []
    for plan in plans:
        known = plan.as_json()
        kept = ("host", "facts", "findings", "error")
        changes = [{key: change[key] for key in ("item", "before", "after")} for change in known["changes"]]
        hosts.append({key: known[key] for key in kept} | {"state": state_of(plan), "changes": changes})
    return {"problems": [problem.as_json() for problem in fleet_problems(plans)], "hosts": hosts}
