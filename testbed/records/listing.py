"""The runs of a results folder, at a glance."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import InputError
from testbed.records.manifest import LOCK_NAME, MANIFEST_NAME, read_manifest
from testbed.records.outline import outline_of, planned_trials

__all__ = ["RunSummary", "find_run", "list_runs"]


@dataclass(frozen=True)
class RunSummary:
    """One run of a results folder.

    Attributes:
        run: Its name, which is its folder's: a copy has its own.
        path: Its folder.
        campaign: The campaign's name.
        state: running, completed, failed or interrupted; ``cut off`` where its controller was killed, ``unreadable``
            where the manifest is damaged or the folder somebody else's.
        started_unix: When it was started.
        completed: How many trials were completed.
        planned: How many trials there should be; None where the campaign file does not say.
        emulated: Whether its boards were emulated.
        problem: Why it is unreadable, or an empty string.
        simulated: Whether a model made it.
    """

    run: str
    path: Path
    campaign: str
    state: str
    started_unix: float
    completed: int
    planned: int | None
    emulated: bool
    problem: str = ""
    simulated: bool = False


def list_runs(results: Path) -> list[RunSummary]:
    """Return the runs of a folder, the newest first.

    Args:
        results: The folder that holds the runs' folders.
    """
    if not results.is_dir():
        return []
    runs = [run for folder in results.iterdir() if (run := _summary(folder)) is not None]
    return sorted(runs, key=lambda run: (-run.started_unix, run.run))


def find_run(results: Path, run: str) -> Path:
    """Return the folder of a run that was given by name or by path.

    Args:
        results: The folder that holds the runs' folders.
        run: A run's name, a path of its folder, or ``latest``.

    Raises:
        InputError: There is no such run.
    """
    if run == "latest":
        runs = [summary for summary in list_runs(results) if not summary.problem]
        if runs:
            return runs[0].path
        raise InputError(f"{results}: there is no run yet", hint="`testbed run CAMPAIGN` makes one")
    for folder in (results / run, Path(run)):
        if (folder / MANIFEST_NAME).is_file():
            return folder
    known = ", ".join(summary.run for summary in list_runs(results)[:5])
    hint = f"the latest in {results}: {known}" if known else "`testbed run CAMPAIGN` makes one"
    raise InputError(f"{run}: there is no such run in {results}", hint=hint)


def _summary(folder: Path) -> RunSummary | None:
    """Return what a folder says of its run; None where it is none."""
    try:
        if not (folder / MANIFEST_NAME).is_file():
            return None
        manifest = read_manifest(folder)
        completed = _completed(folder)
    except (InputError, OSError) as error:
        problem = f"{folder}: {error.strerror}" if isinstance(error, OSError) else error.message
        return RunSummary(folder.name, folder, "", "unreadable", 0.0, 0, None, False, problem)
    return RunSummary(
        run=folder.name,
        path=folder,
        campaign=str(manifest.get("campaign_name", "")),
        state=_state(folder, str(manifest["state"])),
        started_unix=float(manifest["started_unix"]),
        completed=completed,
        planned=planned_trials(manifest, outline_of(manifest)),
        emulated=bool(manifest.get("emulated", False)),
        simulated=bool(manifest.get("simulated", False)),
    )


def _state(folder: Path, written: str) -> str:
    """Return a run's state; one that is written as running is, only while its controller holds the lock."""
    if written != "running":
        return written
    try:
        with (folder / LOCK_NAME).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return written
    except OSError:
        pass  # no lock: nobody holds it
    return "cut off"


def _completed(folder: Path) -> int:
    """Count the completed trials without pandas."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 0
    for path in (folder / "tables" / "trials").glob("*.parquet"):
        try:
            with pq.ParquetFile(path) as file:
                count += file.read(columns=["state"]).column("state").to_pylist().count("completed")
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{path}: cannot be read as Parquet: {error}") from error
    return count
