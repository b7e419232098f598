"""A simulated run: the trials on the processors at hand, a folder like that of a run, its report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.config.campaign import Campaign
from testbed.config.inventory import Inventory
from testbed.placement.place import placement_json
from testbed.records import RecordWriter, Run
from testbed.simulate.assumed import calibrated_with
from testbed.simulate.compare import Comparison, compare, differences
from testbed.simulate.pool import trial_records
from testbed.simulate.prepare import MOST_ROWS, Prepared
from testbed.simulate.recorded import free_name, manifest_of, recorded
from testbed.simulate.tables import BACKEND, trial_tables
from testbed.simulate.world import TrialPlan, World

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Simulated", "run_simulation", "simulate_trials"]


def simulate_trials(
    world: World, jobs: int = 1, done: Callable[[int], None] | None = None
) -> dict[str, pd.DataFrame]:
    """Simulate all trials of a world, one after the other on its clock, and return the tables of a run.

    Args:
        world: What is simulated.
        jobs: How many processes work on it; the tables do not depend on that.
        done: Told how many trials are done.
    """
    import pandas as pd

    parts: dict[str, list[pd.DataFrame]] = {}
    for number, (_, tables) in enumerate(_each_trial(world, jobs), 1):
        for name, frame in tables.items():
            parts.setdefault(name, []).append(frame)
        if done is not None:
            done(number)
    return {name: pd.concat(frames, ignore_index=True) for name, frames in parts.items()}


def _each_trial(world: World, jobs: int) -> Iterator[tuple[TrialPlan, dict[str, pd.DataFrame]]]:
    """Yield each trial with its tables, in order; each begins when the one before it has ended."""
    started_s = 0.0
    for record in trial_records(world, jobs):
        yield record.trial, trial_tables(world, record, started_s)
        started_s += record.end_s


@dataclass(frozen=True)
class Simulated:
    """How a simulation ended.

    Attributes:
        run: Its name.
        folder: Its folder.
        report: The report's path.
        trials: How many trials it has.
        seconds: How long it took.
        simulated_s: How long the trials took on their own clock.
        comparison: The run that it predicts beside it, trial by trial.
    """

    run: str
    folder: Path
    report: Path
    trials: int
    seconds: float
    simulated_s: float
    comparison: Comparison | None

    def as_json(self) -> dict[str, Any]:
        """Return the outcome as plain data."""
        return {
            "run": self.run,
            "folder": str(self.folder),
            "report": str(self.report),
            "trials": self.trials,
            "seconds": round(self.seconds, 3),
            "simulated_s": self.simulated_s,
            "predicts": self.comparison.as_json() if self.comparison else None,
        }

    def as_text(self) -> str:
        """Return the outcome for people."""
        lines = [
            f"{self.run}: {self.trials} trials of {self.simulated_s:,.1f} s together, "
            f"simulated in {self.seconds:.1f} s"
        ]
        if self.comparison is not None:
            lines += ["", *self.comparison.as_lines(), ""]
        lines.append(f"report: {self.report}")
        return "\n".join(lines)


def run_simulation(
    prepared: Prepared,
    campaign: Campaign,
    inventory: Inventory,
    results: Path,
    command: str,
    *,
    predicts: Run | None = None,
    jobs: int = 1,
    done: Callable[[int], None] | None = None,
) -> Simulated:
    """Simulate a campaign and write it as a run.

    Args:
        prepared: What is simulated.
        campaign: The campaign.
        inventory: The lab.
        results: The folder of the runs.
        command: The command that makes such a simulation again.
        predicts: The run that it is compared with.
        jobs: How many processes work on it.
        done: Told how many trials are done.
    """
    from testbed.report import write_report

    name = free_name(results, campaign)
    folder, world = results / name, prepared.world
    manifest = _manifest(name, prepared, campaign, inventory, command, predicts)

    def write_trials(records: RecordWriter) -> Iterator[None]:
        for trial, tables in _each_trial(world, jobs):
            rows = tables.pop("trials")
            for table, frame in tables.items():
                records.write(table, trial.name, frame)
            records.write("trials", trial.name, rows)
            yield

    run, seconds = recorded(folder, manifest, write_trials, done)
    comparison = compare(run, predicts) if predicts is not None else None
    report = write_report(run, folder / "report.html")
    end_s = float(run.trials["t_end_s"].max())
    return Simulated(name, folder, report, len(world.trials), seconds, end_s, comparison)


def _manifest(
    name: str,
    prepared: Prepared,
    campaign: Campaign,
    inventory: Inventory,
    command: str,
    predicts: Run | None,
) -> dict[str, Any]:
    world, model = prepared.world, prepared.model.manifest
    numbers = asdict(model)
    del numbers["experts"], numbers["base_station"]
    calibration = campaign.latency.calibration
    differs = (
        differences(campaign.text, str(predicts.manifest.get("campaign"))) if predicts is not None else []
    )
    return {
        **manifest_of(name, campaign, inventory, command, predicts),
        "model": {
            "name": model.model,
            "manifest": model.digest() if prepared.model.weights else None,
            "parameters": model.parameters,
            **numbers,
        },
        "placement": placement_json(prepared.placement),
        "links": {
            "shaping": inventory.network.shaping,
            "leaf": inventory.network.leaf,
            "backends": {device: dict.fromkeys(("downlink", "uplink"), BACKEND) for device in world.devices},
        },
        "latency": world.model.as_json(),
        "simulation": {
            "routing": prepared.routing,
            "calibration": str(calibration) if calibration else None,
            "calibrated_with": calibrated_with(calibration) if calibration else None,
            **({"differs": differs} if differs else {}),
            "repeats": campaign.repeats,
            "omitted": [] if world.detail else _OMITTED,
        },
    }


_OMITTED: Sequence[str] = (
    f"dispatches: there would be more than {MOST_ROWS:,} rows; `selection`, `tokens` and `requests` are whole",
    "links: the rates at the start of each trial only",
)
