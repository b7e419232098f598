"""`testbed sweep`: a campaign simulated at every combination of some values, here or on a Dask cluster."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from testbed.cli.common import (
    DEFAULT_RESULTS,
    DryRunOption,
    JsonOption,
    ResultsOption,
    print_json,
    print_table,
    say,
)
from testbed.errors import InputError

if TYPE_CHECKING:
    from testbed.simulate.sweep import SweepRun
    from testbed.simulate.workers import Workers

__all__ = ["sweep"]

SHOWN_ROWS = 60


def sweep(
    file: Annotated[
        Path | None, typer.Argument(help="The sweep file.", show_default=False, dir_okay=False)
    ] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="SWEEP", help="Go on with a sweep that was cut off.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="How many processes work; one a processor by default.")
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option("--dask", metavar="ADDRESS", help="The scheduler of a Dask cluster that works instead."),
    ] = None,
    results: ResultsOption = DEFAULT_RESULTS,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Simulate a campaign at every combination of some values: budgets, bandwidths, SNRs, numbers of devices.

    The tables do not depend on who does the work. What is done is kept: Ctrl-C loses what is under way and no more.
    """
    from testbed.simulate.sweep import check_points, is_begun, run_sweep

    if dask is not None and jobs is not None:
        raise InputError("--jobs is for processes of this machine, and --dask for a cluster: choose one")
    run = _target(file, resume, results)
    if dry_run:
        check_points(run)
        _show_points(run, as_json)
        return
    try:
        with _workers(dask, jobs) as workers:
            say(f"{run.name}: {len(run.points)} points on {workers.about}")
            swept = run_sweep(
                run,
                workers.executor,
                # One more for each, so that none waits while the next world is made.
                in_flight=2 * workers.slots,
                say=say,
                done=_counted,
            )
    except KeyboardInterrupt:
        if is_begun(run):
            say(f"what is done is kept: testbed sweep --resume {run.folder}")
        raise
    if as_json:
        print_json(swept.as_json())
        return
    from testbed.simulate.sweep_tables import summary_rows

    rows = summary_rows(run, swept.table)
    print_table(rows[: SHOWN_ROWS + 1], keys=len(run.sweep.vary) + 2)  # the axes, scenario and policy
    if len(rows) > SHOWN_ROWS + 1:
        typer.echo(f"... and {len(rows) - SHOWN_ROWS - 1} more")
    typer.echo(
        f"{run.name}: {len(run.points)} points, {swept.simulated} of {swept.units} repeats simulated now, "
        f"in {swept.seconds:.1f} s"
    )
    typer.echo(f"table: {run.folder / 'sweep.csv'}")


def _target(file: Path | None, resume: str | None, results: Path) -> SweepRun:
    from testbed.config.sweep import load_sweep
    from testbed.simulate.sweep import new_sweep, resumed_sweep

    if (file is None) == (resume is None):
        raise InputError("a sweep file was expected, or --resume and the name of a sweep")
    if file is not None:
        return new_sweep(file, load_sweep(file), results)
    assert resume is not None
    folder = Path(resume)
    return resumed_sweep(folder if folder.is_dir() else results / resume)


def _workers(dask: str | None, jobs: int | None) -> AbstractContextManager[Workers]:
    from testbed.simulate.workers import cluster_workers, local_workers

    if dask is not None:
        return cluster_workers(dask)
    return local_workers(jobs or len(os.sched_getaffinity(0)))


def _show_points(run: SweepRun, as_json: bool) -> None:
    points: list[dict[str, Any]] = [{"point": point.number, **point.values} for point in run.points]
    if as_json:
        print_json({"sweep": run.name, "points": points})
        return
    names = list(points[0])
    print_table([names, *([str(point[name]) for name in names] for point in points)])
    typer.echo(f"{run.name}: {len(points)} points; nothing is simulated")


def _counted(done: int, of: int) -> None:
    say(f"{done} of {of} repeats")
