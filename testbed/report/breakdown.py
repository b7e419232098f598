"""Where the time of a token goes.

Within one layer the devices work in parallel. ``L`` is the layer's time at the base station, from the first byte sent
to the last byte back. For each device that was used, three parts follow each other without a gap::

    downlink = t_received - t_send      compute = t_replied - t_received      uplink = t_done - t_replied

(compute includes the device's own queue). Each is averaged over the devices used, and ``waiting`` is what is left of
``L``: the time that the average device is not busy, since the layer waits for its slowest. Where several requests are
answered at once, other passes through the model come between a token and the one before: their layers' time is that of
the other requests. What is left of the token's time is the base station's. So the six parts sum exactly to the token's
duration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from testbed.records.iterations import KEY, overlapping, passes_of_tokens
from testbed.records.run import Run
from testbed.report.metrics import measured_tokens

__all__ = ["PARTS", "Timeline", "bottlenecks", "mean_parts", "parts_in", "timeline", "token_parts"]

PARTS = {
    "bs_ms": "base station",
    "downlink_ms": "downlink",
    "compute_ms": "compute",
    "uplink_ms": "uplink",
    "waiting_ms": "waiting for the slowest",
    "others_ms": "other requests",
}
_LINKED = ["downlink_ms", "compute_ms", "uplink_ms", "waiting_ms"]
_TOKEN = ["trial", "request", "position"]
_APART_S = 1e-5  # less than any pass takes, and more than stamps are rounded by


@dataclass(frozen=True)
class Timeline:
    """One token, dispatch by dispatch, in milliseconds since its beginning.

    Attributes:
        policy: The policy.
        scenario: The scenario.
        trial: The trial.
        request: The request.
        position: The token's place in the answer.
        duration_ms: The token's whole time.
        dispatches: One row a dispatch: ``layer, device, send_ms, received_ms, replied_ms, done_ms``.
        batch: How many requests its pass answered.
        others: When passes of other requests lay before it, since its beginning.
    """

    policy: str
    scenario: str
    trial: str
    request: str
    position: int
    duration_ms: float
    dispatches: pd.DataFrame
    batch: int = 1
    others: tuple[tuple[float, float], ...] = ()


def token_parts(run: Run) -> pd.DataFrame:
    """Return the parts of each measured token's time.

    Args:
        run: The run.

    Returns:
        ``trial, request, position, iteration, policy, scenario, repeat, duration_ms, t_s`` and the columns of
        :data:`PARTS`. Tokens without a full set of time stamps are left out.
    """
    every, dispatches = run.numbered
    tokens = measured_tokens(run, every).rename(columns={"bs_ms": "own_bs_ms"})
    passes = _passes(dispatches)
    of_tokens = passes_of_tokens(tokens, dispatches).merge(passes, on=KEY, how="left")
    of_tokens["stamped"] = of_tokens["stamped"].eq(True)  # a pass without any dispatch has none to stamp
    how = {**dict.fromkeys([*_LINKED, "layer_ms"], "sum"), "stamped": "all"}
    summed = of_tokens.groupby("place", sort=False).agg(how)
    parts = tokens.reset_index(drop=True).join(summed, how="left")
    parts = parts[parts["stamped"].eq(True)].reset_index(drop=True)
    parts["others_ms"] = _others_ms(parts, passes, overlapping(run))
    parts["bs_ms"] = parts["duration_ms"] - parts["layer_ms"] - parts["others_ms"]
    return parts[[*_TOKEN, "iteration", "policy", "scenario", "repeat", "duration_ms", "t_s", *PARTS]]


def parts_in(parts: pd.DataFrame) -> Sequence[str]:
    """Return which of :data:`PARTS` there is anything of: other requests only where several were answered at once."""
    return [part for part in PARTS if part != "others_ms" or bool((parts[part] > 0).any())]


def _passes(dispatches: pd.DataFrame) -> pd.DataFrame:
    """Return each pass through the model: ``trial, iteration, start, end``, its parts, ``layer_ms`` and ``stamped``."""
    dispatches = dispatches.assign(
        downlink_ms=(dispatches["t_received_s"] - dispatches["t_send_s"]) * 1000,
        compute_ms=(dispatches["t_replied_s"] - dispatches["t_received_s"]) * 1000,
        uplink_ms=(dispatches["t_done_s"] - dispatches["t_replied_s"]) * 1000,
    )
    stamped = dispatches[["t_received_s", "t_replied_s"]].notna().all(axis=1)
    layers = (
        dispatches.assign(stamped=stamped)
        .groupby([*KEY, "layer"], sort=False)
        .agg(
            start=("t_send_s", "min"),
            end=("t_done_s", "max"),
            downlink_ms=("downlink_ms", "mean"),
            compute_ms=("compute_ms", "mean"),
            uplink_ms=("uplink_ms", "mean"),
            stamped=("stamped", "all"),
        )
    )
    layers["layer_ms"] = (layers["end"] - layers["start"]) * 1000
    layers["waiting_ms"] = layers["layer_ms"] - layers[["downlink_ms", "compute_ms", "uplink_ms"]].sum(axis=1)
    how = {**dict.fromkeys([*_LINKED, "layer_ms"], "sum"), "stamped": "all", "start": "min", "end": "max"}
    return layers.groupby(level=KEY, sort=False).agg(how).reset_index()


def _others_ms(parts: pd.DataFrame, passes: pd.DataFrame, trials: set[str]) -> pd.Series[float]:
    """Return the time of the layers of other passes that lay between each token and the one before it."""
    others = pd.Series(0.0, index=parts.index)
    for trial in sorted(trials):
        own = parts[parts["trial"] == trial]
        # Passes follow each other: one that begins later also ends later.
        line = passes[passes["trial"] == trial].sort_values("start")
        begin_s = own["t_s"] - own["duration_ms"] / 1000
        first = np.searchsorted(line["start"], begin_s - _APART_S)
        last = np.maximum(first, np.searchsorted(line["end"], own["t_s"] + _APART_S, side="right"))
        summed = np.concatenate([[0.0], line["layer_ms"].cumsum()])
        between = summed[last] - summed[first] - own["layer_ms"].to_numpy(dtype=float)
        others.loc[own.index] = np.maximum(0.0, between)
    return others


def mean_parts(parts: pd.DataFrame, *, first: bool) -> pd.DataFrame:
    """Return the mean parts by policy and scenario: first within each trial, then over the trials.

    Args:
        parts: What :func:`token_parts` gave.
        first: The first tokens (which include the reading of the prompt) instead of the later ones.

    Returns:
        ``policy, scenario, duration_ms``, the columns of :data:`PARTS`, ``trials`` and ``tokens`` (counts).
    """
    chosen = parts[(parts["position"] == 0) == first]
    columns = ["duration_ms", *PARTS]
    by_trial = chosen.groupby(["policy", "scenario", "trial"], sort=False)[columns].agg("mean")
    means = by_trial.groupby(level=["policy", "scenario"], sort=False).mean()
    means["trials"] = by_trial.groupby(level=["policy", "scenario"], sort=False).size()
    means["tokens"] = chosen.groupby(["policy", "scenario"], sort=False).size()
    return means.reset_index()


def bottlenecks(run: Run) -> pd.DataFrame:
    """Return how often each device was the last to answer, by policy, scenario and layer; tokens after the first.

    Args:
        run: The run.

    Returns:
        ``policy, scenario, layer, device, share, tokens``; the shares of a layer sum to one.
    """
    every, dispatches = run.numbered
    tokens = measured_tokens(run, every)
    tokens = tokens.loc[tokens["position"] > 0, [*KEY, "request", "policy", "scenario"]]
    ends = dispatches[[*KEY, "layer", "device", "t_done_s"]].reset_index(drop=True)
    last = ends.loc[ends.groupby([*KEY, "layer"], sort=False)["t_done_s"].idxmax()]
    last = last.merge(tokens, on=KEY, how="inner")
    counts = last.groupby(["policy", "scenario", "layer", "device"]).size().rename("count").reset_index()
    counts["tokens"] = counts.groupby(["policy", "scenario", "layer"])["count"].transform("sum")
    counts["share"] = counts["count"] / counts["tokens"]
    return counts[["policy", "scenario", "layer", "device", "share", "tokens"]]


def timeline(run: Run, parts: pd.DataFrame, policy: str, scenario: str) -> Timeline | None:
    """Return the token whose duration is the median one of a policy and scenario (tokens after the first).

    Args:
        run: The run.
        parts: What :func:`token_parts` gave.
        policy: The policy.
        scenario: The scenario.
    """
    chosen = parts[(parts["policy"] == policy) & (parts["scenario"] == scenario) & (parts["position"] > 0)]
    if chosen.empty:
        return None
    ranked = chosen.sort_values(["duration_ms", *_TOKEN])
    token = ranked.iloc[(len(ranked) - 1) // 2]
    begin_s = float(token["t_s"]) - float(token["duration_ms"]) / 1000
    rows = run.numbered.dispatches
    rows = rows[rows["trial"] == token["trial"]]
    between = (rows["t_send_s"] >= begin_s - _APART_S) & (rows["t_done_s"] <= token["t_s"] + _APART_S)
    own = rows["iteration"] == token["iteration"]
    others = rows[between & ~own].groupby("iteration").agg(begin=("t_send_s", "min"), end=("t_done_s", "max"))
    rows = rows[own]
    batch = rows["batch"].max()
    stamps = {"send_ms": "t_send_s", "received_ms": "t_received_s", "replied_ms": "t_replied_s"}
    stamps["done_ms"] = "t_done_s"
    dispatches = rows[["layer", "device"]].assign(
        **{name: (rows[column] - begin_s) * 1000 for name, column in stamps.items()}
    )
    return Timeline(
        policy,
        scenario,
        str(token["trial"]),
        str(token["request"]),
        int(token["position"]),
        float(token["duration_ms"]),
        dispatches.sort_values(["layer", "device"]).reset_index(drop=True),
        1 if pd.isna(batch) else int(batch),
        tuple(((row.begin - begin_s) * 1000, (row.end - begin_s) * 1000) for row in others.itertuples()),
    )
