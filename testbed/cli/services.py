"""`testbed services`: what runs on the hosts, its logs, and how to stop it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from testbed.cli.common import (
    DEFAULT_INVENTORY,
    DryRunOption,
    InventoryOption,
    JsonOption,
    LimitOption,
    end_if_failed,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from testbed.config.inventory import Host, Inventory
    from testbed.hosts.fleet import Outcome
    from testbed.hosts.steps import Command
    from testbed.hosts.transport import Transport

__all__ = ["app"]

T = TypeVar("T")

app = typer.Typer(help="What runs on the hosts: the services of a run.", no_args_is_help=True)


@app.command()
def status(
    inventory: InventoryOption = DEFAULT_INVENTORY, limit: LimitOption = None, as_json: JsonOption = False
) -> None:
    """Show the services of the hosts and who holds them."""
    from testbed.hosts.answer import last_json

    lab = _lab(inventory)

    def ask(host: Host, transport: Transport) -> dict[str, Any]:
        return last_json(transport.run(_command(host, "status", "--json")), "lease", "services")

    outcomes = _on_each(lab, lab.select(limit), ask)
    answers = {o.host.name: o.get() for o in outcomes if o.ok}
    if as_json:
        print_json(answers)
    elif answers:
        rows = [("host", "service", "state", "process", "last line")]
        for name, answer in answers.items():
            held = answer["lease"]
            holds = held and held["left_s"] > 0
            rows.append((name, "(lease)", f"{held['left_s']} s left" if holds else "none", "", ""))
            for s in answer["services"]:
                rows.append((name, s["name"], s["state"], str(s["pid"] or ""), s.get("last_line", "")))
        print_table(rows, keys=2)
    end_if_failed(outcomes)


@app.command()
def logs(
    host: Annotated[str, typer.Argument(help="The host.")],
    service: Annotated[str, typer.Argument(help="The service, as `services status` names it.")],
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="How many lines; 0: all that is kept.")
    ] = 50,
    inventory: InventoryOption = DEFAULT_INVENTORY,
) -> None:
    """Print the end of a service's log."""
    lab = _lab(inventory)

    def ask(at: Host, transport: Transport) -> str:
        return transport.run(_command(at, "logs", service, "--lines", str(lines))).stdout

    outcomes = _on_each(lab, [lab.host(host)], ask)
    for outcome in outcomes:
        if outcome.ok:
            typer.echo(outcome.get(), nl=False)
    end_if_failed(outcomes)


@app.command()
def stop(
    inventory: InventoryOption = DEFAULT_INVENTORY,
    limit: LimitOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Stop all services; the base station's link daemon puts its links back as it ends.

    A host that somebody else has is left alone and named.
    """
    from testbed.hosts.leases import ask_lease, lease_command, refuse_others

    lab = _lab(inventory)
    hosts = lab.select(limit)
    if dry_run:
        lines = [_command(host, "stop", "--all").line() for host in hosts]
        print_json(lines) if as_json else typer.echo("\n".join(lines))
        return

    def end(host: Host, transport: Transport) -> str:
        refuse_others(host, ask_lease(host, transport, lease_command(host, "show")))
        return transport.run(_command(host, "stop", "--all")).stdout

    outcomes = _on_each(lab, hosts, end)
    stopped = {o.host.name: o.get().splitlines() for o in outcomes if o.ok}
    if as_json:
        print_json(stopped)
    else:
        for name, said in stopped.items():
            typer.echo(f"{name}: {', '.join(said) or 'nothing was running'}")
    end_if_failed(outcomes)


def _lab(inventory: Path) -> Inventory:
    from testbed.config.inventory import load_inventory

    return load_inventory(inventory)


def _command(host: Host, *arguments: str) -> Command:
    from testbed.hosts.payload import host_python, payload_command
    from testbed.hosts.steps import Command

    return Command(host.name, payload_command(host_python(host), "services", *arguments), arguments[0])


def _on_each(lab: Inventory, hosts: Sequence[Host], work: Callable[[Host, Transport], T]) -> list[Outcome[T]]:
    from testbed.hosts.fleet import Fleet

    with Fleet(lab) as fleet:
        return fleet.each(work, hosts)
