"""`testbed serve`: a campaign's model on the rack, behind an OpenAI-compatible API."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from testbed.cli.common import (
    DEFAULT_RESULTS,
    DryRunOption,
    JsonOption,
    LimitOption,
    OtherLabOption,
    ResultsOption,
    print_json,
)

if TYPE_CHECKING:
    from testbed.campaigns.serve import Reached

__all__ = ["serve"]


def serve(
    campaign: Annotated[Path, typer.Argument(help="The campaign file.", dir_okay=False)],
    policy: Annotated[
        str | None, typer.Option("--policy", "-p", help="Which policy; the campaign's first by default.")
    ] = None,
    scenario: Annotated[
        str | None, typer.Option("--scenario", "-s", help="Which scenario; the campaign's first by default.")
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option("--concurrency", min=1, help="How many requests at once; the scenario's by default."),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            metavar="TOKENS",
            help="The most tokens of a request, prompt and answer; as many as the model reads by default.",
        ),
    ] = None,
    listen: Annotated[
        str,
        typer.Option("--listen", metavar="ADDRESS:PORT", help="Where the base station listens."),
    ] = "127.0.0.1:8000",
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="A file with the token that clients must show.", dir_okay=False),
    ] = None,
    port: Annotated[
        int,
        typer.Option("--port", min=0, max=65535, help="The port of this machine that leads there; 0: any."),
    ] = 8000,
    no_port: Annotated[bool, typer.Option("--no-port", help="Take no port of this machine.")] = False,
    for_s: Annotated[
        float | None, typer.Option("--for", metavar="SECONDS", min=0, help="End after so long.")
    ] = None,
    inventory: OtherLabOption = None,
    results: ResultsOption = DEFAULT_RESULTS,
    limit: LimitOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Bring the lab up as `testbed run` does, then answer requests of any OpenAI client until Ctrl-C.

    What was asked is recorded as a trial, serve-001, of a run with a folder and a report. With --json, one line when
    clients are let in and one when everything is back.
    """
    from testbed.campaigns import serve as serving
    from testbed.campaigns import session

    target = serving.new(
        results,
        campaign,
        inventory,
        limit or [],
        policy,
        scenario,
        concurrency,
        listen,
        token_file,
        context,
    )
    if dry_run:
        plan = session.dry_run(target)
        print_json(plan.as_json()) if as_json else typer.echo(plan.as_text())
        return

    def told(reached: Reached, note: Callable[[str], None]) -> None:
        print(json.dumps(reached.as_json()), flush=True) if as_json else note(reached.as_text())

    finished = serving.serve(target, told, port=None if no_port else port, for_s=for_s)
    if as_json:
        print(json.dumps({"event": "ended", **finished.as_json()}), flush=True)
    else:
        typer.echo(finished.as_text())
    if finished.failed or finished.stopped:
        raise typer.Exit(1)
