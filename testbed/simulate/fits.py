"""The fits behind a calibration: each takes its observations once, and is then made with trials counted as asked.

A fit says what it cannot tell (``why``), by how many observations there are and not by how well it went.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from payloads.wdmoe.pace import ExpertShape
from testbed.simulate.robust import clipped, line, median_of, slope_through

__all__ = ["LEAST_ROWS", "Links", "Speed", "Station", "fit_links", "fit_speed", "fit_station"]

Floats = NDArray[np.float64]
LEAST_ROWS = 20
"""A number needs so many observations at least."""

#: How much closer a second rate has to bring the model to the measured times to count as seen, as a share.
_GAIN = 0.05


class _Rows:
    """Columns of observations, and which of them a count of trials takes how often."""

    def __init__(self, frame: pd.DataFrame, columns: tuple[str, ...]) -> None:
        self._columns = tuple(frame[name].to_numpy(dtype=float) for name in columns)
        trials = frame["trial"].to_numpy()
        order = np.argsort(trials, kind="stable")
        names, starts = np.unique(trials[order], return_index=True)
        parts = np.split(order, starts[1:]) if len(names) else []
        self._of = dict(zip(names.tolist(), parts, strict=True))
        self.trials = list(self._of)

    def take(self, counts: Mapping[str, int]) -> tuple[Floats, ...]:
        chosen = [
            self._of[trial] for trial, times in counts.items() if trial in self._of for _ in range(times)
        ]
        index = np.concatenate(chosen) if chosen else np.array([], dtype=int)
        return tuple(column[index] for column in self._columns)


@dataclass(frozen=True)
class Links:
    """The fit of what a dispatch takes beside links and computation.

    Attributes:
        counts: Observations behind each number.
        why: Why ``fixed_ms`` cannot be told, or an empty string.
        why_pair: Why ``pair_ms`` cannot.
    """

    counts: Mapping[str, int]
    why: str
    why_pair: str
    _rows: _Rows = field(repr=False)

    def fit(self, counts: Mapping[str, int]) -> dict[str, float]:
        """Return ``fixed_ms`` and ``pair_ms`` with each trial counted so often."""
        pairs, rest_ms, total_ms = self._rows.take(counts)
        if not len(rest_ms):
            return {"fixed_ms": math.nan, "pair_ms": math.nan}
        if self.why_pair:
            return {"fixed_ms": median_of(rest_ms), "pair_ms": 0.0}
        # Errors count relative to the whole: a long message's own error must not pass for software.
        fixed_ms, pair_ms = line(pairs, rest_ms, 1 / total_ms)
        return {"fixed_ms": fixed_ms, "pair_ms": pair_ms}


def fit_links(mine: pd.DataFrame) -> Links:
    """Prepare the fit of one device's ``fixed_ms`` and ``pair_ms``.

    Args:
        mine: Its dispatches, as in :class:`testbed.simulate.observed.Observed`.
    """
    used = mine[mine["link_ms"].notna()]
    used = used.assign(rest_ms=used["total_ms"] - used["compute_ms"] - used["link_ms"])
    rows = _Rows(used, ("pairs", "rest_ms", "total_ms"))
    n = len(used)
    why = "" if n >= LEAST_ROWS else f"{n} dispatches with known links, fewer than {LEAST_ROWS}"
    many = int((used["pairs"] >= 4).sum())
    why_pair = why or ("" if many >= LEAST_ROWS else f"{many} dispatches of 4 pairs or more; counted as 0")
    return Links({"fixed_ms": n, "pair_ms": many}, why, why_pair, rows)


@dataclass(frozen=True)
class Speed:
    """The fit of a device's computation.

    Attributes:
        trials: The trials and quality passes with dispatches whose work is known.
        counts: Observations behind each number.
        why_ops: Why ``ops_per_s`` cannot be told, or an empty string.
        why_bytes: Why ``bytes_per_s`` cannot.
        least_ops_per_s: The rate that was reached at least, whatever bound.
    """

    trials: list[str]
    counts: Mapping[str, int]
    why_ops: str
    why_bytes: str
    least_ops_per_s: float
    _rows: _Rows = field(repr=False)
    _start: tuple[float, float]

    def fit(self, counts: Mapping[str, int]) -> dict[str, float]:
        """Return ``ops_per_s`` and ``bytes_per_s`` with each trial counted so often; NaN for what cannot be told."""
        ops, data, seconds = self._rows.take(counts)
        op_s, byte_s = self._start
        for _ in range(3):
            binds = ops * op_s > data * byte_s
            if not self.why_ops and binds.any():
                op_s = median_of(seconds[binds] / ops[binds])
            if not self.why_bytes and (~binds).any():
                byte_s = median_of(seconds[~binds] / data[~binds])
        return {"ops_per_s": _inverse(op_s), "bytes_per_s": _inverse(byte_s)}


def fit_speed(mine: pd.DataFrame, shape: ExpertShape) -> Speed:
    """Prepare the fit of one device's rates.

    A dispatch's expert takes the longer of its operations and its bytes, so that few tokens tell about memory and many
    about operations. Which binds is found by trying every number of tokens as the border.

    Args:
        mine: Its dispatches, those of quality passes too.
        shape: The size of an expert.
    """
    used = mine[mine["each"].notna() & (mine["compute_ms"] > 0)]
    each, weights = used["each"], shape.traffic_bytes(0)
    used = used.assign(
        ops=each * shape.operations(1),
        data=weights + each * (shape.traffic_bytes(1) - weights),
        seconds=used["compute_ms"] / 1e3 / used["experts"],
    )
    rows = _Rows(used, ("ops", "data", "seconds"))
    if len(used) < LEAST_ROWS:
        why = f"{len(used)} dispatches whose work is known, fewer than {LEAST_ROWS}"
        return Speed([], {}, why, why, 0.0, rows, (0.0, 0.0))
    ops, data, seconds = (used[name].to_numpy(dtype=float) for name in ("ops", "data", "seconds"))
    op_s, byte_s = _border(ops, data, seconds)
    binds = ops * op_s > data * byte_s
    counts = {"ops_per_s": int(binds.sum()), "bytes_per_s": int((~binds).sum())}
    few = f"fewer than {LEAST_ROWS}"
    why_ops = why_bytes = ""
    if counts["ops_per_s"] < LEAST_ROWS:
        why_ops = f"operations bind in {counts['ops_per_s']} dispatches, {few}; longer prompts would tell"
    if counts["bytes_per_s"] < LEAST_ROWS:
        why_bytes = f"memory binds in {counts['bytes_per_s']} dispatches, {few}"
    largest = used["each"] == used["each"].max()
    least = median_of(ops[largest] / seconds[largest])
    return Speed(rows.trials, counts, why_ops, why_bytes, least, rows, (op_s, byte_s))


def _border(ops: Floats, data: Floats, seconds: Floats) -> tuple[float, float]:
    """Return seconds for an operation and for a byte that bring ``max`` of the two closest to the times measured."""

    def distance(op_s: float, byte_s: float) -> float:
        said = np.maximum(ops * op_s, data * byte_s)
        return float(np.abs(np.log(said / seconds)).mean())

    alone = [(median_of(seconds / ops), 0.0), (0.0, median_of(seconds / data))]
    one = min(alone, key=lambda pair: distance(*pair))
    best, least = one, distance(*one)
    needed = least * (1 - _GAIN)
    for border in np.unique(ops)[1:]:
        above = ops >= border
        if min(above.sum(), (~above).sum()) < LEAST_ROWS:
            continue
        pair = (median_of(seconds[above] / ops[above]), median_of(seconds[~above] / data[~above]))
        if distance(*pair) < min(least, needed):
            best, least = pair, distance(*pair)
    return best


@dataclass(frozen=True)
class Station:
    """The fit of what the base station takes.

    Attributes:
        counts: Observations behind each number.
        why: Why a number cannot be told, by its name.
    """

    counts: Mapping[str, int]
    why: Mapping[str, str]
    _layers: int
    _gaps: _Rows = field(repr=False)
    _waits: _Rows = field(repr=False)
    _later: _Rows = field(repr=False)
    _first: _Rows = field(repr=False)

    def fit(self, counts: Mapping[str, int]) -> dict[str, float]:
        """Return the base station's numbers with each trial counted so often; NaN for what cannot be told."""
        gaps_ms, allocated = self._gaps.take(counts)
        own_ms, allocations = self._later.take(counts)
        rows, first_ms, first_allocations = self._first.take(counts)
        further, wait_ms = self._waits.take(counts)
        allocate_ms = 0.0
        if "bs_allocate_ms" not in self.why:
            without_ms = gaps_ms[allocated == 0]
            allocate_ms = _not_below_0(_mean(gaps_ms[allocated > 0]) - _mean(without_ms))
            gaps_ms = without_ms
        # What a token's allocations took belongs to none of the other numbers.
        later_ms = _mean(own_ms - allocations * allocate_ms)
        first_ms = first_ms - first_allocations * allocate_ms
        gap_ms = _mean(gaps_ms) if "bs_layer_ms" not in self.why else 0.0
        row_ms = 0.0
        if "bs_row_ms" not in self.why:
            row_ms = _not_below_0(slope_through(self._layers * (rows - 1), first_ms - later_ms))
        dispatch_ms = waited_ms = 0.0
        if len(wait_ms):
            waited_ms, dispatch_ms = _waiting(further, wait_ms, "bs_dispatch_ms" not in self.why)
        # In one layer there is no gap to tell the layer's own time from the step's: the step has it all.
        layer_ms = _not_below_0(gap_ms - row_ms + waited_ms) if "bs_layer_ms" not in self.why else 0.0
        return {
            "bs_step_ms": _not_below_0(later_ms + self._layers * (waited_ms - row_ms - layer_ms)),
            "bs_layer_ms": layer_ms,
            "bs_row_ms": row_ms,
            "bs_dispatch_ms": dispatch_ms,
            "bs_allocate_ms": allocate_ms,
        }


