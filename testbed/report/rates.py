"""Rates that change over time, as numbers: what was asked for, what crossed, and how the two compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from testbed.records.run import Run

__all__ = [
    "CHANGE_CAUSES",
    "DIRECTIONS",
    "LEAST_INTERVALS",
    "Envelope",
    "Steps",
    "asked_steps",
    "envelope",
    "extremes",
    "rate_summary",
    "samples_of",
    "settings_of",
    "varying_scenarios",
    "weighted_quantiles",
]

DIRECTIONS = ("downlink", "uplink")
CHANGE_CAUSES = ("block", "allocate", "rerate")
"""Why a rate changes while a trial runs."""
LEAST_INTERVALS = 10
"""Fewer saturated intervals than this say little about a link."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Steps:
    """The rate asked for of one link and direction over time.

    Attributes:
        t_s: When a rate came into force, ascending, each time once.
        mbit: The rate from then on; NaN where the direction was left alone.
    """

    t_s: Floats
    mbit: Floats

    def at(self, t_s: Floats) -> Floats:
        """Return the rate in force at each time; NaN before the first."""
        return np.where(t_s < self.t_s[0], np.nan, self.mbit[self._place(t_s)])

    def megabits(self, begin_s: Floats, end_s: Floats) -> Floats:
        """Return the integral of the rate over each interval; NaN where it is not known all along."""
        known = self._up_to(end_s, np.nan_to_num(self.mbit)) - self._up_to(begin_s, np.nan_to_num(self.mbit))
        gaps = np.isnan(self.mbit).astype(float)
        unknown = self._up_to(end_s, gaps) - self._up_to(begin_s, gaps)
        whole = (begin_s >= self.t_s[0]) & (unknown <= 0)
        return np.where(whole, known, np.nan)

    def within(self, begin_s: float, end_s: float) -> Steps:
        """Return the steps of a window, the first of them at its begin; empty where none is in force in it."""
        inside = (self.t_s > begin_s) & (self.t_s < end_s)
        first = self.at(np.array([begin_s]))
        t_s = np.concatenate([[begin_s], self.t_s[inside]])
        mbit = np.concatenate([first, self.mbit[inside]])
        return Steps(t_s, mbit)

    def _place(self, t_s: Floats) -> NDArray[np.intp]:
        return np.maximum(np.searchsorted(self.t_s, t_s, side="right") - 1, 0)

    def _up_to(self, t_s: Floats, values: Floats) -> Floats:
        """Return the integral of a step function from the first step to each time."""
        sums = np.concatenate([[0.0], np.cumsum(values[:-1] * np.diff(self.t_s))])
        place = self._place(t_s)
        return np.asarray(sums[place] + values[place] * (t_s - self.t_s[place]), dtype=float)


@dataclass(frozen=True)
class Envelope:
    """A step function in so many stretches of equal length.

    Attributes:
        t_s: Where each stretch begins, and where the last ends.
        low: The least value of each.
        high: The greatest.
        mean: The mean over its time.
    """

    t_s: Floats
    low: Floats
    high: Floats
    mean: Floats


def settings_of(run: Run) -> pd.DataFrame:
    """Return the rows of ``links`` that say which rate came into force."""
    return run.links[run.links["message_bytes"].isna()]


def asked_steps(run: Run) -> dict[tuple[str, str], Steps]:
    """Return the rate asked for over time, by device and direction."""
    steps = {}
    for (device, direction), rows in settings_of(run).groupby(["device", "direction"], sort=False):
        last = rows.drop_duplicates("t_s", keep="last")
        rates = last["asked_mbit"].to_numpy(dtype=float)
        if np.isfinite(rates).any():
            steps[str(device), str(direction)] = Steps(last["t_s"].to_numpy(dtype=float), rates)
    return steps


def varying_scenarios(run: Run) -> list[str]:
    """Return the scenarios in which rates changed while a trial ran, in the order in which they were run."""
    rows = run.links[run.links["cause"].isin(CHANGE_CAUSES)]
    return [str(name) for name in rows["scenario"].dropna().unique()]


def samples_of(run: Run, steps: Mapping[tuple[str, str], Steps]) -> pd.DataFrame:
    """Return what crossed each link in each sampled interval, beside what was asked for.

    Args:
        run: The run.
        steps: What :func:`asked_steps` gave.

    Returns:
        The table ``throughput`` with ``begin_s``, ``mbit``, ``asked_mbit`` (the mean over the interval) and
        ``saturated``: whether something waited in the class at both ends of the interval.
    """
    parts = []
    for (device, direction), rows in run.throughput.groupby(["device", "direction"], sort=False):
        own = rows[rows["interval_s"] > 0].sort_values("t_s", kind="stable")
        end_s, interval_s = own["t_s"].to_numpy(dtype=float), own["interval_s"].to_numpy(dtype=float)
        begin_s = end_s - interval_s
        waiting = own["backlog_bytes"].fillna(0).to_numpy(dtype=float) > 0
        follows = np.zeros(len(own), dtype=bool)
        follows[1:] = np.abs(begin_s[1:] - end_s[:-1]) <= 0.1 * interval_s[1:]
        before = np.concatenate([[False], waiting[:-1]]) if len(own) else waiting
        asked = np.full(len(own), np.nan)
        known = steps.get((str(device), str(direction)))
        if known is not None:
            asked = known.megabits(begin_s, end_s) / interval_s
        parts.append(
            own.assign(
                begin_s=begin_s,
                mbit=own["frame_bytes"].to_numpy(dtype=float) * 8e-6 / interval_s,
                asked_mbit=asked,
                saturated=waiting & before & follows,
            )
        )
    if parts:
        return pd.concat(parts, ignore_index=True)
    nothing = {"begin_s": np.empty(0), "mbit": np.empty(0), "asked_mbit": np.empty(0)}
    return run.throughput.assign(**nothing, saturated=np.empty(0, dtype=bool))


