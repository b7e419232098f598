"""`testbed artifacts`: the objects that the hosts hold, whether they are whole, and which may go."""

from __future__ import annotations

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
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from testbed.artifacts.kept import Answers, Rows
    from testbed.hosts.fleet import Outcome
    from testbed.hosts.steps import Command

__all__ = ["app"]

app = typer.Typer(help="The objects (shards and models) that the hosts hold.", no_args_is_help=True)


@app.command()
def show(
    inventory: InventoryOption = DEFAULT_INVENTORY, limit: LimitOption = None, as_json: JsonOption = False
) -> None:
    """Show what each host holds, how much of it is in use, and the room that is left."""
    from testbed.artifacts.kept import shown_rows

    answers, outcomes = _ask(inventory, limit, "show")
    _print(answers, shown_rows, as_json=as_json)
    end_if_failed(outcomes)


@app.command()
def verify(
    inventory: InventoryOption = DEFAULT_INVENTORY,
    limit: LimitOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Read all objects and remove the damaged ones; the next run brings them anew.

    The exit code is 1 where one was damaged.
    """
    from testbed.artifacts.kept import verified_rows

    answers, outcomes = _ask(inventory, limit, "verify", dry_run=dry_run)
    _print(answers, verified_rows, as_json=as_json)
    end_if_failed(outcomes)
    if any(answer["damaged"] for answer in answers.values()):
        raise typer.Exit(1)


@app.command()
def gc(
    older_than: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Remove what was not used for so long: 12h, 30d."),
    ] = None,
    keep_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Remove the longest unused until each host holds no more than this: 20GB, 500MB.",
        ),
    ] = None,
    inventory: InventoryOption = DEFAULT_INVENTORY,
    limit: LimitOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove objects that are not in use, by age, by space, or both.

    In use is what a running service has marked and, while somebody has the host, all that its lists name.
    """
    from testbed.artifacts.kept import collected_rows, gc_arguments

    arguments = gc_arguments(older_than, keep_bytes)
    answers, outcomes = _ask(inventory, limit, "gc", *arguments, dry_run=dry_run)
    _print(answers, collected_rows, as_json=as_json)
    if dry_run and answers and not as_json:
        print("dry run: nothing was removed")
    end_if_failed(outcomes)


def _print(answers: Answers, rows: Callable[[Answers], Rows], *, as_json: bool) -> None:
    if as_json:
        print_json(answers)
    elif answers:
        print_table(rows(answers))


def _ask(
    inventory: Path, limit: Sequence[str] | None, action: str, *arguments: str, dry_run: bool = True
) -> tuple[Answers, Sequence[Outcome[dict[str, Any]]]]:
    """Ask the hosts at once; return the answers of those that gave one, and all outcomes.

    A host that somebody else has is only looked at.
    """
    from testbed.config.inventory import Host, load_inventory
    from testbed.hosts.answer import last_json
    from testbed.hosts.fleet import Fleet
    from testbed.hosts.leases import ask_lease, lease_command, refuse_others
    from testbed.hosts.payload import host_python, payload_command
    from testbed.hosts.steps import Command
    from testbed.hosts.transport import Transport

    def command(host: Host) -> Command:
        words = [action, *arguments, *(["--dry-run"] if dry_run and action != "show" else [])]
        shell = payload_command(host_python(host), "artifacts", *words)
        return Command(host.name, shell, f"artifacts {action}", timeout_s=3600.0)

    def ask(host: Host, transport: Transport) -> dict[str, Any]:
        progress(host.name, action)
        if not dry_run:
            refuse_others(host, ask_lease(host, transport, lease_command(host, "show")))
        return last_json(transport.run(command(host)))

    lab = load_inventory(inventory)
    hosts = lab.select(limit)
    with Fleet(lab) as fleet, HostProgress(f"artifacts {action}", len(hosts)) as progress:
        outcomes = fleet.each(ask, hosts, on_done=lambda outcome: progress.done(outcome.host.name))
    return {outcome.host.name: outcome.get() for outcome in outcomes if outcome.ok}, outcomes
