"""A sweep: the points of a sweep file simulated on the processors here or on a Dask cluster, with the same tables.

The unit of work is one repeat of one point. What a unit gives depends on its world and on nothing else, so that the
tables are the same wherever and in whichever order the units are done. Each unit's rows are written when they are
there: a sweep that was cut off goes on with what is left.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from testbed import __version__
from testbed.artifacts.weights import has_weights
from testbed.config.campaign import check_campaign, load_campaign
from testbed.config.inventory import load_inventory
from testbed.config.sweep import Point, Sweep, changed, load_sweep, points_of
from testbed.config.yaml import Document, read_yaml
from testbed.errors import InputError, TestbedError
from testbed.simulate.assumed import check_calibration
from testbed.simulate.engine import TrialRecord, simulate_trial
from testbed.simulate.fleets import resized
from testbed.simulate.playable import check_playable
from testbed.simulate.prepare import prepare
from testbed.simulate.world import World

if TYPE_CHECKING:
    import pandas as pd

    from testbed.config.campaign import Campaign
    from testbed.config.inventory import Inventory

__all__ = [
    "SweepRun",
    "Swept",
    "check_points",
    "is_begun",
    "new_sweep",
    "resumed_sweep",
    "run_sweep",
    "simulate_unit",
]

ABOUT_NAME = "sweep.json"
TABLE_NAME = "sweep"
_FORMAT = 1


@dataclass(frozen=True)
class SweepRun:
    """A sweep and where its results are.

    Attributes:
        name: The name of its folder.
        folder: The folder.
        file: The sweep file.
        sweep: The sweep.
        points: Its points.
        campaign: The campaign file as it was read.
        inventory: The inventory file as it was read.
    """

    name: str
    folder: Path
    file: Path
    sweep: Sweep
    points: Sequence[Point]
    campaign: Document
    inventory: Document

    @property
    def inputs(self) -> dict[str, str]:
        """Digests of all files that the results follow from."""
        texts = {
            "sweep": self.sweep.document.text,
            "campaign": self.campaign.text,
            "inventory": self.inventory.text,
        }
        return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


class Unit(NamedTuple):
    """One repeat of one point."""

    point: int
    repeat: int

    @property
    def part(self) -> str:
        """The name of its part of the table."""
        return f"p{self.point:05d}-r{self.repeat:04d}"


@dataclass(frozen=True)
class Swept:
    """How a sweep ended.

    Attributes:
        run: The sweep.
        table: One row a point and trial.
        simulated: How many units were simulated now.
        units: How many there are.
        seconds: How long that took.
    """

    run: SweepRun
    table: pd.DataFrame
    simulated: int
    units: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Return the outcome as plain data."""
        return {
            "sweep": self.run.name,
            "folder": str(self.run.folder),
            "points": len(self.run.points),
            "units": self.units,
            "simulated": self.simulated,
            "seconds": round(self.seconds, 3),
        }


def new_sweep(file: Path, sweep: Sweep, results: Path) -> SweepRun:
    """Return a sweep that has not been started, named after its file and the next free number.

    Raises:
        InputError: The campaign file cannot be read.
    """
    stem = f"sweep-{sweep.sweep}"
    tails = [path.name.rpartition("-")[2] for path in results.glob(f"{stem}-*")]
    name = f"{stem}-{max((int(tail) for tail in tails if tail.isdigit()), default=0) + 1:04d}"
    return _sweep_run(name, results / name, file, sweep)


def _sweep_run(name: str, folder: Path, file: Path, sweep: Sweep) -> SweepRun:
    campaign = read_yaml(sweep.campaign)
    inventory = sweep.inventory or load_campaign(sweep.campaign).lab_file()
    return SweepRun(name, folder, file, sweep, points_of(sweep), campaign, read_yaml(inventory))


