"""The figures of the latency model: predicted against measured times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from testbed.report.prediction import PredictedRun
from testbed.report.style import Device, Figure, Key, escape, figure_of, letter_of, scenario_colour

__all__ = ["dispatch_figure", "trial_figure"]

POINTS = 1500
"""A scatter of more points is a cloud, and heavy: beyond this a sample is drawn."""
_SEED = 5


def dispatch_figure(rows: pd.DataFrame, devices: Mapping[str, Device]) -> Figure:
    """Return predicted against measured times of dispatches, a point each, coloured by device.

    Args:
        rows: What :func:`testbed.report.prediction.predicted_dispatches` gave.
        devices: The look of each device.
    """
    shown = rows.sample(POINTS, random_state=_SEED) if len(rows) > POINTS else rows
    figure = go.Figure()
    low, high = _ends(shown)
    _diagonal(figure, low, high)
    keys = []
    for name, device in devices.items():
        own = shown[shown["device"] == name]
        if own.empty:
            continue
        figure.add_scatter(
            x=own["measured_ms"].to_numpy(dtype=float).round(4),
            y=own["predicted_ms"].to_numpy(dtype=float).round(4),
            mode="markers",
            marker={"color": device.colour, "size": 4, "opacity": 0.5},
            name=escape(name),
            showlegend=False,
            hovertemplate="%{fullData.name}: measured %{x:.3g} ms, predicted %{y:.3g} ms<extra></extra>",
        )
        keys.append(Key(name, device.colour, "dot"))
    _square(figure, low, high, "time of a dispatch, measured (ms)", "predicted (ms)")
    count = (
        f"{len(shown):,} of {len(rows):,} dispatches, drawn at random"
        if len(shown) < len(rows)
        else f"n = {len(rows):,}"
    )
    return figure_of(
        "predicted-dispatches",
        "Predicted against measured: a dispatch",
        figure,
        alt="Scatter plot of predicted against measured times of dispatches, with the line where they are equal.",
        note=f"{count}. On the line the prediction is right; dotted: 20 % too slow and too fast.",
        legend=keys,
    )


def trial_figure(predicted: PredictedRun, policies: Sequence[str], scenarios: Sequence[str]) -> Figure:
    """Return predicted against measured mean token latencies, a point a trial.

    Args:
        predicted: What :func:`testbed.report.prediction.predicted_trials` gave, with pairs.
        policies: The policies in order: their letters follow from it.
        scenarios: The scenarios in order.
    """
    figure = go.Figure()
    low, high = _ends(predicted.pairs)
    _diagonal(figure, low, high)
    keys = []
    for place, scenario in enumerate(scenarios):
        own = predicted.pairs[predicted.pairs["scenario"] == scenario]
        if own.empty:
            continue
        letters = [letter_of(policies.index(name)) if name in policies else "" for name in own["policy"]]
        figure.add_scatter(
            x=own["measured_ms"].to_numpy(dtype=float),
            y=own["predicted_ms"].to_numpy(dtype=float),
            mode="markers",
            marker={"color": scenario_colour(place), "size": 7, "opacity": 0.75},
            customdata=[[escape(name), letter] for name, letter in zip(own["policy"], letters, strict=True)],
            name=escape(scenario),
            showlegend=False,
            hovertemplate="%{customdata[0]} · %{fullData.name}<br>measured %{x:.3g} ms, predicted %{y:.3g} ms"
            "<extra></extra>",
        )
        keys.append(Key(scenario, scenario_colour(place), "dot"))
    _square(figure, low, high, "mean token latency, measured (ms)", "predicted (ms)")
    unit = "policy and scenario" if (predicted.pairs["repeat"] == -1).all() else "trial"
    return figure_of(
        "predicted-trials",
        "Predicted against measured: a trial",
        figure,
        alt="Scatter plot of predicted against measured mean token latencies, with the line where they are equal.",
        note=f"n = {len(predicted.pairs)}, one point a {unit}. On the line the prediction is right; dotted: 20 % too "
        "slow and too fast.",
        legend=keys,
    )


def _ends(rows: pd.DataFrame) -> tuple[float, float]:
    values = rows[["measured_ms", "predicted_ms"]].to_numpy(dtype=float)
    values = values[np.isfinite(values) & (values > 0)]
    return float(values.min()) / 1.15, float(values.max()) * 1.15


def _diagonal(figure: go.Figure, low: float, high: float) -> None:
    for factor, dash in ((1.0, "solid"), (1.2, "dot"), (1 / 1.2, "dot")):
        figure.add_scatter(
            x=[low, high],
            y=[low * factor, high * factor],
            mode="lines",
            line={"color": "var(--faint)", "width": 1, "dash": dash},
            hoverinfo="skip",
            showlegend=False,
        )


def _square(figure: go.Figure, low: float, high: float, across: str, up: str) -> None:
    """Give both axes one logarithmic scale."""
    ends = [math.log10(low), math.log10(high)]
    ticks = _ticks(low, high)
    axis = {"type": "log", "range": ends, "tickvals": ticks, "ticktext": [f"{value:g}" for value in ticks]}
    figure.update_layout(
        height=400, xaxis={"title": {"text": across}, **axis}, yaxis={"title": {"text": up}, **axis}
    )


def _ticks(low: float, high: float) -> list[float]:
    """Return ticks within a range of a logarithmic axis: as few kinds of digits as give at least four of them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in (
        (1,),
        (1, 3),
        (1, 2, 5),
        (1, 1.5, 2, 3, 4, 5, 7),
        tuple(step / 10 for step in range(10, 100)),
    ):
        ticks = [float(f"{step * 10.0**power:.6g}") for power in powers for step in steps]
        ticks = [value for value in ticks if low <= value <= high]
        if len(ticks) >= 4:
            break
    return ticks if len(ticks) <= 12 else ticks[:: len(ticks) // 8]
