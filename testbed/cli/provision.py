"""`testbed provision`: make the hosts of a lab ready."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from testbed.cli.common import (
    DEFAULT_INVENTORY,
    DryRunOption,
    HostProgress,
    InventoryOption,
    JsonOption,
    LimitOption,
    end_with,
    print_json,
    say,
)

if TYPE_CHECKING:
    from testbed.provision.apply import HostResult
    from testbed.provision.plan import HostPlan

__all__ = ["provision"]

DRY_RUN_CONNECT_TIMEOUT_S = 4.0
CONNECT_TIMEOUT_S = 15.0


def provision(
    inventory: InventoryOption = DEFAULT_INVENTORY,
    limit: LimitOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make the hosts ready: payload code, Python environment, access to jtop, and checks of clock and system.

    What is right already is left alone. With --dry-run, a host that cannot be reached gets assumed facts.
    """
    from testbed.config.inventory import load_inventory
    from testbed.hosts.fleet import Fleet
    from testbed.provision.apply import HostResult, apply_plans, survey_fleet
    from testbed.provision.code import load_payload_code

    lab = load_inventory(inventory)
    hosts = lab.select(limit)
    code = load_payload_code()
    connect_s = DRY_RUN_CONNECT_TIMEOUT_S if dry_run else CONNECT_TIMEOUT_S
    with Fleet(lab, connect_timeout_s=connect_s) as fleet, HostProgress("provision", len(hosts)) as progress:
        plans = survey_fleet(fleet, hosts, code, assume=dry_run, progress=progress)
        if dry_run:
            results = [HostResult(plan, error=plan.error if plan.facts is None else None) for plan in plans]
        else:
            results = apply_plans(fleet, plans, code, progress=progress)
    if as_json:
        print_json([result.as_json() for result in results])
    else:
        for result in results:
            print_plan(result.plan, steps=dry_run)
        _print_end(results, dry_run=dry_run)
    _print_problems(results)
    if not all(result.ok for result in results):
        end_with(result.error for result in results if result.error is not None)


def print_plan(plan: HostPlan, *, steps: bool) -> None:
    """Print what a host is and what changes there."""
    if plan.facts is None:
        print(f"{plan.host.name}: could not be asked")
        return
    print(f"{plan.host.name}: {plan.facts.describe()}")
    if plan.facts.assumed:
        print(f"  could not be reached, so all its facts are assumed: {plan.error}")
    for change in plan.changes:
        assumed = " (assumed)" if plan.facts.assumed else ""
        print(f"  {change.item}: {change.before}{assumed} -> {change.after}")
        for step in change.steps if steps else ():
            print(f"    {step.line()}")
    if not plan.changes and plan.ok:
        print("  nothing to change")


def _print_end(results: Sequence[HostResult], *, dry_run: bool) -> None:
    if dry_run:
        count = sum(len(result.plan.changes) for result in results)
        print(f"dry run: {count} changes on {len(results)} hosts would be made; nothing was changed")
        return
    changed = [result.plan.host.name for result in results if result.changed and result.ok]
    failed = [result.plan.host.name for result in results if not result.ok]
    print(f"changed: {', '.join(changed) or 'nothing'}")
    if failed:
        print(f"failed: {', '.join(failed)}")


def _print_problems(results: Sequence[HostResult]) -> None:
    for result in results:
        last = result.after or result.plan
        for finding in last.findings:
            say(f"{finding.level}: {finding.host}: {finding.text}")
            if finding.hint:
                say(f"  hint: {finding.hint}")
        if result.error is not None:
            say(f"failure: {result.error}")
            if hint := getattr(result.error, "hint", ""):
                say(f"  hint: {hint}")