def resumed_sweep(folder: Path) -> SweepRun:
    """Return a sweep that was cut off.

    Args:
        folder: Its folder.

    Raises:
        InputError: It is none, or a file that it follows from has changed since.
    """
    path = folder / ABOUT_NAME
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        file, inputs = Path(about["file"]), about["inputs"]
    except FileNotFoundError as error:
        raise InputError(f"{folder}: this is no sweep: it has no {ABOUT_NAME}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read: {error!r}") from error
    sweep = load_sweep(file)
    run = _sweep_run(folder.name, folder, file, sweep)
    for name, digest in run.inputs.items():
        if inputs.get(name) != digest:
            raise InputError(
                f"the {name} file has changed since {folder.name} was started",
                hint="put it back as it was, or start a new sweep",
            )
    return run


def check_points(run: SweepRun) -> None:
    """Check every point of a sweep, and simulate none.

    Raises:
        InputError: A point is wrong.
    """
    _Worlds(run, lambda _text: None)


def is_begun(run: SweepRun) -> bool:
    """Return whether there is anything that could be gone on with."""
    return (run.folder / ABOUT_NAME).is_file()


def run_sweep(
    run: SweepRun,
    executor: Executor,
    *,
    in_flight: int,
    say: Callable[[str], None],
    done: Callable[[int, int], None] | None = None,
) -> Swept:
    """Simulate what is left of a sweep, and put its table together.

    Args:
        run: The sweep.
        executor: Who does the work: processes here, or a cluster. Who gave it cancels what is left of it.
        in_flight: How many units are handed out at most before one comes back.
        say: Told what takes a while.
        done: Told how many units are done, of how many.

    Raises:
        InputError: A point is wrong: all are checked before the first is simulated.
        TestbedError: A unit failed; what is done is kept.
    """
    begun_s = time.monotonic()
    worlds = _Worlds(run, say)
    units = [Unit(point.number, repeat) for point in run.points for repeat in range(worlds.repeats(point))]
    _write_about(run)
    parts = run.folder / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    left = [unit for unit in units if not (parts / f"{unit.part}.json").exists()]
    finished = len(units) - len(left)
    if done is not None:
        done(finished, len(units))
    waiting: dict[Future[list[dict[str, Any]]], Unit] = {}
    handed_out = _handed_out(left, worlds, executor)
    while True:
        while len(waiting) < in_flight and (next_one := next(handed_out, None)) is not None:
            waiting[next_one[0]] = next_one[1]
        if not waiting:
            break
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            unit = waiting.pop(future)
            _write_part(parts / f"{unit.part}.json", _result(future, run, unit))
            finished += 1
            if done is not None:
                done(finished, len(units))
    table = _table(run, parts, units)
    _write_table(run.folder, table)
    return Swept(run, table, len(left), len(units), time.monotonic() - begun_s)


def simulate_unit(world: World, repeat: int) -> list[dict[str, Any]]:
    """Simulate one repeat of a world: the function that the workers run. Pure.

    Returns:
        One row a trial.
    """
    trials = [trial for trial in world.trials if trial.repeat == repeat]
    return [_row(simulate_trial(world, trial)) for trial in trials]


class _Worlds:
    """The world of each point, made when it is needed; one is kept."""

    def __init__(self, run: SweepRun, say: Callable[[str], None]) -> None:
        self._sweep = run.sweep
        self._say = say
        self._lab = cache(load_inventory)
        # A mistake in the last point is found before the first is simulated.
        self._campaigns = {point.number: changed(run.sweep, point, run.campaign) for point in run.points}
        self._points = {point.number: point for point in run.points}
        for number, campaign in self._campaigns.items():
            check_campaign(campaign, self._lab(campaign.lab_file(run.sweep.inventory)))
            check_playable(campaign)
            check_calibration(*self._resized(number))
            if run.sweep.batch_tokens is not None and has_weights(campaign.model):
                text = f"{campaign.model_name} has weights, so that its prompts are as long as they are"
                raise InputError(run.sweep.document.problem(("batch_tokens",), text))
        self._kept: tuple[int, World] | None = None

    def repeats(self, point: Point) -> int:
        """Return how many repeats a point has."""
        return self._campaigns[point.number].repeats

    def of(self, number: int) -> World:
        """Return the world of a point."""
        if self._kept is None or self._kept[0] != number:
            campaign, inventory = self._resized(number)
            made = prepare(campaign, inventory, batch_tokens=self._sweep.batch_tokens, say=self._say).world
            self._kept = number, replace(made, detail=False)
        return self._kept[1]

    def _resized(self, number: int) -> tuple[Campaign, Inventory]:
        """Return the campaign and the lab of a point, with as many devices as it has."""
        campaign = self._campaigns[number]
        inventory = self._lab(campaign.lab_file(self._sweep.inventory))
        devices = self._points[number].devices
        return (campaign, inventory) if devices is None else resized(campaign, inventory, devices)


