"""The figures of the links: what was measured against what was asked for, and rates that change over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from testbed.report.style import Device, Figure, escape, figure_of

__all__ = ["link_summary", "rates_figure", "ratio_figure"]

_SYMBOLS = ("circle-open", "diamond-open", "square-open", "triangle-up-open", "cross-open", "star-open")
_DIRECTIONS = {"downlink": "\N{DOWNWARDS ARROW}", "uplink": "\N{UPWARDS ARROW}"}


def link_summary(probes: pd.DataFrame) -> pd.DataFrame:
    """Return the probes of each link and message size over the run.

    Args:
        probes: What :func:`testbed.report.checks.probes_of` gave.

    Returns:
        ``scenario, device, direction, asked_mbit, message_bytes, probes, n, expected_ms, measured_ms`` (the mean of
        the probes' medians), ``p95_ms, low, high`` (the least and the greatest ratio) and ``failed``.
    """
    keys = ["scenario", "device", "direction", "asked_mbit", "message_bytes"]
    failed = probes["ok"].fillna(False).astype(bool)
    grouped = probes.assign(failed=~failed).groupby(keys, sort=False, dropna=False)
    return grouped.agg(
        probes=("t_s", "size"),
        n=("n", "sum"),
        expected_ms=("expected_ms", "mean"),
        measured_ms=("measured_ms", "mean"),
        p95_ms=("p95_ms", "max"),
        low=("ratio", "min"),
        high=("ratio", "max"),
        failed=("failed", "sum"),
    ).reset_index()


def ratio_figure(
    probes: pd.DataFrame, scenarios: Sequence[str], devices: Mapping[str, Device], tolerance: float | None
) -> Figure | None:
    """Return measured over expected transfer time, one point a probe, a row a device and direction."""
    if probes["ratio"].notna().sum() == 0:
        return None
    figure = go.Figure()
    sizes = sorted(probes["message_bytes"].unique())
    rows = [(name, direction) for name in devices for direction in _DIRECTIONS]
    labels = {key: f"{devices[key[0]].label} {_DIRECTIONS[key[1]]}" for key in rows}
    for place, scenario in enumerate(scenarios):
        own = probes[(probes["scenario"] == scenario) & probes["device"].isin(list(devices))]
        own = own[own["direction"].isin(list(_DIRECTIONS))]
        if own.empty:
            continue
        symbol = _SYMBOLS[place % len(_SYMBOLS)]
        figure.add_scatter(
            x=own["ratio"].astype(float).tolist(),
            y=[labels[row.device, row.direction] for row in own.itertuples()],
            mode="markers",
            marker={
                "symbol": symbol,
                "size": [6 + 2 * min(sizes.index(size), 4) for size in own["message_bytes"]],
                "color": ["var(--bad)" if ok is False else devices[d].colour for ok, d in _verdicts(own)],
                "line": {"width": 1.4},
            },
            showlegend=False,
            name=escape(scenario),
            customdata=[
                [
                    f"{row.message_bytes:,}",
                    f"{row.asked_mbit:g}",
                    f"{row.expected_ms:.3g}",
                    f"{row.measured_ms:.3g}",
                ]
                for row in own.itertuples()
            ],
            hovertemplate="%{y}: %{customdata[0]} B at %{customdata[1]} Mbit/s<br>expected %{customdata[2]} ms, "
            "measured %{customdata[3]} ms (ratio %{x:.3f})<extra>%{fullData.name}</extra>",
        )
        # The legend shows the shape alone: the colours are the devices'.
        marker = {"symbol": symbol, "size": 9, "color": "var(--ink)", "line": {"width": 1.4}}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=marker, name=escape(scenario))
    if tolerance is not None:
        figure.add_vrect(
            x0=1 - tolerance, x1=1 + tolerance, fillcolor="var(--shade-1)", line={"width": 0}, layer="below"
        )
    figure.add_vline(x=1, line={"color": "var(--muted)", "width": 1})
    used = [
        labels[key] for key in rows if ((probes["device"] == key[0]) & (probes["direction"] == key[1])).any()
    ]
    figure.update_layout(
        height=130 + 26 * len(used),
        xaxis={"title": {"text": "measured over expected transfer time of a message"}},
        yaxis={
            "categoryorder": "array",
            "categoryarray": used,
            "range": [len(used) - 0.4, -0.6],
            "ticks": "",
        },
        legend={"title": {"text": "scenario"}},
    )
    band = (
        f" The band is the tolerance of {tolerance * 100:g}\N{NO-BREAK SPACE}%; a single frame more is allowed."
        if tolerance
        else ""
    )
    return figure_of(
        "links-ratio",
        "Links as measured",
        figure,
        alt="Dots: measured over expected transfer time of probe messages for each device and direction.",
        narrow={"xaxis": {"title": {"text": "measured over expected time"}}},
        note=f"\N{DOWNWARDS ARROW} downlink, \N{UPWARDS ARROW} uplink; one point a probe; larger points, "
        f"larger messages; red where it failed.{band}",
    )


def rates_figure(
    settings: pd.DataFrame, devices: Mapping[str, Device], until_s: float
) -> tuple[Figure | None, list[str]]:
    """Return the rates over time of the links whose rate changes, and the names of the devices that never change.

    Args:
        settings: The rows of ``links`` that set a rate.
        devices: The look of each device.
        until_s: The end of the run.
    """
    figure = go.Figure()
    steady = []
    for name, device in devices.items():
        own = settings[settings["device"] == name]
        changing = own.groupby("direction")["asked_mbit"].nunique()
        if own.empty or changing.max() < 2:
            steady += [name] if not own.empty else []
            continue
        for direction in changing.index:
            rows = own[own["direction"] == direction]
            figure.add_scatter(
                x=[*rows["t_s"].round(2), round(until_s, 2)],
                y=[*rows["asked_mbit"], rows["asked_mbit"].iloc[-1]],
                mode="lines",
                line={
                    "shape": "hv",
                    "color": device.colour,
                    "width": 2 if direction == "downlink" else 1.4,
                    "dash": "solid" if direction == "downlink" else "dot",
                },
                name=f"{escape(name)} {_DIRECTIONS.get(direction, escape(direction))}",
                hovertemplate="%{x:.1f} s: %{y:g} Mbit/s<extra>%{fullData.name}</extra>",
            )
    if not figure.data:
        return None, steady
    figure.update_layout(
        height=300,
        xaxis={"title": {"text": "time since the start of the run (s)"}},
        yaxis={"title": {"text": "rate asked for (Mbit/s)"}, "rangemode": "tozero"},
    )
    note = "Only links whose rate changes."
    if steady:
        note += f" Steady all along: {', '.join(steady)}."
    return (
        figure_of(
            "links-rates",
            "Rates over time",
            figure,
            alt="Step lines of the rate asked for over time, of the links whose rate changes.",
            note=note,
        ),
        steady,
    )


def _verdicts(probes: pd.DataFrame) -> list[tuple[bool | None, str]]:
    return [(None if pd.isna(row.ok) else bool(row.ok), str(row.device)) for row in probes.itertuples()]
