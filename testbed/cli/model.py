"""`testbed shard`: split a model into objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from testbed.cli.common import say

__all__ = ["shard"]


def shard(
    model: Annotated[Path, typer.Argument(help="Folder of the model: config.json and safetensors files.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for manifest.json and objects/.")],
    name: Annotated[str, typer.Option("--name", help="The model's name; the folder's by default.")] = "",
    experts: Annotated[
        str | None,
        typer.Option(
            "--experts", metavar="int8", help="Hold the experts' weights as 8 bits; by default as they are."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Split a model into the base station's part and one object for each expert.

    The model may be larger than the memory. What is there already is kept, and a split that was cut off goes on.
    """
    from testbed.artifacts.shard import shard_model
    from testbed.artifacts.shard_progress import ShardProgress

    try:
        with ShardProgress(model.name) as progress:
            done = shard_model(
                model, out, name=name, experts=experts, on_progress=progress, on_wait=progress.waits
            )
    except KeyboardInterrupt:
        say("what is done stays: run it again to go on")
        raise
    manifest = done.manifest
    if as_json:
        facts = {
            "manifest": str(done.path),
            "digest": manifest.digest(),
            "model": manifest.model,
            "family": manifest.family,
            "dtype": manifest.dtype,
            "weights": manifest.weights,
            "moe_layers": manifest.moe_layers,
            "experts": len(manifest.experts),
            "parameters": manifest.parameters,
            "base_parameters": manifest.base_parameters,
            "expert_parameters": manifest.expert_parameters,
            "objects": len(manifest.objects()),
            "object_bytes": sum(manifest.objects().values()),
            "written": done.written,
            "kept": done.kept,
            "anew": done.anew,
        }
        typer.echo(json.dumps(facts))
        return
    if done.anew:
        say(f"all of it was made anew: {done.anew}")
    held = f", held as {manifest.weights}" if manifest.weights else ""
    typer.echo(
        f"{manifest.model}: {len(manifest.experts)} experts of {manifest.expert_parameters:,} parameters{held}, "
        f"{manifest.base_parameters:,} parameters for the base station"
    )
    typer.echo(f"{done.written} objects written, {done.kept} were there; {done.path}")
