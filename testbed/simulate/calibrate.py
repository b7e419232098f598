"""Fit the latency model to a measured run. Pure but for reading the run: the same run gives the same numbers.

For each device the computation is fitted to what the device itself stamped (``compute_ms``), and the rest of a
dispatch to what is left when computation and links are taken off: a fixed time and one for each pair. What the base
station takes follows from the gaps between layers and from ``bs_ms``. Nothing that the run cannot tell is made up: such
a number keeps its assumed value, and says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from payloads.wdmoe.latency import DeviceSpeed, LatencyModel
from payloads.wdmoe.pace import ExpertShape
from testbed.errors import InputError
from testbed.simulate.fits import Links, Speed, Station, fit_links, fit_speed, fit_station
from testbed.simulate.observed import Observed
from testbed.simulate.robust import Estimate, bootstrap

__all__ = ["Calibration", "Number", "Residual", "calibrate"]


@dataclass(frozen=True)
class Number:
    """One number of the model.

    Attributes:
        where: The device, or ``base station``.
        name: What it is, as in the latency model.
        estimate: What was found; None where the run cannot tell.
        assumed: What was assumed; None for nothing.
        value: What the model holds.
        note: Why it is not what was found, or an empty string.
    """

    where: str
    name: str
    estimate: Estimate | None
    assumed: float | None
    value: float | None
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the number as plain data."""
        found = self.estimate
        return {
            "where": self.where,
            "name": self.name,
            "value": self.value,
            "low": _plain(found.low) if found else None,
            "high": _plain(found.high) if found else None,
            "n": found.n if found else 0,
            "identified": found is not None,
            "assumed": self.assumed,
            "note": self.note,
        }


@dataclass(frozen=True)
class Residual:
    """How far the model is from what was measured.

    Attributes:
        what: A device (its dispatches), or ``first token``, ``later tokens``, ``trial means``.
        n: How many were compared.
        median: Median relative error, its sign left out.
        p90: The 90th percentile of it.
        bias: Median relative error with its sign; above 0 where the model says too much.
        assumed: ``median`` of the model that was assumed before; None where it says nothing.
    """

    what: str
    n: int
    median: float
    p90: float
    bias: float
    assumed: float | None = None


