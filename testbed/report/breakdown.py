"""Where the time of a token goes.

Within one layer the devices work in parallel. ``L`` is the layer's time at the base station, from the first byte sent
to the last byte back. For each device that was used, three parts follow each other without a gap::

    downlink = t_received - t_send      compute = t_replied - t_received      uplink = t_done - t_replied

(compute includes the device's own queue). Each is averaged over the devices used, and ``waiting`` is what is left of
``L``: the time that the average device is not busy, since the layer waits for its slowest. What is left of the token's
time outside all layers is the base station's. So the five parts sum exactly to the token's duration.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from testbed.records.run import Run
from testbed.report.metrics import measured_tokens

__all__ = ["PARTS", "Timeline", "bottlenecks", "mean_parts", "timeline", "token_parts"]

PARTS = {
    "bs_ms": "base station",
    "downlink_ms": "downlink",
    "compute_ms": "compute",
    "uplink_ms": "uplink",
    "waiting_ms": "waiting for the slowest",
}
_LINKED = ["downlink_ms", "compute_ms", "uplink_ms", "waiting_ms"]
_TOKEN = ["trial", "request", "position"]


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
    """

    policy: str
    scenario: str
    trial: str
    request: str
    position: int
    duration_ms: float
    dispatches: pd.DataFrame


def token_parts(run: Run) -> pd.DataFrame:
    """Return the parts of each measured token's time.

    Args:
        run: The run.

    Returns:
        ``trial, request, position, policy, scenario, repeat, duration_ms`` and the columns of :data:`PARTS`. Tokens
        without a full set of time stamps are left out.
    """
    tokens = measured_tokens(run).rename(columns={"bs_ms": "own_bs_ms"})
    dispatches = run.dispatches.rename(columns={"step": "position"})
    dispatches = dispatches.assign(
        downlink_ms=(dispatches["t_received_s"] - dispatches["t_send_s"]) * 1000,
        compute_ms=(dispatches["t_replied_s"] - dispatches["t_received_s"]) * 1000,
        uplink_ms=(dispatches["t_done_s"] - dispatches["t_replied_s"]) * 1000,
    )
    stamped = dispatches[["t_received_s", "t_replied_s"]].notna().all(axis=1)
    layers = (
        dispatches.assign(stamped=stamped)
        .groupby([*_TOKEN, "layer"], sort=False)
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
    summed = layers.groupby(level=_TOKEN, sort=False).agg(
        {**dict.fromkeys([*_LINKED, "layer_ms"], "sum"), "stamped": "all"}
    )
    whole = summed[summed["stamped"]].reset_index()
    parts = tokens.merge(whole, on=_TOKEN, how="inner")
    parts["bs_ms"] = parts["duration_ms"] - parts["layer_ms"]
    return parts[[*_TOKEN, "policy", "scenario", "repeat", "duration_ms", *PARTS]]


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
    tokens = measured_tokens(run)
    tokens = tokens.loc[tokens["position"] > 0, [*_TOKEN, "policy", "scenario"]]
    dispatches = run.dispatches.rename(columns={"step": "position"}).merge(tokens, on=_TOKEN, how="inner")
    last = dispatches.loc[
        dispatches.groupby([*_TOKEN, "layer"], sort=False)["t_done_s"].idxmax(),
        ["policy", "scenario", "layer", "device"],
    ]
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
    ranked = chosen.sort_values(["duration_ms", "trial", "request", "position"])
    token = ranked.iloc[(len(ranked) - 1) // 2]
    own = run.tokens
    own = own[
        (own["trial"] == token["trial"])
        & (own["request"] == token["request"])
        & (own["position"] == token["position"])
    ]
    begin_s = float(own["t_s"].iloc[0]) - float(token["duration_ms"]) / 1000
    rows = run.dispatches
    rows = rows[
        (rows["trial"] == token["trial"])
        & (rows["request"] == token["request"])
        & (rows["step"] == token["position"])
    ]
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
    )
