"""`testbed provision`: make the hosts of a lab ready, and give them back as they were."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    from testbed.config.inventory import Host
    from testbed.hosts.become import BecomePassword
    from testbed.hosts.fleet import Fleet
    from testbed.provision.apply import HostResult
    from testbed.provision.plan import HostPlan
    from testbed.provision.undo import UndoResult

__all__ = ["AfreshOption", "AskOption", "asked_password", "provision"]

DRY_RUN_CONNECT_TIMEOUT_S = 4.0
CONNECT_TIMEOUT_S = 15.0

UndoOption = Annotated[
    bool, typer.Option("--undo", help="Give the hosts back as they were before testbed changed them.")
]
RebootOption = Annotated[
    bool, typer.Option("--reboot", help="Reboot a host where a change needs it, and wait for it.")
]
AskOption = Annotated[
    bool, typer.Option("--ask-become-password", "-K", help="Ask once for the password that sudo wants.")
]
FailOption = Annotated[
    float,
    typer.Option(
        "--fail-percent",
        metavar="N",
        min=0,
        max=100,
        help="Begin nothing more once more than N % of the hosts have failed.",
    ),
]
AfreshOption = Annotated[
    bool, typer.Option("--afresh", help="Try the Python packages again also where nothing has changed.")
]
BundleOption = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        metavar="FOLDER",
        help="Install from this folder, which `testbed bundle` made, and not from the internet.",
    ),
]
TimeoutOption = Annotated[
    float,
    typer.Option(
        "--host-timeout", metavar="SECONDS", min=1, help="The most time for one host, its connect included."
    ),
]


def provision(
    inventory: InventoryOption = DEFAULT_INVENTORY,
    limit: LimitOption = None,
    dry_run: DryRunOption = False,
    undo: UndoOption = False,
    reboot: RebootOption = False,
    ask_become_password: AskOption = False,
    fail_percent: FailOption = 100.0,
    host_timeout_s: TimeoutOption = 7200.0,
    afresh: AfreshOption = False,
    bundle: BundleOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the hosts ready: packages, access, power mode, payload code, Python, jtop, and checks of what they are.

    What is right already is left alone, and what there was is noted on the host before it is changed: --undo brings it
    back. With --dry-run, a host that cannot be reached gets assumed facts.
    """
    from testbed.config.inventory import load_inventory
    from testbed.hosts.fleet import Fleet
    from testbed.provision.apply import Way
    from testbed.provision.aspect import Site
    from testbed.provision.bundle import load_bundle
    from testbed.provision.code import load_payload_code

    lab = load_inventory(inventory)
    hosts = lab.select(limit)
    offline = load_bundle(bundle) if bundle is not None else None
    site = Site(load_payload_code(), reboot=reboot, bundle=offline)
    become = asked_password() if ask_become_password else None
    connect_s = DRY_RUN_CONNECT_TIMEOUT_S if dry_run else CONNECT_TIMEOUT_S
    with (
        Fleet(lab, connect_timeout_s=connect_s, become=become) as fleet,
        HostProgress("undo" if undo else "provision", len(hosts)) as progress,
    ):
        way = Way(host_timeout_s, fail_percent, afresh, progress)
        work = _undo if undo else _provision
        errors = work(fleet, hosts, site, way, dry_run, as_json)
    if errors is not None:
        end_with(errors)


def _provision(
    fleet: Any, hosts: Sequence[Host], site: Any, way: Any, dry_run: bool, as_json: bool
) -> list[Exception] | None:
    """Provision, print, and return what hosts failed of; None where none did."""
    from testbed.provision.apply import HostResult, provision_fleet
    from testbed.provision.grouping import told_error, told_finding
    from testbed.provision.survey import survey_fleet

    came: list[HostResult] = []
    shown = came.append if as_json else partial(_print_result, dry_run=dry_run)
    show = _aside(fleet, way.progress, shown)
    if dry_run:
        plans = survey_fleet(
            fleet,
            hosts,
            site,
            assume=True,
            afresh=way.afresh,
            host_timeout_s=way.host_timeout_s,
            progress=way.progress,
        )
        results = [HostResult(plan, error=plan.error if plan.facts is None else None) for plan in plans]
        for result in results:
            show(result)
    else:
        with _told_if_interrupted(came, way.progress):
            results = provision_fleet(fleet, hosts, site, way, on_result=show)
    way.progress.end()
    if as_json:
        print_json([result.as_json() for result in results])
    elif dry_run:
        _print_dry(sum(len(result.plan.changes) for result in results), len(results), "made")
    else:
        _print_end([(result.plan.host.name, result) for result in results])
    told = [told_finding(result.plan.host, finding) for result in results for finding in result.last.findings]
    told += [told_error(result.plan.host, result.error) for result in results if result.error is not None]
    return _failed(told, [result for result in results if not result.ok])


