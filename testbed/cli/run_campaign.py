"""`testbed run`: one campaign, from its file to its report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
from testbed.errors import InputError

__all__ = ["run"]


def run(
    campaign: Annotated[
        Path | None, typer.Argument(help="The campaign file.", show_default=False, dir_okay=False)
    ] = None,
    inventory: OtherLabOption = None,
    results: ResultsOption = DEFAULT_RESULTS,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="RUN", help="Go on with a run that was cut off.")
    ] = None,
    limit: LimitOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a campaign: provision what is missing, deploy the models, shape the links, measure, report.

    A run that was cut off goes on with `testbed run --resume RUN`: trials that are whole are not run again.
    """
    if (campaign is None) == (resume is None):
        raise InputError(
            "name a campaign file, or a run with --resume",
            hint="testbed run campaigns/quickstart.yaml",
        )
    from testbed.campaigns import session

    if resume is not None:
        target = session.resumed(results, resume, limit or [])
    else:
        assert campaign is not None
        target = session.new(results, campaign, inventory, limit or [])
    if dry_run:
        plan = session.dry_run(target)
        print_json(plan.as_json()) if as_json else typer.echo(plan.as_text())
        return
    finished = session.execute(target)
    if as_json:
        print_json(finished.as_json())
    else:
        typer.echo(finished.as_text())
    if finished.failed or finished.stopped:
        raise typer.Exit(1)
