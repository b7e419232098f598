"""How well the latency model predicts: dispatch by dispatch within a run, and trial by trial between two runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from testbed.errors import TestbedError
from testbed.records.iterations import KEY, passes_of_tokens
from testbed.records.run import Run, load_run
from testbed.report.metrics import measured_tokens, policies_of, scenarios_of, trial_means

__all__ = [
    "ErrorRow",
    "PredictedRun",
    "dispatch_errors",
    "error_row",
    "order_agreement",
    "predicted_dispatches",
    "predicted_trials",
]


@dataclass(frozen=True)
class ErrorRow:
    """How far predictions were off, relative to what was measured.

    Attributes:
        name: What they are of: a device, or a policy in a scenario.
        n: How many.
        median: The median of the error's size.
        p90: The 90th percentile of the error's size.
        bias: The median of the error with its sign: above 0 where the model is too slow.
    """

    name: str
    n: int
    median: float
    p90: float
    bias: float


@dataclass(frozen=True)
class PredictedRun:
    """The trials of a simulated run beside those of the run that it predicts.

    Attributes:
        name: The measured run.
        pairs: ``policy, scenario, repeat, measured_ms, predicted_ms``, mean token latencies; ``repeat`` is -1 where
            means over the repeats are compared, since the two runs have not the same ones.
        first: The same of the mean times to the first token; None where there are no pairs.
        problem: Why there are none; empty where there are.
        run: The measured run itself; None where it is not at hand.
    """

    name: str
    pairs: pd.DataFrame = field(repr=False)
    first: pd.DataFrame | None = field(default=None, repr=False)
    problem: str = ""
    run: Run | None = field(default=None, repr=False)


def predicted_dispatches(run: Run) -> pd.DataFrame:
    """Return the dispatches of requests that count and that have a prediction.

    A simulated run's own dispatches are its predictions, so it has none here.

    Returns:
        ``policy, scenario, device, stage, measured_ms, predicted_ms``.
    """
    columns = ["policy", "scenario", "device", "stage", "measured_ms", "predicted_ms"]
    if run.manifest.get("simulated"):
        return pd.DataFrame(columns=columns)
    tokens, dispatches = run.numbered
    measured = measured_tokens(run, tokens).reset_index(drop=True)
    # A pass that answered several requests counts once, if any of them does.
    kept = passes_of_tokens(measured, dispatches)
    kept = kept.merge(measured[["policy", "scenario"]], left_on="place", right_index=True)
    kept = kept[[*KEY, "policy", "scenario"]].drop_duplicates(KEY)
    rows = dispatches[dispatches["predicted_ms"].notna()].merge(kept, on=KEY, how="inner")
    rows = rows.assign(
        measured_ms=(rows["t_done_s"] - rows["t_send_s"]) * 1000,
        stage=np.where((rows["step"] == 0).fillna(False), "prompt", "decode"),
    )
    return rows.loc[rows["measured_ms"] > 0, columns].reset_index(drop=True)


def dispatch_errors(rows: pd.DataFrame, devices: Sequence[str]) -> list[ErrorRow]:
    """Return the errors over all devices first, then by device.

    Args:
        rows: What :func:`predicted_dispatches` gave.
        devices: The devices in order.
    """
    if rows.empty:
        return []
    whole = error_row("all devices", rows)
    own = [error_row(name, rows[rows["device"] == name]) for name in devices]
    return [whole, *(row for row in own if row.n)]


def error_row(name: str, rows: pd.DataFrame) -> ErrorRow:
    """Return the errors of predictions; NaN where there are none.

    Args:
        name: What they are of.
        rows: With ``measured_ms`` and ``predicted_ms``.
    """
    if rows.empty:
        return ErrorRow(name, 0, math.nan, math.nan, math.nan)
    error = (rows["predicted_ms"] / rows["measured_ms"] - 1).to_numpy(dtype=float)
    size = np.abs(error)
    return ErrorRow(
        name, len(error), float(np.median(size)), float(np.percentile(size, 90)), float(np.median(error))
    )


def predicted_trials(run: Run) -> PredictedRun | None:
    """Return a simulated run's trials beside those of the run that it predicts; None where it predicts none.

    Args:
        run: The simulated run; its manifest names the other under ``predicts``, which lies beside it or is a path.
    """
    name = run.manifest.get("predicts")
    if not name:
        return None
    empty = pd.DataFrame(columns=_PAIRS)
    beside = run.path.parent / Path(str(name)).name
    folder = beside if beside.is_dir() else Path(str(name))
    try:
        other = load_run(folder)
    except TestbedError:
        problem = f"the run {name} is not beside this one, so nothing can be compared"
        return PredictedRun(str(name), empty, problem=problem)
    ours, theirs = trial_means(run), trial_means(other)
    pairs = _pairs(run, ours, theirs, "itl_ms")
    if pairs.empty:
        problem = f"the run {other.name} has no completed trial of these policies and scenarios"
        return PredictedRun(other.name, empty, problem=problem, run=other)
    return PredictedRun(other.name, pairs, _pairs(run, ours, theirs, "ttft_ms"), run=other)


_PAIRS = ["policy", "scenario", "repeat", "measured_ms", "predicted_ms"]


def _pairs(run: Run, ours: pd.DataFrame, theirs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the trial means of both runs side by side, in the campaign's order."""
    keys = ["policy", "scenario", "repeat"]
    sides = [
        means.dropna(subset=[metric])[[*keys, metric]].rename(columns={metric: column})
        for means, column in ((theirs, "measured_ms"), (ours, "predicted_ms"))
    ]
    pairs = sides[0].merge(sides[1], on=keys, how="inner")
    if len(pairs) < len(sides[0]):
        # Other repeats: one mean a policy and scenario.
        means = [
            side.groupby(keys[:2], sort=False).mean().drop(columns="repeat").reset_index() for side in sides
        ]
        pairs = means[0].merge(means[1], on=keys[:2], how="inner").assign(repeat=-1)
    order = {
        key: place for place, key in enumerate((p, s) for s in scenarios_of(run) for p in policies_of(run))
    }
    places = [order.get(key, len(order)) for key in zip(pairs["policy"], pairs["scenario"], strict=True)]
    pairs = pairs.assign(place=places).sort_values(["place", "repeat"]).drop(columns="place")
    return pairs[_PAIRS].reset_index(drop=True)


def order_agreement(pairs: pd.DataFrame) -> tuple[int, int]:
    """Return of how many pairs of policies in one scenario the faster one is predicted, and how many pairs there are.

    Args:
        pairs: ``PredictedRun.pairs``; the means over the repeats decide who is the faster.
    """
    agreed = compared = 0
    means = pairs.groupby(["scenario", "policy"], sort=False)[["measured_ms", "predicted_ms"]].mean()
    for _, own in means.groupby(level="scenario", sort=False):
        for one, other in combinations(own.to_numpy(), 2):
            compared += 1
            agreed += bool((one[0] - other[0]) * (one[1] - other[1]) > 0)
    return agreed, compared