def _undo(
    fleet: Any, hosts: Sequence[Host], site: Any, way: Any, dry_run: bool, as_json: bool
) -> list[Exception] | None:
    """Undo, print, and return what hosts failed of; None where none did."""
    from testbed.provision.grouping import told_error
    from testbed.provision.undo import undo_fleet

    came: list[UndoResult] = []
    shown = came.append if as_json else partial(_print_undo, steps=dry_run)
    show = _aside(fleet, way.progress, shown)
    with _told_if_interrupted(came, way.progress):
        results = undo_fleet(fleet, hosts, site, way, dry_run=dry_run, on_result=show)
    way.progress.end()
    if as_json:
        print_json([result.as_json() for result in results])
    elif dry_run:
        count = sum(len(result.plan.undoings) for result in results if result.plan)
        _print_dry(count, len(results), "undone")
    else:
        _print_end([(result.host.name, result) for result in results], verb="undone")
    told = [told_error(result.host, result.error) for result in results if result.error is not None]
    return _failed(told, [result for result in results if not result.ok])


def print_plan(plan: HostPlan, *, steps: bool) -> None:
    """Print what a host is and what changes there."""
    from testbed.provision.plan import steps_of

    if plan.facts is None:
        print(f"{plan.host.name}: could not be asked")
        return
    if not plan.changes and plan.ok:
        print(f"{plan.host.name}: nothing to change")
        return
    print(f"{plan.host.name}: {plan.facts.describe()}")
    if plan.facts.assumed:
        print(f"  could not be reached, so all its facts are assumed: {plan.error}")
    for change in plan.changes:
        assumed = " (assumed)" if plan.facts.assumed else ""
        print(f"  {change.item}: {change.before}{assumed} -> {change.after}")
        for step in steps_of(change, plan.facts) if steps else ():
            print(f"    {step.line()}")


def _print_result(result: HostResult, *, dry_run: bool) -> None:
    """Print what came of one host."""
    print_plan(result.plan, steps=dry_run)
    if dry_run or not result.plan.changes:
        return
    if not result.changed:
        print("  nothing of this was done")
        return
    states = {state: ", ".join(result.items(state)) for state in ("failed", "not reached")}
    if any(states.values()):
        print("  of this " + "; ".join(f"{state}: {items}" for state, items in states.items() if items))


def _print_undo(result: UndoResult, *, steps: bool) -> None:
    if result.plan is None:
        print(f"{result.host.name}: nothing was undone")
        return
    items = [one.item for one in result.plan.undoings]
    at = len(items) if result.ok else result.undone
    # One that was changed several times has a record of each.
    undone, left = (", ".join(dict.fromkeys(part)) for part in (items[:at], items[at:]))
    if result.ok:
        print(f"{result.host.name}: {undone or 'nothing to undo'}")
    else:
        print(f"{result.host.name}: {undone or 'nothing'}; not undone: {left}")
    for one in result.plan.undoings if steps else ():
        for step in one.steps:
            print(f"    {step.line()}")


def _print_dry(changes: int, hosts: int, what: str) -> None:
    much, many = "s" * (changes != 1), "s" * (hosts != 1)
    print(f"dry run: {changes} change{much} on {hosts} host{many} would be {what}; nothing was changed")


def _print_end(results: Sequence[tuple[str, HostResult | UndoResult]], verb: str = "changed") -> None:
    whole = [name for name, result in results if result.changed and result.ok]
    part = [name for name, result in results if result.changed and not result.ok]
    failed = [name for name, result in results if not result.ok]
    print(f"{verb}: {', '.join(whole) or 'nothing'}")
    if part:
        print(f"{verb} in part: {', '.join(part)}")
    if failed:
        print(f"failed: {', '.join(failed)}")


def _failed(told: Sequence[Any], failed: Sequence[Any]) -> list[Exception] | None:
    """Print what is wrong, equal problems together; return the errors of the hosts that failed."""
    from testbed.errors import TestbedError
    from testbed.provision.grouping import group_problems

    for problem in group_problems(told):
        for line in problem.lines():
            say(line)
    if not failed:
        return None
    # A host that was asked and cannot be used is a failure like any other.
    return [result.error or TestbedError("cannot be used as it is") for result in failed]


def _aside(fleet: Fleet, progress: HostProgress, show: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return what prints one host's lines whole and beside the display, though hosts are done side by side."""

    def one(result: Any) -> None:
        if fleet.ended.is_set() and not result.changed:
            return  # the user has ended it: that a host had no turn is no news, and no fault of its own
        with progress.aside():
            show(result)

    return one


@contextmanager
def _told_if_interrupted(came: Sequence[HostResult | UndoResult], progress: HostProgress) -> Iterator[None]:
    """Print as JSON what came of the hosts also where the user ends it: what was changed has been changed."""
    try:
        yield
    except KeyboardInterrupt:
        progress.end()
        if came:
            print_json([result.as_json() for result in came])
        say("what was done is noted on the hosts, and the same command goes on from there")
        raise


def asked_password() -> BecomePassword:
    """Ask for the password, on the terminal where there is one; it is held in memory only."""
    import getpass

    from testbed.errors import InputError
    from testbed.hosts.become import BecomePassword

    if sys.stdin.isatty():
        text = getpass.getpass("password for sudo on the hosts: ")
    else:
        text = sys.stdin.readline().rstrip("\n")
    if not text:
        raise InputError(
            "no password was given", hint="leave --ask-become-password out where sudo asks for none"
        )
    return BecomePassword(text)
