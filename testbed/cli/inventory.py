"""`testbed inventory`: check and show the inventory of a lab."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from testbed.cli.common import (
    DEFAULT_INVENTORY,
    JsonOption,
    LimitOption,
    print_json,
    print_table,
)

__all__ = ["app"]

app = typer.Typer(help="Check and show the inventory of a lab.", no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(help="The inventory file.", envvar="TESTBED_INVENTORY")]


@app.command()
def check(file: FileArgument = DEFAULT_INVENTORY, as_json: JsonOption = False) -> None:
    """Check an inventory file. Each mistake is named with its line; the exit code is 2 where there is one."""
    from testbed.boards.kinds import unknown
    from testbed.config.inventory import load_inventory

    inventory = load_inventory(file)
    notes = {host.name: said for host in inventory.select() if host.board and (said := unknown(host.board))}
    if as_json:
        print_json(
            {
                "file": str(file),
                "lab": inventory.lab,
                "hosts": list(inventory.hosts),
                "notes": [{"host": name, "text": text, "hint": hint} for name, (text, hint) in notes.items()],
            }
        )
        return
    count = len(inventory.devices)
    devices = "1 device" if count == 1 else f"{count} devices"
    print(f"{file}: lab {inventory.lab}, 1 base station and {devices}, no mistake")
    for name, (text, hint) in notes.items():
        print(f"note: {name}: {text}")
        print(f"  hint: {hint}")


@app.command()
def show(
    file: FileArgument = DEFAULT_INVENTORY,
    limit: LimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the hosts; with --json all their settings, defaults filled in. What they really are says `testbed probe`."""
    from testbed.config.inventory import load_inventory

    inventory = load_inventory(file)
    hosts = inventory.select(limit)
    if as_json:
        resolved = inventory.resolved()
        resolved["hosts"] = {host.name: resolved["hosts"][host.name] for host in hosts}
        print_json(resolved)
        return
    rows = [("host", "role", "address", "user", "board", "python", "gateway")]
    for host in hosts:
        where = host.address if host.port == 22 else f"{host.address}:{host.port}"
        python = f"{host.python.interpreter}{' (managed)' if host.python.manage else ''}"
        rows.append(
            (
                host.name,
                host.role,
                where,
                host.user,
                host.board or "-",
                python,
                "yes" if host.gateway else "-",
            )
        )
    print_table(rows)


@app.command()
def schema(
    campaign: Annotated[
        bool, typer.Option("--campaign", help="The schema of campaign files instead.")
    ] = False,
) -> None:
    """Print the JSON schema of inventory files, by which an editor completes and checks them."""
    from testbed.config.schema import campaign_schema, inventory_schema

    print(campaign_schema() if campaign else inventory_schema(), end="")
