"""The figure of the links: what their probes measured against what was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from testbed.report.figures_rates import ARROWS
from testbed.report.style import Device, Figure, escape, figure_of

__all__ = ["link_summary", "ratio_figure"]

_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star")


def link_summary(probes: pd.DataFrame) -> pd.DataFrame:
    """Return the probes of each link and message size over the run.

    Args:
        probes: What :func:`testbed.report.checks.probes_of` gave.

    Returns:
        ``scenario, device, direction, message_bytes, state, delay_ms, backend, asked_low, asked_high`` (where rates
        vary, repeats have other ones), ``probes, n, expected_ms, measured_ms`` (the mean of the probes' medians),
        ``p95_ms, low, high`` (the least and the greatest ratio), ``worst`` (the ratio farthest from 1), ``judged`` and
        ``failed``. What failed comes first, the worst of it before the others.
    """
    keys = ["scenario", "device", "direction", "message_bytes", "state", "delay_ms", "backend"]
    judged = probes["ok"].notna()
    failed = judged & ~probes["ok"].fillna(True).astype(bool)
    grouped = probes.assign(failed=failed, judged=judged).groupby(keys, sort=False, dropna=False)
    summary = grouped.agg(
        asked_low=("asked_mbit", "min"),
        asked_high=("asked_mbit", "max"),
        probes=("t_s", "size"),
        n=("n", "sum"),
        expected_ms=("expected_ms", "mean"),
        measured_ms=("measured_ms", "mean"),
        p95_ms=("p95_ms", "max"),
        low=("ratio", "min"),
        high=("ratio", "max"),
        judged=("judged", "sum"),
        failed=("failed", "sum"),
    ).reset_index()
    below = (1 - summary["low"]) > (summary["high"] - 1)
    summary["worst"] = summary["low"].where(below, summary["high"])
    # In the order of running, but for what is off: a stable sort keeps the rest as it was.
    rank = (summary["worst"] - 1).abs().fillna(0).where(summary["failed"] > 0, -1.0)
    return summary.loc[rank.sort_values(ascending=False, kind="stable").index].reset_index(drop=True)


def ratio_figure(
    probes: pd.DataFrame, scenarios: Sequence[str], devices: Mapping[str, Device], tolerance: float | None
) -> Figure | None:
    """Return measured over expected transfer time, one point a probe, a row a device and direction."""
    if probes["ratio"].notna().sum() == 0:
        return None
    figure = go.Figure()
    sizes = sorted(probes["message_bytes"].unique())
    rows = [(name, direction) for name in devices for direction in ARROWS]
    labels = {key: f"{devices[key[0]].label} {ARROWS[key[1]]}" for key in rows}
    for place, scenario in enumerate(scenarios):
        own = probes[(probes["scenario"] == scenario) & probes["device"].isin(list(devices))]
        own = own[own["direction"].isin(list(ARROWS))]
        if own.empty:
            continue
        symbol = _SYMBOLS[place % len(_SYMBOLS)]
        figure.add_scatter(
            x=own["ratio"].astype(float).tolist(),
            y=[labels[row.device, row.direction] for row in own.itertuples()],
            mode="markers",
            marker={
                "symbol": [symbol if state == "busy" else f"{symbol}-open" for state in own["state"]],
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
                    f", {escape(row.state)}" if isinstance(row.state, str) else "",
                ]
                for row in own.itertuples()
            ],
            hovertemplate="%{y}: %{customdata[0]} B at %{customdata[1]} Mbit/s%{customdata[4]}<br>"
            "expected %{customdata[2]} ms, measured %{customdata[3]} ms (ratio %{x:.3f})"
            "<extra>%{fullData.name}</extra>",
        )
        # The legend shows the shape alone: the colours are the devices'.
        marker = {"symbol": f"{symbol}-open", "size": 9, "color": "var(--ink)", "line": {"width": 1.4}}
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
    loaded = (probes["state"] == "busy").any()
    busy = " Filled: while all other devices were at full load in both directions." if loaded else ""
    return figure_of(
        "links-ratio",
        "Links as measured",
        figure,
        alt="Dots: measured over expected transfer time of probe messages for each device and direction.",
        narrow={"xaxis": {"title": {"text": "measured over expected time"}}},
        note=f"\N{DOWNWARDS ARROW} downlink, \N{UPWARDS ARROW} uplink; one point a probe; larger points, "
        f"larger messages; red where it failed.{busy}{band}",
    )


def _verdicts(probes: pd.DataFrame) -> list[tuple[bool | None, str]]:
    return [(None if pd.isna(row.ok) else bool(row.ok), str(row.device)) for row in probes.itertuples()]
