"""From the power of a run to joules: which rails make a board's total, per trial, per token, and what idling takes.

The window of a trial's energy is that of its measured requests: from the start of the first that is no warm-up to the
end of the last. Joules per token are the joules of that window over the tokens generated in it, so the reading of the
prompts is part of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from testbed.records.outline import outline_of
from testbed.telemetry.energy import energy_joules

if TYPE_CHECKING:
    from testbed.records.run import Run

__all__ = [
    "IDLE_MARGIN_S",
    "TotalPower",
    "energy_columns",
    "idle_power_mw",
    "run_energy",
    "total_power",
    "trial_windows",
    "window_joules",
]

IDLE_MARGIN_S = 1.0
IDLE_LEAST_S = 2.0


def energy_columns(counted: str, joules_each: str) -> dict[str, str]:
    """Return the types of the columns of an energy table, in order.

    Args:
        counted: The column of what was done for the energy, such as ``output_tokens``.
        joules_each: The column of the joules for each of these.
    """
    return {
        **dict.fromkeys(("trial", "policy", "scenario"), "str"),
        "repeat": "int64",
        "device": "str",
        **dict.fromkeys(("t_start_s", "t_end_s", "joules", "coverage"), "float64"),
        "error": "str",
        counted: "int64",
        **dict.fromkeys((joules_each, "idle_mw", "idle_joules"), "float64"),
    }


class TotalPower:
    """A board's total power over a run.

    Attributes:
        t_s: When it was read, ascending.
        mw: The total in milliwatts.
        rule: Which rails make it, joined by ``+``; empty where nobody said.
        error: Why there is none, or None.
    """

    def __init__(
        self, t_s: NDArray[np.float64], mw: NDArray[np.float64], rule: str, error: str | None = None
    ) -> None:
        self.t_s = t_s
        self.mw = mw
        self.rule = rule
        self.error = error


def total_power(run: Run, device: str) -> TotalPower:
    """Return a board's total power by the rule of the run's manifest.

    Args:
        run: The run.
        device: The device's name.
    """
    nothing = np.empty(0)
    rule = str((run.manifest.get("power_total") or {}).get(device) or "")
    readings = run.power[run.power["device"] == device]
    if readings.empty:
        return TotalPower(nothing, nothing, rule, "no power was recorded")
    if not rule:
        return TotalPower(nothing, nothing, rule, "no rule says which rails make the total")
    rails = [rail.strip() for rail in rule.split("+")]
    missing = [rail for rail in rails if rail not in set(readings["rail"])]
    if missing:
        return TotalPower(nothing, nothing, rule, f"no power was recorded of the rail {', '.join(missing)}")
    wanted = readings[readings["rail"].isin(rails)]
    # A moment at which one rail of a sum was not read has no total: it is left out, and the coverage shows it.
    by_time = (
        wanted.pivot_table(index="t_s", columns="rail", values="mw", aggfunc="last").dropna().sort_index()
    )
    if by_time.empty:
        return TotalPower(nothing, nothing, rule, f"the rails of {rule} were never read at the same moment")
    total = by_time.sum(axis=1)
    return TotalPower(total.index.to_numpy(dtype=float), total.to_numpy(dtype=float), rule)


def trial_windows(run: Run) -> pd.DataFrame:
    """Return each completed trial's window of measured requests.

    Args:
        run: The run.

    Returns:
        ``trial, policy, scenario, repeat, t_start_s, t_end_s, output_tokens``, in the order of running.
    """
    measured = run.requests[~run.requests["warmup"]]
    ends = measured["t_start_s"] + measured["e2el_ms"] / 1000
    windows = (
        measured.assign(t_end_s=ends)
        .groupby("trial", sort=False)
        .agg(
            t_start_s=("t_start_s", "min"), t_end_s=("t_end_s", "max"), output_tokens=("output_tokens", "sum")
        )
        .reset_index()
    )
    trials = run.completed[["trial", "policy", "scenario", "repeat"]]
    return trials.merge(windows, on="trial", how="inner")


def idle_power_mw(run: Run, power: TotalPower) -> float:
    """Return a board's median power while no trial ran and no link was probed, or NaN where too little was read.

    Args:
        run: The run.
        power: The board's total power.
    """
    busy = np.zeros(power.t_s.size, dtype=bool)
    for start, end in zip(run.trials["t_start_s"], run.trials["t_end_s"], strict=True):
        busy |= (power.t_s > start - IDLE_MARGIN_S) & (power.t_s < end + IDLE_MARGIN_S)
    for start, end in _quality_spans(run):
        busy |= (power.t_s > start - IDLE_MARGIN_S) & (power.t_s < end + IDLE_MARGIN_S)
    busy |= _near(power.t_s, _link_work(run))
    idle = ~busy
    if power.t_s.size < 2:
        return float("nan")
    step_s = float(np.median(np.diff(power.t_s)))
    if idle.sum() * step_s < IDLE_LEAST_S:
        return float("nan")
    return float(np.median(power.mw[idle]))


def _link_work(run: Run) -> NDArray[np.float64]:
    """Return when links were set or probed, ascending; rates that change within a trial are work of that trial."""
    probed = run.links["message_bytes"].notna()
    set_anew = run.links["cause"].isna() | (run.links["cause"] == "set")
    return np.unique(run.links.loc[probed | set_anew, "t_s"].to_numpy(dtype=float))


def _near(t_s: NDArray[np.float64], moments: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which times have a moment less than the margin away; the moments ascend."""
    if not moments.size:
        return np.zeros(t_s.size, dtype=bool)
    after = np.minimum(np.searchsorted(moments, t_s), moments.size - 1)
    before = np.maximum(after - 1, 0)
    away: NDArray[np.float64] = np.minimum(np.abs(moments[after] - t_s), np.abs(moments[before] - t_s))
    return away < IDLE_MARGIN_S


