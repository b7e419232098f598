"""`testbed runs`, `testbed report` and `testbed export`: what is in the results folder."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Annotated

import typer

from testbed.cli.common import print_table

__all__ = ["export", "report", "runs"]

Results = Annotated[
    Path, typer.Option("--results", help="The folder of the runs.", envvar="TESTBED_RESULTS", file_okay=False)
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's name or folder, or `latest`.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def runs(results: Results = Path("results"), as_json: AsJson = False) -> None:
    """List the runs, the newest first."""
    from testbed.records.listing import list_runs

    found = list_runs(results)
    if as_json:
        rows = [
            {
                "run": entry.run,
                "path": str(entry.path),
                "campaign": entry.campaign,
                "state": entry.state,
                "started_unix": entry.started_unix,
                "completed": entry.completed,
                "planned": entry.planned,
                "emulated": entry.emulated,
                "simulated": entry.simulated,
                "problem": entry.problem,
            }
            for entry in found
        ]
        typer.echo(json.dumps(rows, indent=1))
        return
    if not found:
        typer.echo(f"There is no run in {results} yet: `testbed run CAMPAIGN` makes one.")
        return
    lines = [("RUN", "STARTED", "STATE", "TRIALS", "BOARDS", "CAMPAIGN")]
    for entry in found:
        if entry.problem:
            lines.append((entry.run, "", entry.state, "", "", entry.problem))
            continue
        started = f"{dt.datetime.fromtimestamp(entry.started_unix):%Y-%m-%d %H:%M}"
        trials = f"{entry.completed} of {entry.planned}" if entry.planned else str(entry.completed)
        boards = "simulated" if entry.simulated else "emulated" if entry.emulated else "hardware"
        lines.append((entry.run, started, entry.state, trials, boards, entry.campaign))
    print_table(lines)


def report(
    run: RunName = "latest",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The HTML file; without it, report.html in the run's folder.", dir_okay=False
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            help="Also write the run as a JSON trace for Perfetto or chrome://tracing.",
            dir_okay=False,
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in the web browser.")] = False,
    results: Results = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Make a run's report: one HTML file that needs no network."""
    from testbed.records.listing import find_run

    folder = find_run(results, run)

    from testbed.records.run import load_run
    from testbed.report import write_report

    loaded = load_run(folder)
    written = {"report": str(write_report(loaded, out))}
    if trace is not None:
        from testbed.report import write_trace

        written["trace"] = str(write_trace(loaded, trace))
    typer.echo(json.dumps(written) if as_json else "\n".join(written.values()))
    if show:
        typer.launch(Path(written["report"]).resolve().as_uri())


def export(
    run: RunName = "latest",
    csv: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            help="The folder for the CSV files; without it, csv in the run's folder.",
            file_okay=False,
        ),
    ] = None,
    results: Results = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Write a run's tables, and its energy, as CSV files."""
    from testbed.records.listing import find_run

    folder = find_run(results, run)

    from testbed.records.run import load_run

    paths = load_run(folder).export_csv(csv or folder / "csv")
    if as_json:
        typer.echo(json.dumps({"files": [str(path) for path in paths]}))
    else:
        typer.echo("\n".join(str(path) for path in paths))
