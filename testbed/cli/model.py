"""`testbed shard` and `testbed place`: split a model, and see where its experts would go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["place", "shard"]


def shard(
    model: Annotated[Path, typer.Argument(help="Folder of the model: config.json and safetensors files.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for manifest.json and objects/.")],
    name: Annotated[str, typer.Option("--name", help="The model's name; the folder's by default.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Split a model into the base station's part and one object for each expert."""
    from testbed.artifacts.shard import shard_model

    done = shard_model(model, out, name=name)
    manifest = done.manifest
    if as_json:
        facts = {
            "manifest": str(done.path),
            "digest": manifest.digest(),
            "model": manifest.model,
            "family": manifest.family,
            "dtype": manifest.dtype,
            "experts": len(manifest.experts),
            "parameters": manifest.parameters,
            "base_parameters": manifest.base_parameters,
            "expert_parameters": manifest.expert_parameters,
            "objects": len(manifest.objects()),
            "object_bytes": sum(manifest.objects().values()),
            "written": done.written,
            "kept": done.kept,
        }
        typer.echo(json.dumps(facts))
        return
    typer.echo(
        f"{manifest.model}: {len(manifest.experts)} experts of {manifest.expert_parameters:,} parameters, "
        f"{manifest.base_parameters:,} parameters for the base station"
    )
    typer.echo(f"{done.written} objects written, {done.kept} were there; {done.path}")


def place(
    manifest: Annotated[Path, typer.Argument(help="A manifest.json that `testbed shard` wrote.")],
    device: Annotated[
        list[str],
        typer.Option("--device", help="NAME=MEMORY_GB:SPEED, once for each device; the speed is relative."),
    ],
    dtype: Annotated[str, typer.Option("--dtype", help="Element type of the run.")] = "bfloat16",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show where the experts of a model would be placed on devices of given memory and speed."""
    from testbed.artifacts.manifest import load_manifest
    from testbed.artifacts.placement import parse_capacity, place_auto, placement_json

    devices = [parse_capacity(text) for text in device]
    placement = place_auto(load_manifest(manifest), devices, dtype)
    if as_json:
        typer.echo(json.dumps({"placement": placement_json(placement)}))
        return
    for layer, row in placement.items():
        shares = {one.name: [str(e) for e, holders in row.items() if one.name in holders] for one in devices}
        typer.echo(
            f"layer {layer}: " + "; ".join(f"{name}: {', '.join(e) or 'none'}" for name, e in shares.items())
        )
