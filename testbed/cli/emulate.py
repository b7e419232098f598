"""``testbed emulate``: a lab of emulated boards on this machine."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from testbed.cli.common import DEFAULT_INVENTORY, DryRunOption, InventoryOption, JsonOption, print_table
from testbed.errors import InputError

if TYPE_CHECKING:
    from testbed.emulation.spec import LabSpec

__all__ = ["app"]

app = typer.Typer(help="A lab of emulated boards on this machine.", no_args_is_help=True)


def _lab(inventory: Path) -> LabSpec:
    from testbed.emulation.settings import load_lab

    return load_lab(inventory)


def _require_root(verb: str) -> None:
    from testbed.emulation.preflight import require_root

    require_root(verb)


def _tell(event: dict[str, Any]) -> None:
    """Show progress on a terminal; elsewhere the result alone counts."""
    if not sys.stderr.isatty():
        return
    texts = {
        "stale": "removing what an earlier lab has left",
        "started": f"{event.get('host')} started, waiting for its services",
    }
    if event["event"] in texts:
        typer.echo(texts[event["event"]], err=True)


@app.command()
def up(
    inventory: InventoryOption = DEFAULT_INVENTORY,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Bring the lab up. On a lab that is up already this says so and does nothing."""
    if dry_run:
        from testbed.emulation.plan import plan_lines

        lines = plan_lines(_lab(inventory))
        typer.echo(json.dumps({"plan": lines}) if as_json else "\n".join(lines))
        return
    _require_root("up")
    spec = _lab(inventory)
    from testbed.emulation import lab

    started = lab.up(spec, _tell)
    if as_json:
        typer.echo(
            json.dumps({"lab": spec.lab, "started": started, "hosts": [host.name for host in spec.hosts]})
        )
    elif started:
        typer.echo(f"the lab {spec.lab} is up: {', '.join(host.name for host in spec.hosts)}")
    else:
        typer.echo(f"the lab {spec.lab} is up already")


@app.command()
def down(inventory: InventoryOption = DEFAULT_INVENTORY, as_json: JsonOption = False) -> None:
    """End the lab and say what was removed."""
    _require_root("down")
    spec = _lab(inventory)
    from dataclasses import asdict

    from testbed.emulation import lab

    removed = lab.down(spec.lab)
    if as_json:
        typer.echo(json.dumps({"lab": spec.lab, "removed": asdict(removed) if removed else None}))
    elif removed is None:
        typer.echo(f"the lab {spec.lab} is not up; nothing to remove")
    else:
        typer.echo(
            f"the lab {spec.lab} is down; removed {len(removed.hosts)} hosts, {removed.processes} processes,"
            f" {removed.control_groups} control groups"
        )


@app.command()
def status(inventory: InventoryOption = DEFAULT_INVENTORY, as_json: JsonOption = False) -> None:
    """Show how the lab is. The exit code is 0 where every host is up, else 1."""
    _require_root("status")
    spec = _lab(inventory)
    from testbed.emulation import lab

    found = lab.status(spec)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _show(found)
    if found["state"] != "up" or any(host["state"] != "up" for host in found["hosts"]):
        raise typer.Exit(1)


def _show(found: dict[str, Any]) -> None:
    typer.echo(f"lab {found['lab']}: {found['state']}")
    rows = [("host", "address", "state", "load", "power", "temp", "memory", "L4T", "python3", "board")]
    for host in found["hosts"]:
        load, power, temperature = host.get("load"), host.get("power_mw"), host.get("temperature_c")
        memory = host.get("memory_mib")
        rows.append(
            (
                host["name"],
                host["address"],
                host["state"],
                "" if load is None else f"{load:.0%}",
                "" if power is None else f"{power / 1000:.2f} W",
                "" if temperature is None else f"{temperature:.0f} C",
                "" if memory is None else f"{memory} MiB",
                host["l4t"] or "",
                host["python"] or "",
                host["board"] or "",
            )
        )
    print_table(rows)
    missing: dict[str, list[str]] = {}
    for host in found["hosts"]:
        if host["python_missing"]:
            missing.setdefault(host["python_missing"], []).append(host["name"])
    for version, names in missing.items():
        typer.echo(f"this machine has no Python {version}, so its own is python3 on {', '.join(names)}")
    for problem in found.get("limits_missing", ()):
        typer.echo(f"without limits: {problem}")


@app.command(context_settings={"ignore_unknown_options": True})
def shell(
    host: Annotated[str, typer.Argument(help="The host.")],
    command: Annotated[
        list[str] | None, typer.Argument(help="A command to run there instead of a shell.")
    ] = None,
    inventory: InventoryOption = DEFAULT_INVENTORY,
    as_root: Annotated[
        bool, typer.Option("--root", help="Log in as root, where the inventory names another user.")
    ] = False,
) -> None:
    """Log in to a host, over SSH as every other command does."""
    _require_root("shell")
    from testbed.emulation import lab

    spec = _lab(inventory)
    line = lab.shell_command(spec, host, command or (), user="root" if as_root else None)
    lab.running_state(spec.lab)
    sys.stdout.flush()
    os.execvp(line[0], line)


@app.command()
def load(
    host: Annotated[str, typer.Argument(help="The board.")],
    script: Annotated[
        Path,
        typer.Option(
            "--script", help="A JSON file with a list of [seconds, load] pairs; - is standard input."
        ),
    ],
    inventory: InventoryOption = DEFAULT_INVENTORY,
    as_json: JsonOption = False,
) -> None:
    """Let a board follow a load script, and print the energy that its rails will use by the power model."""
    _require_root("load")
    spec = _lab(inventory)
    from testbed.emulation import lab
    from testbed.emulation.power import energy_mj, parse_script

    try:
        text = sys.stdin.read() if str(script) == "-" else script.read_text()
        steps = parse_script(json.loads(text))
    except OSError as error:
        why = f"{script}: cannot be read: {error.strerror or error}"
        raise InputError(why, hint="its form: [[2, 0.5], [1, 1.0]], pairs of seconds and load") from error
    except ValueError as error:
        raise InputError.at(script, None, "", f"a load script was expected: {error}") from error
    answer = lab.load(spec, host, steps)
    board = next(entry.kind for entry in spec.hosts if entry.name == host)
    assert board is not None
    energies = {
        rail.label: energy_mj(rail.power, steps, level=answer["level"], tau_s=board.tau_s)
        for rail in board.live_rails
    }
    seconds = sum(step.seconds for step in steps)
    if as_json:
        typer.echo(
            json.dumps({**answer, "seconds": seconds, "total_rule": board.total_rule, "energy_mj": energies})
        )
        return
    typer.echo(f"{host} follows the script for {seconds:g} s; energy by the power model:")
    for label, energy in energies.items():
        typer.echo(f"  {label:<18} {energy / 1000:.2f} J")
