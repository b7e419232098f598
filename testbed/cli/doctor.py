"""`testbed doctor`: what this machine lacks for the demo, the tests and a rack, and the fix for each."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from testbed.cli.common import JsonOption, print_json

if TYPE_CHECKING:
    from testbed.doctor import Check, Purpose

__all__ = ["doctor"]


class For(StrEnum):
    """What the machine is to be used for."""

    demo = "demo"
    tests = "tests"
    rack = "rack"


def doctor(
    purposes: Annotated[
        list[For] | None, typer.Argument(help="What it is to be used for; everything where left out.")
    ] = None,
    inventory: Annotated[
        Path | None,
        typer.Option("--inventory", "-i", help="The lab whose keys are looked at too.", dir_okay=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Look at this machine: what the demo, the tests and a rack need of it, and how to get what is missing.

    Nothing is changed. As root it also tries what the kernel can do. The exit code is 1 where something is missing for
    what was named; with nothing named for the demo or the tests, and for a rack where its inventory is given.
    """
    from testbed.config.inventory import load_inventory
    from testbed.doctor import PURPOSES, check_machine, is_ready
    from testbed.doctor.look import look_at_machine

    lab = None if inventory is None else load_inventory(inventory)
    wanted = tuple(purpose for purpose in PURPOSES if not purposes or For(purpose) in purposes)
    # Whoever has no rack needs no key that leads to one.
    counted = [purpose for purpose in wanted if purposes or inventory is not None or purpose != "rack"]
    machine = look_at_machine(lab)
    checks = check_machine(machine, wanted)
    ready = {purpose: is_ready(checks, purpose) for purpose in wanted}
    if as_json:
        print_json(
            {"ready": ready, "checks": [check.as_json() for check in checks], "machine": machine.as_json()}
        )
    else:
        print(machine.describe())
        for check in checks:
            _print(check, wanted)
        for purpose in wanted:
            print(_end(purpose, checks))
    if not all(ready[purpose] for purpose in counted):
        raise typer.Exit(1)


def _print(check: Check, wanted: Sequence[Purpose]) -> None:
    needed = [purpose for purpose in wanted if purpose in check.purposes]
    who = "" if len(needed) == len(wanted) else f" ({', '.join(needed)})"
    print(f"{check.state:<8} {check.item}{who}: {check.text}")
    if check.fix:
        print(f"         fix: {check.fix}")


def _end(purpose: Purpose, checks: Sequence[Check]) -> str:
    mine = [check for check in checks if purpose in check.purposes]
    missing = [check.item for check in mine if check.state == "missing"]
    worse = [check.item for check in mine if check.state in ("weak", "unknown")]
    if missing:
        return f"{purpose}: not ready, for want of {', '.join(missing)}"
    return f"{purpose}: ready" + (f"; see {', '.join(worse)}" if worse else "")
