"""`testbed place`: which device would hold which expert, and what that means."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from testbed.cli.common import JsonOption, LimitOption, OtherLabOption, print_json, print_table, say
from testbed.errors import InputError

if TYPE_CHECKING:
    from testbed.placement.explain import Explained
    from testbed.placement.place import Placement
    from testbed.placement.placing import Placed

__all__ = ["place"]


def place(
    source: Annotated[
        Path,
        typer.Argument(
            help="A campaign file, or a manifest.json that `testbed shard` wrote.",
            dir_okay=False,
            metavar="FILE",
        ),
    ],
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            metavar="NAME=GB:SPEED",
            help="With a manifest: a device, its memory for experts in GB and its memory bandwidth in GB/s.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="With a manifest: the element type of the run; bfloat16 by default."),
    ] = None,
    copies: Annotated[
        int | None,
        typer.Option(
            "--copies", min=1, help="With a manifest: how many devices hold each expert; 1 by default."
        ),
    ] = None,
    inventory: OtherLabOption = None,
    limit: LimitOption = None,
    explained: Annotated[
        bool, typer.Option("--explain", help="Say what each device holds, is asked for, and is waited for.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show where the experts of a model would be placed; nothing is changed.

    By a campaign, the hosts of its lab are asked how much memory they have free; one that does not answer counts with
    what its board has.
    """
    from testbed.placement import placing

    if source.suffix == ".json":
        if limit:
            raise InputError("--limit goes with a campaign", hint="Leave the other devices' --device out.")
        placed = placing.by_manifest(source, device or [], dtype or "bfloat16", copies or 1)
    else:
        given = {"--device": device, "--dtype": dtype, "--copies": copies}
        wrong = [name for name, value in given.items() if value]
        if wrong:
            raise InputError(
                f"{', '.join(wrong)}: only with a manifest.json",
                hint="A campaign says its dtype and placement itself, and its lab is in its inventory.",
            )
        placed = placing.by_campaign(source, inventory, limit or [])
    for line in placed.notes:
        say(line)
    found = placed.explain() if explained else None
    if as_json:
        from testbed.placement.place import placement_json

        answer = {"placement": placement_json(placed.placement)}
        print_json(answer if found is None else {**answer, "explained": found.as_json()})
        return
    _print_placement(placed, placed.placement)
    if found is not None:
        _print_explained(found)


def _print_placement(placed: Placed, placement: Placement) -> None:
    for layer, row in placement.items():
        shares = {name: [e for e, holders in row.items() if name in holders] for name in placed.devices}
        typer.echo(
            f"layer {layer}: "
            + "; ".join(f"{name}: {_ranges(held) or 'none'}" for name, held in shares.items())
        )


def _ranges(numbers: list[int]) -> str:
    """Return numbers in rising order as text, neighbours joined: ``0-3, 7``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)


def _print_explained(found: Explained) -> None:
    rows = [
        [
            one.device,
            f"{one.experts}" + (f" ({one.copies} shared)" if one.copies else ""),
            f"{one.held_bytes / 1e6:,.1f} of {one.room_bytes / 1e6:,.1f} MB",
            f"{one.speed:.0%}",
            f"{one.load:.0%}",
            f"{one.compute_ms:.3g} ms",
            f"{one.slowest:.0%}",
        ]
        for one in found.devices
    ]
    typer.echo("")
    print_table([["device", "experts", "memory", "speed", "load", "a dispatch", "last to answer"], *rows])
    for one in found.devices:
        if one.why:
            typer.echo(f"{one.device}: room for {one.room_bytes / 1e6:,.1f} MB: {one.why}")
    typer.echo(
        f"A token waits {found.layer_ms:.3g} ms for the devices in a layer (links left out); "
        f"most often for {found.bottleneck}."
    )