def _handed_out(
    units: Sequence[Unit], worlds: _Worlds, executor: Executor
) -> Iterator[tuple[Future[list[dict[str, Any]]], Unit]]:
    for unit in units:
        yield executor.submit(simulate_unit, worlds.of(unit.point), unit.repeat), unit


def _result(future: Future[list[dict[str, Any]]], run: SweepRun, unit: Unit) -> list[dict[str, Any]]:
    try:
        return future.result()
    except Exception as error:  # whatever ended a worker, on whichever machine
        raise TestbedError(
            f"repeat {unit.repeat} of point {unit.point} failed: {type(error).__name__}: {error}",
            hint=f"what is done is kept: testbed sweep --resume {run.folder}",
        ) from error


def _row(record: TrialRecord) -> dict[str, Any]:
    """Return one trial in a few figures: means over the requests and tokens that count."""
    counted = {one.request for one in record.requests if not one.warmup}
    requests = [one for one in record.requests if not one.warmup]
    tokens = [one for one in record.tokens if one.request in counted]
    later = [one for one in tokens if one.position > 0]
    bounds = [one.bound_ms for one in later or tokens]
    sums = {
        name: sum(float(row[name]) for row in record.selection)
        for name in ("pairs", "dropped", "mass", "dropped_mass")
    }
    return {
        "trial": record.trial.name,
        "policy": record.trial.policy,
        "scenario": record.trial.scenario,
        "repeat": record.trial.repeat,
        "ttft_ms": _mean([1e3 * (one.first_s - one.start_s) for one in requests]),
        "itl_ms": _mean([one.duration_ms for one in later]),
        "e2el_ms": _mean([1e3 * (one.last_s - one.start_s) for one in requests]),
        "bound_ms": _mean([b for b in bounds if b is not None]) if None not in bounds else None,
        "dropped_share": sums["dropped"] / sums["pairs"] if sums["pairs"] else None,
        "mass_kept": 1 - sums["dropped_mass"] / sums["mass"] if sums["mass"] else None,
        "allocations": len(record.changes),
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _write_about(run: SweepRun) -> None:
    about = {
        "format": _FORMAT,
        "sweep": run.name,
        "file": str(run.file.resolve()),
        "inputs": run.inputs,
        "testbed": __version__,
        "text": run.sweep.document.text,
        "campaign": run.campaign.text,
        "points": [{"point": point.number, **point.values} for point in run.points],
    }
    _write_text(run.folder / ABOUT_NAME, json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def _write_part(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if any(isinstance(value, float) and not math.isfinite(value) for row in rows for value in row.values()):
        raise TestbedError(f"{path.stem}: the simulation gave a figure that is no number")
    _write_text(path, json.dumps(rows))


def _write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _table(run: SweepRun, parts: Path, units: Sequence[Unit]) -> pd.DataFrame:
    """Return one row a point and trial, in the order of the points and of the trials."""
    import pandas as pd

    rows = []
    for unit in units:
        values = run.points[unit.point].values
        for row in json.loads((parts / f"{unit.part}.json").read_text(encoding="utf-8")):
            rows.append({"point": unit.point, **{k: _cell(v) for k, v in values.items()}, **row})
    frame = pd.DataFrame(rows)
    return frame.sort_values(["point", "trial"], kind="stable").reset_index(drop=True)


def _cell(value: Any) -> Any:
    """Return an axis's value as a table can hold it."""
    return value if isinstance(value, int | float | str | bool) or value is None else json.dumps(value)


def _write_table(folder: Path, table: pd.DataFrame) -> None:
    unfinished = folder / f"{TABLE_NAME}.csv.part"
    table.to_csv(unfinished, index=False)
    unfinished.replace(folder / f"{TABLE_NAME}.csv")
