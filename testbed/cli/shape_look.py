"""`testbed shape`: the verbs that look, and the one that clears."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
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
    end_if_failed,
    print_error,
    print_json,
    say,
)
from testbed.cli.shape_tables import print_backends, print_links, print_preview

if TYPE_CHECKING:
    from testbed.config.inventory import Host, Inventory
    from testbed.hosts.fleet import Outcome
    from testbed.hosts.steps import Command
    from testbed.hosts.transport import Transport

__all__ = ["backends", "clear", "preview", "show", "watch"]

UNSHAPED = "nothing shapes this lab's links (`network.shaping` is none)"
NOT_RUNNING = "linkd does not run"


def backends(
    inventory: InventoryOption = DEFAULT_INVENTORY, limit: LimitOption = None, as_json: JsonOption = False
) -> None:
    """Show what each host can shape links with, found by trying it where nothing else can notice.

    The exit code is 1 where a host cannot do what the inventory asks of it.
    """
    from testbed.links.backends import troubles
    from testbed.links.commands import capabilities_command

    lab = _lab(inventory)
    outcomes = _each(lab, lab.select(limit), capabilities_command, "trying what the kernels can do")
    answers = {o.host.name: _object(o.get()) for o in outcomes if o.ok}
    found = [
        trouble
        for name, answer in answers.items()
        for trouble in troubles(lab.host(name), lab.network, answer)
    ]
    for trouble in found:
        print_error(f"{trouble.host}: {trouble.text}", trouble.hint)
    if as_json:
        print_json(
            {
                "shaping": lab.network.shaping,
                "leaf": lab.network.leaf,
                "hosts": answers,
                "problems": [vars(trouble) for trouble in found],
            }
        )
    elif answers:
        print_backends(lab, answers)
    end_if_failed(outcomes)
    if found:
        raise typer.Exit(1)


def preview(
    campaign: Annotated[Path, typer.Argument(help="The campaign file.", dir_okay=False)],
    scenario: Annotated[str | None, typer.Option("--scenario", "-s", help="Only this scenario.")] = None,
    repeat: Annotated[int, typer.Option("--repeat", min=0, help="Whose channel is drawn, from 0.")] = 0,
    inventory: Annotated[
        Path | None,
        typer.Option(
            "--inventory", "-i", envvar="TESTBED_INVENTORY", help="Another lab than the campaign's."
        ),
    ] = None,
    limit: LimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what rates a campaign's scenarios give each device, before anything is run. No host is asked."""
    from testbed.campaigns.shape import campaign_and_lab
    from testbed.links.backends import is_shaped
    from testbed.links.channels.preview import preview_rows

    loaded, lab = campaign_and_lab(campaign, inventory, limit or [])
    if not is_shaped(lab):
        print_json([]) if as_json else print(UNSHAPED)
        return
    rows = preview_rows(loaded, lab, scenario=scenario, repeat=repeat)
    if as_json:
        print_json(rows)
        return
    print_preview(rows)


def show(
    inventory: InventoryOption = DEFAULT_INVENTORY, limit: LimitOption = None, as_json: JsonOption = False
) -> None:
    """Show the links as they are now: rates asked for, what shapes them, counters, and whether a channel plays."""
    from testbed.links.backends import shaping_hosts
    from testbed.links.commands import show_command

    lab = _lab(inventory)
    named = {host.name for host in lab.select(limit)}
    hosts = [host for host in shaping_hosts(lab) if not host.is_device or host.name in named]
    outcomes = _each(lab, hosts, show_command, "asking for the links")
    outcomes = [_or_nothing(outcome) for outcome in outcomes]
    answers = {o.host.name: _object(o.get()) for o in outcomes if o.ok}
    for answer in answers.values():
        answer["links"] = [
            link
            for link in answer.get("links", [])
            if link["device"] in named or not limit or _bs_named(lab, limit)
        ]
    if as_json:
        print_json({"shaping": lab.network.shaping, "hosts": answers})
    elif not hosts:
        print(UNSHAPED)
    elif answers:
        print_links(answers)
    end_if_failed(outcomes)


def _bs_named(lab: Inventory, limit: Sequence[str]) -> bool:
    """Return whether only the base station was named: then all of its links are meant."""
    return list(limit) == [lab.base_station.name]


def clear(
    inventory: InventoryOption = DEFAULT_INVENTORY,
    limit: LimitOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Put the links of all hosts back as they were, also where the link daemon is dead.

    A run of yours that is under way loses its links by this. A host that somebody else has is left alone and named.
    """
    from testbed.hosts.leases import ask_lease, lease_command, refuse_others
    from testbed.links.commands import clear_command

    lab = _lab(inventory)
    hosts = lab.select(limit)
    if dry_run:
        lines = [clear_command(host).line() for host in hosts]
        print_json(lines) if as_json else print("\n".join(lines))
        return

    def theirs(host: Host, transport: Transport) -> None:
        refuse_others(host, ask_lease(host, transport, lease_command(host, "show")))

    outcomes = _each(lab, hosts, clear_command, "putting the links back", before=theirs)
    restored = {o.host.name: _object(o.get())["restored"] for o in outcomes if o.ok}
    if as_json:
        print_json(restored)
    else:
        for name, interface in restored.items():
            print(f"{name}: {f'{interface} is as it was' if interface else 'nothing was shaped'}")
    end_if_failed(outcomes)


def watch(
    inventory: InventoryOption = DEFAULT_INVENTORY,
    limit: LimitOption = None,
    for_s: Annotated[
        float | None, typer.Option("--for", metavar="SECONDS", min=0, help="End after so long.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Watch rates and throughput as they change: a table on a terminal, a line of JSON an event elsewhere."""
    from testbed.cli.shape_watch import watch_links
    from testbed.links.backends import shaping_hosts

    lab = _lab(inventory)
    named = {host.name for host in lab.select(limit)} if limit else set()
    devices = {device.name for device in lab.devices}
    wanted = (named & devices) or devices
    hosts = [host for host in shaping_hosts(lab) if not host.is_device or host.name in wanted]
    if not hosts:
        say(UNSHAPED) if as_json else print(UNSHAPED)
        return
    watch_links(lab, hosts, wanted, for_s=for_s, as_table=sys.stdout.isatty() and not as_json)


def _lab(inventory: Path) -> Inventory:
    from testbed.config.inventory import load_inventory

    return load_inventory(inventory)


def _each(
    lab: Inventory,
    hosts: Sequence[Host],
    command: Callable[[Host], Command],
    title: str,
    before: Callable[[Host, Transport], None] | None = None,
) -> list[Outcome[str]]:
    from testbed.hosts.fleet import Fleet

    def ask(host: Host, transport: Transport) -> str:
        if before is not None:
            before(host, transport)
        return transport.run(command(host)).stdout

    with Fleet(lab) as fleet, HostProgress(title, len(hosts)) as progress:
        return fleet.each(
            ask,
            hosts,
            on_done=lambda outcome: progress.done(outcome.host.name),
        )


def _or_nothing(outcome: Outcome[str]) -> Outcome[str]:
    """Return an answer without links where no daemon runs: that is no failure of whoever looks."""
    from testbed.errors import CommandError
    from testbed.hosts.fleet import Outcome

    if isinstance(outcome.error, CommandError) and NOT_RUNNING in outcome.error.stderr:
        return Outcome(outcome.host, value='{"links": []}')
    return outcome


def _object(text: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(text)
    return value
