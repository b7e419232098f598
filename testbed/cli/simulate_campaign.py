"""`testbed simulate`: a campaign with no hosts, on the latency model."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from testbed.cli.common import (
    DEFAULT_RESULTS,
    DryRunOption,
    JsonOption,
    OtherLabOption,
    ResultsOption,
    print_json,
    print_table,
    say,
)
from testbed.errors import InputError

if TYPE_CHECKING:
    from testbed.simulate.session import Target

__all__ = ["simulate"]


def simulate(
    campaign: Annotated[
        Path | None, typer.Argument(help="The campaign file.", show_default=False, dir_okay=False)
    ] = None,
    inventory: OtherLabOption = None,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="A run of the campaign: it is predicted and compared with; of a broadcast, image by image.",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            help="What `testbed calibrate` made, in place of the campaign's (split experts).",
            dir_okay=False,
        ),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option("--repeats", min=1, help="Other repeats, each with links or noise of its own."),
    ] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            "--batch-tokens",
            min=1,
            help="How many tokens the prompts of a model without weights have (split experts).",
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="How many processes work; one a processor by default.")
    ] = None,
    results: ResultsOption = DEFAULT_RESULTS,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Go on with a simulated broadcast that was cut off."),
    ] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Simulate a campaign: the same trials and tables as a run, and no hosts.

    Split experts: the policies decide on a virtual clock, by the latency model. The routing is recorded from the model,
    which runs here on the campaign's prompts; for a model without weights it is drawn.

    A broadcast: every image is really encoded, sent through the channel and decoded here, by every scheme. What was cut
    off goes on with --resume.
    """
    if (campaign is None) == (resume is None):
        raise InputError(
            "name a campaign file, or a simulated broadcast with --resume",
            hint="testbed simulate campaigns/wdmoe.yaml",
        )
    from testbed.semcast.target import BroadcastTarget
    from testbed.simulate.session import dry_run as planned
    from testbed.simulate.session import execute, resumed_target, target

    if resume is not None:
        if any(option is not None for option in (inventory, run, calibration, repeats, batch_tokens)):
            raise InputError("only --jobs can change when a simulation goes on")
        wanted: Target | BroadcastTarget = resumed_target(results, resume)
    else:
        assert campaign is not None
        wanted = target(
            campaign,
            results,
            inventory_file=inventory,
            run=run,
            calibration=calibration,
            repeats=repeats,
            batch_tokens=batch_tokens,
            command=shlex.join(["testbed", *sys.argv[1:]]),
        )
    if dry_run:
        plan = planned(wanted)
        if as_json:
            print_json(plan)
        else:
            print_table([(f"{key}:", _said(value)) for key, value in plan.items()])
        return
    try:
        done = execute(wanted, jobs=jobs or len(os.sched_getaffinity(0)), say=say)
    except KeyboardInterrupt:
        if isinstance(wanted, BroadcastTarget) and wanted.folder.is_dir():
            say(f"what is done is kept: testbed simulate --resume {wanted.folder}")
        raise
    if as_json:
        print_json(done.as_json())
    else:
        typer.echo(done.as_text())


def _said(value: object) -> str:
    """Return a value of the plan for people."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)
