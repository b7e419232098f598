"""`testbed evaluate`: the quality of a campaign's policies, without its trials."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from testbed.cli.common import (
    DEFAULT_RESULTS,
    DryRunOption,
    JsonOption,
    LimitOption,
    OtherLabOption,
    ResultsOption,
    print_json,
    print_table,
)
from testbed.errors import InputError

__all__ = ["evaluate"]


def evaluate(
    campaign: Annotated[
        Path | None, typer.Argument(help="The campaign file.", show_default=False, dir_okay=False)
    ] = None,
    inventory: OtherLabOption = None,
    policy: Annotated[
        list[str] | None, typer.Option("--policy", "-p", help="Only this policy; may be repeated.")
    ] = None,
    scenario: Annotated[
        list[str] | None, typer.Option("--scenario", "-s", help="Only this scenario; may be repeated.")
    ] = None,
    results: ResultsOption = DEFAULT_RESULTS,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Go on with an evaluation that was cut off."),
    ] = None,
    limit: LimitOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the quality of a campaign's policies: its quality passes, and no trial.

    A policy that looks at the links is rated in each scenario, any other once. An evaluation is a run like any
    other, with a folder and a report; one that was cut off goes on with --resume, and passes that are whole stay.
    """
    if (campaign is None) == (resume is None):
        raise InputError(
            "name a campaign file, or a run with --resume",
            hint="testbed evaluate campaigns/quickstart.yaml",
        )
    from testbed.campaigns import session

    if resume is not None:
        if policy or scenario:
            raise InputError("--policy and --scenario cannot change when an evaluation goes on")
        target = session.resumed(results, resume, limit or [])
        if target.evaluation is None:
            raise InputError(f"{target.run} has trials too", hint=f"testbed run --resume {target.folder}")
    else:
        assert campaign is not None
        asked = session.Evaluation(tuple(policy or ()), tuple(scenario or ()))
        target = session.evaluation(results, campaign, inventory, limit or [], asked)
    if dry_run:
        plan = session.dry_run(target)
        print_json(plan.as_json()) if as_json else typer.echo(plan.as_text())
        return
    finished = session.execute(target)
    from testbed.records import load_run
    from testbed.records.rated import rated

    rows = rated(load_run(finished.folder))
    if as_json:
        print_json({**finished.as_json(), "quality": rows})
    else:
        heading = [name.replace("_", " ") for name in rows[0]]
        print_table([heading, *map(_cells, rows)], keys=3)
        typer.echo(finished.as_text())
    if finished.failed or finished.stopped:
        raise typer.Exit(1)


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
        for value in row.values()
    ]