@dataclass(frozen=True)
class Calibration:
    """A latency model fitted to a run.

    Attributes:
        run: The run's name.
        trials: How many trials it rests on.
        model: The model.
        numbers: Every number of it, with its interval.
        residuals: How far it is from what was measured.
        notes: What a reader should know, one line each.
    """

    run: str
    trials: int
    model: LatencyModel
    numbers: tuple[Number, ...]
    residuals: tuple[Residual, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the calibration as plain data: what ``latency.calibration`` of a campaign names."""
        return {
            "format": 1,
            "run": self.run,
            "trials": self.trials,
            "model": self.model.as_json(),
            "numbers": [number.as_json() for number in self.numbers],
            "residuals": [vars(residual) for residual in self.residuals],
            "notes": list(self.notes),
        }


def calibrate(observed: Observed, assumed: LatencyModel) -> Calibration:
    """Fit a latency model to what a run showed.

    Args:
        observed: What it showed.
        assumed: The model before; it has the run's devices and the size of its experts.

    Raises:
        InputError: The run's rows are not as wide as the assumed model's.
    """
    row_bytes = assumed.row_bytes
    if row_bytes != observed.row_bytes:
        raise InputError(
            f"{observed.run}: its rows have {observed.row_bytes} bytes, and those of its model {row_bytes}"
        )
    model = replace(assumed, first_frame=observed.first_frame)
    frame, notes = observed.dispatches, _notes(observed)
    trial_rows = frame[~frame["trial"].str.startswith("quality-")]
    trials = sorted(set(trial_rows["trial"]))
    numbers: list[Number] = []
    speeds = []
    for name, speed in zip(model.devices, model.speeds, strict=True):
        mine = frame[frame["device"] == name]
        links = fit_links(mine)
        computing = fit_speed(mine, model.shape)
        fitted, found = _device(name, speed, trials, links, computing)
        speeds.append(fitted)
        numbers += found
    model = replace(model, speeds=tuple(speeds))
    station = fit_station(trial_rows, observed.tokens, observed.layers, predicted_ms(frame, model))
    model, found = _station(model, trials, station)
    numbers += found
    return Calibration(
        observed.run,
        len(trials),
        model,
        tuple(numbers),
        tuple(_residuals(observed, model, replace(assumed, first_frame=observed.first_frame))),
        tuple(notes),
    )


def predicted_ms(frame: pd.DataFrame, model: LatencyModel) -> pd.Series[float]:
    """Return what a model says of dispatches whose tokens of each expert are known; NaN for others.

    Args:
        frame: Dispatches, as in :class:`testbed.simulate.observed.Observed`; their links' time is taken from there.
        model: The model.
    """
    result = pd.Series(np.nan, index=frame.index)
    for name, speed in zip(model.devices, model.speeds, strict=True):
        mine = frame[frame["device"] == name]
        computed = mine["experts"] * each_ms(mine["each"], speed, model.shape)
        rest = (speed.fixed_ms or 0.0) + speed.pair_ms * mine["pairs"]
        result.loc[mine.index] = computed + rest + mine["link_ms"]
    return result


def each_ms(each: pd.Series[float], speed: DeviceSpeed, shape: ExpertShape) -> pd.Series[float]:
    """Return what one expert takes for so many tokens, in milliseconds."""
    weights = shape.traffic_bytes(0)
    memory = weights + each * (shape.traffic_bytes(1) - weights)
    computing = each * shape.operations(1) / speed.ops_per_s
    return 1e3 * computing.clip(lower=memory / speed.bytes_per_s if speed.bytes_per_s else 0.0)


def _device(
    name: str, before: DeviceSpeed, trials: list[str], links: Links, computing: Speed
) -> tuple[DeviceSpeed, list[Number]]:
    rest = bootstrap(trials, links.fit, links.counts)
    speed = bootstrap(computing.trials, computing.fit, computing.counts) if computing.trials else {}
    chosen: dict[str, float | None] = before._asdict()
    numbers = []
    for key, why in (("fixed_ms", links.why), ("pair_ms", links.why_pair)):
        found = None if why else rest[key]
        if found is not None:
            chosen[key] = max(0.0, found.value)
        elif key == "pair_ms":
            chosen[key] = 0.0
        numbers.append(Number(name, key, found, getattr(before, key), chosen[key], why))
    for key, why in (("ops_per_s", computing.why_ops), ("bytes_per_s", computing.why_bytes)):
        found = None if why else speed[key]
        if found is not None:
            chosen[key] = found.value
        elif key == "ops_per_s" and computing.least_ops_per_s > before.ops_per_s:
            # The assumed rate would contradict what was seen.
            chosen[key], why = computing.least_ops_per_s, f"{why}; raised to what was reached at least"
        numbers.append(Number(name, key, found, getattr(before, key), chosen[key], why))
    return DeviceSpeed(**chosen), numbers  # type: ignore[arg-type]


def _station(model: LatencyModel, trials: list[str], station: Station) -> tuple[LatencyModel, list[Number]]:
    found = bootstrap(trials, station.fit, station.counts)
    numbers = []
    chosen: dict[str, float] = {}
    for key in ("bs_step_ms", "bs_layer_ms", "bs_row_ms", "bs_dispatch_ms", "bs_allocate_ms"):
        why = station.why.get(key, "")
        before = float(getattr(model, key))
        estimate = None if why or math.isnan(found[key].value) else found[key]
        chosen[key] = before if estimate is None else max(0.0, estimate.value)
        numbers.append(Number("base station", key, estimate, before, chosen[key], why))
    return replace(model, **chosen), numbers  # type: ignore[arg-type]


def _residuals(observed: Observed, model: LatencyModel, assumed: LatencyModel) -> list[Residual]:
    """Compare the model with the dispatches and tokens that it was fitted to."""
    frame = observed.dispatches
    frame = frame.assign(predicted_ms=predicted_ms(frame, model), before_ms=predicted_ms(frame, assumed))
    result = []
    for name in model.devices:
        mine = frame[(frame["device"] == name) & frame["predicted_ms"].notna()]
        before = (mine["before_ms"] / mine["total_ms"] - 1).abs().median()
        result.append(_residual(name, mine["predicted_ms"] / mine["total_ms"] - 1, before))
    tokens = _predicted_tokens(observed, frame, model)
    error = tokens["predicted_ms"] / tokens["duration_ms"] - 1
    result.append(_residual("first token", error[tokens["step"] == 0]))
    result.append(_residual("later tokens", error[tokens["step"] > 0]))
    means = tokens[tokens["step"] > 0].groupby("trial")[["predicted_ms", "duration_ms"]].mean()
    result.append(_residual("trial means", means["predicted_ms"] / means["duration_ms"] - 1))
    return [residual for residual in result if residual.n]


def _predicted_tokens(observed: Observed, frame: pd.DataFrame, model: LatencyModel) -> pd.DataFrame:
    """Add what the model says of each token all of whose dispatches it can say something of."""
    key = ["trial", "request", "step"]
    # Computation that the records do not tell exactly (several experts, several tokens) is taken as measured.
    rest = frame["link_ms"] + frame["device"].map(
        {name: speed.fixed_ms or 0.0 for name, speed in zip(model.devices, model.speeds, strict=True)}
    )
    whole = frame["predicted_ms"].fillna(frame["compute_ms"] + rest)
    layers = (
        frame.assign(whole=whole).groupby([*key, "layer"], sort=False)["whole"].agg(["max", "size", "count"])
    )
    layers["ms"] = (layers["max"] + model.bs_dispatch_ms * (layers["size"] - 1)).where(
        layers["size"] == layers["count"]
    )
    summed = layers.groupby(level=key)["ms"].agg(layers_ms="sum", known="count")
    whole_tokens = summed[summed["known"] == observed.layers]
    tokens = observed.tokens.merge(whole_tokens.reset_index(), on=key)
    station_ms = model.bs_step_ms + observed.layers * (model.bs_layer_ms + model.bs_row_ms * tokens["rows"])
    station_ms += model.bs_allocate_ms * tokens["allocations"]
    return tokens.assign(predicted_ms=tokens["layers_ms"] + station_ms)


def _residual(what: str, error: pd.Series[float], assumed: float = math.nan) -> Residual:
    size = error.abs()
    return Residual(
        what,
        len(error),
        float(size.median()),
        float(size.quantile(0.9)),
        float(error.median()),
        _plain(assumed),
    )


def _notes(observed: Observed) -> list[str]:
    frame = observed.dispatches
    notes = [f"{reason}: left out" for reason in observed.left_out]
    in_trials = ~frame["trial"].str.startswith("quality-")
    changed = int((in_trials & frame["link_ms"].isna()).sum())
    if changed:
        notes.append(f"{changed} dispatches during which a link's rate changed were left out")
    if not observed.shaped:
        notes.append("no link was shaped: fixed_ms and pair_ms hold what the network itself took")
    return notes


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
