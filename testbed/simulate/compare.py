"""A simulated run beside the run that it predicts: the same trials, what was predicted and what was measured. Pure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any, NamedTuple

from testbed.records import Run

__all__ = ["Comparison", "Row", "compare"]

MEASURES = ("ttft", "itl")
"""Time to the first token, and between tokens: the means of a trial's measured requests."""


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
    """

    run: str
    rows: tuple[Row, ...]

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
        }

    def as_lines(self) -> list[str]:
        """Return the comparison for people, a line a trial."""
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
                        f"{measured:.2f} ms",
                        f"{predicted:.2f} ms",
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
        return [f"predicted beside {self.run}:", *lines, f"median error: {said}"]


def compare(simulated: Run, measured: Run) -> Comparison:
    """Return two runs' trials of the same policy, scenario and repeat side by side.

    Args:
        simulated: The simulated run.
        measured: The run that it predicts.
    """
    predicted = {
        (row.policy, row.scenario, row.repeat): _means(simulated, row.trial) for row in _trials(simulated)
    }
    rows = []
    for trial in _trials(measured):
        means = predicted.get((trial.policy, trial.scenario, trial.repeat))
        found = _means(measured, trial.trial)
        if means and found:
            shared = [name for name in found if name in means]
            rows.append(
                Row(
                    str(trial.trial),
                    str(trial.policy),
                    str(trial.scenario),
                    int(trial.repeat),
                    {name: found[name] for name in shared},
                    {name: means[name] for name in shared},
                )
            )
    return Comparison(measured.name, tuple(rows))


def _trials(run: Run) -> list[Any]:
    return list(run.completed.itertuples())


def _means(run: Run, trial: str) -> dict[str, float]:
    """Return the means of a trial's measured requests; none of what it has not."""
    requests = run.requests[(run.requests["trial"] == trial) & ~run.requests["warmup"]]
    tokens = run.tokens[(run.tokens["trial"] == trial) & run.tokens["request"].isin(requests["request"])]
    later = tokens[tokens["position"] > 0]
    means = {"ttft": requests["ttft_ms"].mean(), "itl": later["duration_ms"].mean()}
    return {name: float(value) for name, value in means.items() if value == value}