def _quality_spans(run: Run) -> list[tuple[float, float]]:
    """Return when the quality passes used the devices, from their dispatches."""
    passes = run.dispatches[run.dispatches["trial"].str.startswith("quality-")]
    spans = passes.groupby("trial", sort=False).agg(start=("t_send_s", "min"), end=("t_done_s", "max"))
    return [(float(row.start), float(row.end)) for row in spans.itertuples()]


def run_energy(run: Run) -> pd.DataFrame:
    """Return the energy of each completed trial on each device.

    Args:
        run: The run.

    Returns:
        One row a trial and device. ``joules`` is the integral of the board's total power over the window of the
        measured requests; ``coverage`` the share of the window that readings cover; ``error`` says what is wrong
        (missing where nothing is); ``idle_joules`` is what the board would have taken idling.
    """
    rows = []
    for row in window_joules(run, trial_windows(run)):
        tokens, joules = int(row["output_tokens"]), row["joules"]
        rows.append(row | {"joules_per_token": joules / tokens if tokens else float("nan")})
    columns = energy_columns("output_tokens", "joules_per_token")
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)


def window_joules(run: Run, windows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield the energy of each window on each device: the window's own columns, and what a board took in it.

    Args:
        run: The run.
        windows: At least ``t_start_s`` and ``t_end_s``.

    Yields:
        ``device``, ``joules``, ``coverage``, ``error`` (None where nothing is wrong), ``idle_mw`` and ``idle_joules``.
    """
    power_hz = outline_of(run.manifest).power_hz
    period_s = 1 / power_hz if power_hz else None
    for device in run.devices:
        power = total_power(run, device)
        idle_mw = idle_power_mw(run, power)
        for window in windows.to_dict("records"):
            joules, coverage, error = float("nan"), 0.0, power.error
            t0_s, t1_s = float(window["t_start_s"]), float(window["t_end_s"])
            if error is None:
                energy = energy_joules(power.t_s, power.mw, t0_s, t1_s, period_s=period_s)
                joules, coverage, error = energy.joules, energy.coverage, energy.error
            yield {
                **{str(key): value for key, value in window.items()},
                "device": device,
                "joules": joules,
                "coverage": coverage,
                "error": error,
                "idle_mw": idle_mw,
                "idle_joules": idle_mw / 1000 * (t1_s - t0_s),
            }
