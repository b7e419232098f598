"""A simulated run beside the run that it predicts: the same trials, what was predicted and what was measured. Pure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from testbed.config.yaml import parse_yaml
from testbed.errors import InputError
from testbed.records import Run

__all__ = ["BLOCK_KEYS", "Comparison", "Row", "compare", "differences"]

MEASURES = ("ttft", "itl")
"""Time to the first token, and between tokens: the means of a trial's measured requests."""

BLOCK_KEYS = ("users", "images", "bandwidth_ratios", "shares")
"""The keys of a broadcast campaign that say what a frame of some number is, beside its seed."""


class Row(NamedTuple):
    """One trial.

    Attributes:
        trial: The trial's name in the run.
        policy: Its policy.
        scenario: Its scenario.
        repeat: Its repeat.
        measured_ms: Each measure's mean in the run.
        predicted_ms: The same in the simulation.
    """

    trial: str
    policy: str
    scenario: str
    repeat: int
    measured_ms: dict[str, float]
    predicted_ms: dict[str, float]

    def error(self, measure: str) -> float:
        """Return the relative error of the prediction."""
        return self.predicted_ms[measure] / self.measured_ms[measure] - 1


@dataclass(frozen=True)
class Comparison:
    """All trials that both runs completed.

    Attributes:
        run: The run that was measured.
        rows: The trials, in the order of the run.
        notes: What a reader should know, one line each.
    """

    run: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def median_error(self, measure: str) -> float | None:
        """Return the median over the trials of the absolute relative error; None without trials."""
        errors = [abs(row.error(measure)) for row in self.rows if measure in row.measured_ms]
        return statistics.median(errors) if errors else None

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as plain data."""
        return {
            "run": self.run,
            "median_error": {measure: self.median_error(measure) for measure in MEASURES},
            "trials": [row._asdict() for row in self.rows],
            "notes": list(self.notes),
        }

    def as_lines(self) -> list[str]:
        """Return the comparison for people, a line a trial."""
        from testbed.report.numbers import number

        if not self.rows:
            return [f"{self.run} has no completed trial of the same policy, scenario and repeat"]
        heading = ["trial", "policy", "scenario", "repeat"]
        for measure in MEASURES:
            heading += [f"{measure} measured", "predicted", "error"]
        table = [heading]
        for row in self.rows:
            cells = [row.trial, row.policy, row.scenario, str(row.repeat)]
            for measure in MEASURES:
                if measure in row.measured_ms:
                    measured, predicted = row.measured_ms[measure], row.predicted_ms[measure]
                    cells += [
                        f"{number(measured)} ms",
                        f"{number(predicted)} ms",
                        f"{100 * row.error(measure):+.1f} %",
                    ]
                else:
                    cells += ["", "", ""]
            table.append(cells)
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(cells, widths, strict=True)).rstrip()
            for cells in table
        ]
        said = ", ".join(
            f"{measure} {100 * error:.1f} %"
            for measure in MEASURES
            if (error := self.median_error(measure)) is not None
        )
        notes = [f"note: {note}" for note in self.notes]
        return [f"predicted beside {self.run}:", *lines, f"median error: {said}", *notes]


def compare(simulated: Run, measured: Run) -> Comparison:
    """Return two runs' trials of the same policy, scenario and repeat side by side.

    Args:
        simulated: The simulated run.
        measured: The run that it predicts.
    """
    predicted, found = _means(simulated), _means(measured)
    rows = []
    for trial in measured.completed.itertuples():
        key = (str(trial.policy), str(trial.scenario), int(trial.repeat))
        if predicted.get(key) and found.get(key):
            shared = [name for name in found[key] if name in predicted[key]]
            sides = ({name: side[key][name] for name in shared} for side in (found, predicted))
            rows.append(Row(str(trial.trial), *key, *sides))
    return Comparison(measured.name, tuple(rows), tuple(_notes(simulated, measured)))


def differences(campaign: str, other: str) -> list[str]:
    """Return what of a campaign file is not as in another, of all that its trials follow from.

    Policies, schemes and scenarios count where both files have one of that name: those of one file alone are not
    compared.

    Args:
        campaign: The text of the campaign file.
        other: That of the other one.
    """
    try:
        ours, theirs = (parse_yaml(text, Path("campaign")).data for text in (campaign, other))
    except InputError:
        return ["the campaign file"]
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        return ["the campaign file"]
    keys = ("model", "dtype", "experts", "seed", "placement", "prompts", *BLOCK_KEYS)
    found = [key for key in keys if ours.get(key) != theirs.get(key)]
    for listed, one in (("policies", "the policy"), ("schemes", "the scheme"), ("scenarios", "the scenario")):
        own, others = _named(ours.get(listed)), _named(theirs.get(listed))
        found += [f"{one} {name}" for name in own if name in others and own[name] != others[name]]
    return found


def _named(entries: Any) -> dict[str, Any]:
    entries = entries if isinstance(entries, list) else []
    return {str(entry["name"]): entry for entry in entries if isinstance(entry, dict) and "name" in entry}


def _notes(simulated: Run, measured: Run) -> list[str]:
    simulation = simulated.manifest.get("simulation") or {}
    notes = []
    if simulation.get("differs"):
        notes.append(f"the campaign is not as in {measured.name}: {', '.join(simulation['differs'])} differ")
    if not simulation.get("calibration"):
        notes.append(
            f"nothing is calibrated, so the base station takes no time; `testbed calibrate {measured.name}` measures it"
        )
    elif simulation.get("calibrated_with") == measured.name:
        notes.append("calibrated with this very run: how well it predicts another, this does not show")
    return notes


def _means(run: Run) -> dict[tuple[str, str, int], dict[str, float]]:
    """Return the means of each trial's measured requests, by policy, scenario and repeat; none of what it has not."""
    from testbed.report.metrics import trial_means

    return {
        (str(row.policy), str(row.scenario), int(row.repeat)): {
            name: float(value) for name in MEASURES if (value := getattr(row, f"{name}_ms")) == value
        }
        for row in trial_means(run).itertuples()
    }