def _mean(values: Floats) -> float:
    """Return the mean with outliers moved in; NaN of nothing."""
    return float(clipped(values).mean()) if len(values) else math.nan


def _not_below_0(value: float) -> float:
    """Return the value, or 0; NaN stays, since what a draw of trials cannot tell is not 0."""
    return float(np.maximum(0.0, value))


def _waiting(further: Floats, wait_ms: Floats, varies: bool) -> tuple[float, float]:
    """Return what a layer takes beyond its slowest dispatch, for one device and for each further one."""
    kinds = [(value, clipped(wait_ms[further == value])) for value in np.unique(further)]
    if not varies or len(kinds) < 2:
        return float(np.concatenate([values for _, values in kinds]).mean()), 0.0
    x = np.array([value for value, _ in kinds])
    y = np.array([values.mean() for _, values in kinds])
    weights = np.array([len(values) for _, values in kinds], dtype=float)
    mean_x, mean_y = weights @ x / weights.sum(), weights @ y / weights.sum()
    slope = max(0.0, float(weights @ ((x - mean_x) * (y - mean_y)) / (weights @ (x - mean_x) ** 2)))
    return float(mean_y - slope * mean_x), slope


def fit_station(
    frame: pd.DataFrame, tokens: pd.DataFrame, layers: int, predicted_ms: pd.Series[float]
) -> Station:
    """Prepare the fit of the base station's numbers.

    Args:
        frame: The dispatches of trials.
        tokens: The tokens.
        layers: How many layers of experts the model has.
        predicted_ms: What the devices' fitted numbers say of each dispatch; NaN where they cannot.
    """
    key = ["trial", "request", "step"]
    grouped = frame.assign(predicted_ms=predicted_ms).groupby([*key, "layer"], sort=True)
    seen = grouped.agg(
        start=("send_s", "min"),
        end=("done_s", "max"),
        devices=("device", "size"),
        slowest_ms=("predicted_ms", "max"),
        known=("predicted_ms", "count"),
        allocated=("allocated", "max"),
    ).reset_index()
    seen["slowest_ms"] = seen["slowest_ms"].where(seen["known"] == seen["devices"])
    later = seen[seen["step"] > 0]
    before_s = later.groupby(key, sort=False)["end"].shift()
    gaps = later.assign(gap_ms=(later["start"] - before_s) * 1e3).dropna(subset=["gap_ms"])
    waits = later.assign(
        further=later["devices"] - 1, wait_ms=(later["end"] - later["start"]) * 1e3 - later["slowest_ms"]
    ).dropna(subset=["wait_ms"])
    allocated = int(gaps["allocated"].sum())
    own, first = tokens[tokens["step"] > 0], tokens[(tokens["step"] == 0) & (tokens["rows"] > 1)]
    counts = {
        "bs_step_ms": len(own),
        "bs_layer_ms": len(gaps),
        "bs_row_ms": len(first),
        "bs_dispatch_ms": int((waits["further"] > 0).sum()),
        "bs_allocate_ms": allocated,
    }
    why = {}
    if min(allocated, len(gaps) - allocated) < LEAST_ROWS:
        why["bs_allocate_ms"] = "too few layers for which the band was shared anew, or was not"
    else:
        counts["bs_layer_ms"] -= allocated
    if len(own) < LEAST_ROWS:
        why["bs_step_ms"] = f"{len(own)} tokens after the first, fewer than {LEAST_ROWS}"
    if len(gaps) < LEAST_ROWS:
        why["bs_layer_ms"] = f"{len(gaps)} gaps between layers, fewer than {LEAST_ROWS}; all is in bs_step_ms"
    if len(first) < LEAST_ROWS // 4:
        why["bs_row_ms"] = f"{len(first)} first tokens, fewer than {LEAST_ROWS // 4}"
    if min(counts["bs_dispatch_ms"], int((waits["further"] == 0).sum())) < LEAST_ROWS:
        why["bs_dispatch_ms"] = "too few layers with one device, or with several"
    return Station(
        counts,
        why,
        layers,
        _Rows(gaps, ("gap_ms", "allocated")),
        _Rows(waits, ("further", "wait_ms")),
        _Rows(own, ("bs_ms", "allocations")),
        _Rows(first, ("rows", "bs_ms", "allocations")),
    )


def _inverse(value: float) -> float:
    return 1 / value if value > 0 else math.nan