def rate_summary(run: Run, steps: Mapping[tuple[str, str], Steps], samples: pd.DataFrame) -> pd.DataFrame:
    """Return the rates of the scenarios in which they change: asked for, and delivered while something waited.

    Args:
        run: The run.
        steps: What :func:`asked_steps` gave.
        samples: What :func:`samples_of` gave.

    Returns:
        ``scenario, device, direction, trials, mean_mbit, p5_mbit, p95_mbit`` (of the rate asked for, weighted by time,
        within completed trials), one column of changes for each of :data:`CHANGE_CAUSES`, ``intervals, saturated_s,
        delivered_bytes, asked_bytes`` and ``ratio`` of the intervals in which something waited at both ends.
    """
    rows = []
    for scenario in varying_scenarios(run):
        trials = run.completed[run.completed["scenario"] == scenario]
        names = set(trials["trial"])
        spans = list(zip(trials["t_start_s"].astype(float), trials["t_end_s"].astype(float), strict=True))
        changes = run.links[run.links["trial"].isin(names) & run.links["cause"].isin(CHANGE_CAUSES)]
        counts = changes.groupby(["device", "direction", "cause"]).size().to_dict()
        full = samples[samples["trial"].isin(names) & samples["saturated"] & samples["asked_mbit"].notna()]
        for (device, direction), own in steps.items():
            rates, lengths = _durations(own, spans)
            if not lengths.sum() > 0:
                continue
            mine = full[(full["device"] == device) & (full["direction"] == direction)]
            delivered = float(mine["frame_bytes"].sum())
            asked = float((mine["asked_mbit"] * mine["interval_s"]).sum()) * 1e6 / 8
            low, high = weighted_quantiles(rates, lengths, (0.05, 0.95))
            rows.append(
                {
                    "scenario": scenario,
                    "device": device,
                    "direction": direction,
                    "trials": len(trials),
                    "mean_mbit": float(np.average(rates, weights=lengths)),
                    "p5_mbit": low,
                    "p95_mbit": high,
                    **{cause: int(counts.get((device, direction, cause), 0)) for cause in CHANGE_CAUSES},
                    "intervals": len(mine),
                    "saturated_s": float(mine["interval_s"].sum()),
                    "delivered_bytes": delivered,
                    "asked_bytes": asked,
                    "ratio": delivered / asked if asked > 0 else float("nan"),
                }
            )
    columns = [
        "scenario",
        "device",
        "direction",
        "trials",
        "mean_mbit",
        "p5_mbit",
        "p95_mbit",
        *CHANGE_CAUSES,
    ]
    columns += ["intervals", "saturated_s", "delivered_bytes", "asked_bytes", "ratio"]
    return pd.DataFrame(rows, columns=columns)


def weighted_quantiles(values: Floats, weights: Floats, shares: tuple[float, ...]) -> list[float]:
    """Return the least values below or at which so great a share of the weight lies."""
    order = np.argsort(values)
    sums = np.cumsum(weights[order])
    # A hair less, so that rounding does not lift a share that falls on the end of a step.
    places = np.searchsorted(sums, np.array(shares) * sums[-1] * (1 - 1e-12))
    return [float(value) for value in values[order][np.minimum(places, values.size - 1)]]


def envelope(steps: Steps, begin_s: float, end_s: float, stretches: int) -> Envelope:
    """Return the extremes and the mean of a rate over stretches of time; NaN where it is not known.

    Args:
        steps: The rate.
        begin_s: Where the first stretch begins.
        end_s: Where the last ends.
        stretches: How many.
    """
    edges = np.linspace(begin_s, end_s, stretches + 1)
    first = np.searchsorted(steps.t_s, edges[:-1], side="right") - 1
    last = np.searchsorted(steps.t_s, edges[1:], side="left") - 1
    low, high = np.full(stretches, np.nan), np.full(stretches, np.nan)
    for place in range(stretches):
        inside = steps.mbit[max(first[place], 0) : last[place] + 1]
        inside = inside[np.isfinite(inside)]
        if inside.size:
            low[place], high[place] = inside.min(), inside.max()
    mean = steps.megabits(edges[:-1], edges[1:]) / np.diff(edges)
    return Envelope(edges, low, high, mean)


def extremes(values: Floats, most: int) -> NDArray[np.intp]:
    """Return the places of at most about ``most`` values: of each stretch the least and the greatest, in order."""
    places = np.arange(values.size)
    if values.size <= most:
        return places
    kept = []
    for stretch in np.array_split(places, max(1, most // 2)):
        inside = values[stretch]
        kept.append(stretch[[int(inside.argmin()), int(inside.argmax())]])
    return np.unique(np.concatenate(kept))


def _durations(steps: Steps, spans: list[tuple[float, float]]) -> tuple[Floats, Floats]:
    """Return the known rates within some spans of time, and how long each was in force."""
    rates, lengths = [np.empty(0)], [np.empty(0)]
    for begin_s, end_s in spans:
        own = steps.within(begin_s, end_s)
        rates.append(own.mbit)
        lengths.append(np.diff(np.append(own.t_s, end_s)))
    listed, known = np.concatenate(rates), np.concatenate(lengths)
    finite = np.isfinite(listed)
    return listed[finite], known[finite]
