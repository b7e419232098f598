"""The figures of rates over time: what was asked of a link and what it did, one small figure a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from payloads.linkd.model import Framing
from testbed.report.numbers import number
from testbed.report.rates import DIRECTIONS, Steps, envelope, extremes
from testbed.report.style import PANEL_GAP, Device, Figure, Key, escape, figure_of, name_panel

__all__ = ["ARROWS", "RATE_KEYS", "STRETCHES", "RateLines", "Window", "closer_window", "rates_figure"]

ARROWS = {"downlink": "\N{DOWNWARDS ARROW}", "uplink": "\N{UPWARDS ARROW}"}
RATE_KEYS = (
    Key("asked for", "var(--ink)", "line"),
    Key("delivered while something waited", "var(--ink)", "dot"),
    Key("probe", "var(--ink)", "diamond"),
    Key("what crossed otherwise", "var(--muted)", "thin"),
)
STRETCHES = 240
"""A line of more changes than this is drawn as its extremes and mean over so many stretches."""
DOTS = 400
CLOSER_CHANGES = 200
CLOSER_LEAST_S = 2.0
_ROOM = 1.18
_ONE_FRAME_BYTES = Framing().payload_bytes


@dataclass(frozen=True)
class Window:
    """A stretch of a run that a figure shows, in seconds since its start."""

    begin_s: float
    end_s: float

    def holds(self, t_s: pd.Series[float]) -> pd.Series[bool]:
        """Return which times lie in it."""
        return (t_s >= self.begin_s) & (t_s <= self.end_s)


@dataclass(frozen=True)
class RateLines:
    """What there is to draw of one direction of one link.

    Attributes:
        asked: The rate asked for, or None where the direction was left alone.
        probes: Its probes: rows of ``links``.
        samples: Its rows of :func:`testbed.report.rates.samples_of`.
    """

    asked: Steps | None
    probes: pd.DataFrame
    samples: pd.DataFrame


def closer_window(
    steps: Mapping[tuple[str, str], Steps], begin_s: float, end_s: float, changes: int = CLOSER_CHANGES
) -> Window:
    """Return the part of a trial, from its begin, in which the busiest link changes so often and no more.

    Args:
        steps: The rates asked for.
        begin_s: When the trial began.
        end_s: When it ended.
        changes: How many changes can be told apart in a figure.
    """
    until_s = end_s
    for own in steps.values():
        inside = own.t_s[(own.t_s > begin_s) & (own.t_s < end_s)]
        if inside.size > changes:
            until_s = min(until_s, float(inside[changes]))
    return Window(begin_s, min(end_s, max(until_s, begin_s + CLOSER_LEAST_S)))


def rates_figure(
    name: str,
    device: Device,
    lines: Mapping[str, RateLines],
    window: Window,
    shapes: Sequence[dict[str, Any]],
) -> Figure:
    """Return the rates of one device over time, downlink above uplink.

    Args:
        name: The figure's id in the page.
        device: The device's look.
        lines: What there is to draw, by direction.
        window: The part of the run to show.
        shapes: What is shaded.
    """
    figure = go.Figure()
    layout: dict[str, Any] = {}
    for place, direction in enumerate(DIRECTIONS):
        axis = "" if place == 0 else "2"
        top = 1 - place * 0.5
        own = lines[direction]
        highest = _draw(figure, own, device, window, f"y{axis}")
        layout[f"yaxis{axis}"] = {
            "domain": [top - 0.42, top - PANEL_GAP],
            "title": {"text": "Mbit/s"},
            "nticks": 4,
            **({"range": [0, highest]} if highest else {"rangemode": "tozero"}),
        }
        name_panel(figure, top, f"{ARROWS[direction]} {direction}")
    figure.update_layout(
        height=300,
        shapes=[shape for shape in shapes if shape["x1"] >= window.begin_s and shape["x0"] <= window.end_s],
        showlegend=False,
        xaxis={
            "title": {"text": "time since the start of the run (s)"},
            "range": [window.begin_s, window.end_s],
            "anchor": "free",
            "position": 0,
            "nticks": 7,
        },
        **layout,
    )
    return figure_of(
        name,
        device.name,
        figure,
        alt=f"Rates of {device.name} over time: asked for, probed and delivered, downlink above uplink.",
    )


def _draw(figure: go.Figure, lines: RateLines, device: Device, window: Window, axis: str) -> float | None:
    """Draw one direction; return where its axis is to end, or None where nothing was asked for."""
    highest = None
    if lines.asked is not None:
        highest = _asked(figure, lines.asked.within(window.begin_s, window.end_s), device, window, axis)
    samples = lines.samples[window.holds(lines.samples["t_s"])]
    full = samples[samples["saturated"]]
    if highest is not None and len(full):
        highest = max(highest, float(full["mbit"].max()))
    _crossed(figure, samples[~samples["saturated"]], axis)
    end = highest * _ROOM if highest else None
    dots = full.iloc[extremes(full["mbit"].to_numpy(dtype=float), DOTS)]
    middle_s = ((dots["begin_s"] + dots["t_s"]) / 2).round(3)
    texts = [[number(row.mbit), number(row.asked_mbit), f"{row.interval_s:.2g}"] for row in dots.itertuples()]
    hover = (
        "%{x:.2f} s: %{customdata[0]} Mbit/s delivered, %{customdata[1]} asked for (over %{customdata[2]} s)"
    )
    figure.add_scatter(
        x=middle_s.tolist(),
        y=dots["mbit"].round(4).tolist(),
        yaxis=axis,
        mode="markers",
        marker={"size": 4, "color": "var(--ink)", "opacity": 0.75},
        customdata=texts,
        hovertemplate=hover + "<extra></extra>",
    )
    _probes(figure, lines.probes[window.holds(lines.probes["t_s"])], axis, end)
    return end


def _asked(figure: go.Figure, steps: Steps, device: Device, window: Window, axis: str) -> float | None:
    """Draw the rate asked for: every step, or where there are too many the extremes and the mean of stretches."""
    known = steps.mbit[np.isfinite(steps.mbit)]
    if not known.size:
        return None
    line = {"shape": "hv", "color": device.colour, "width": 1.8, "dash": device.dash}
    if steps.t_s.size <= STRETCHES:
        t_s, mbit = np.append(steps.t_s, window.end_s), np.append(steps.mbit, steps.mbit[-1])
        hover = "%{x:.2f} s: %{y:.4g} Mbit/s asked for<extra></extra>"
    else:
        stretches = envelope(steps, window.begin_s, window.end_s, STRETCHES)
        t_s, mbit = stretches.t_s, np.append(stretches.mean, stretches.mean[-1])
        low, high = (np.append(values, values[-1]) for values in (stretches.low, stretches.high))
        band = {"x": t_s.round(3), "yaxis": axis, "mode": "lines", "hoverinfo": "skip"}
        edge = {"shape": "hv", "color": device.colour, "width": 0}
        figure.add_scatter(**band, y=_short(low), line=edge)
        # Filled, by plotly's default, with the line's colour made half transparent.
        figure.add_scatter(**band, y=_short(high), line=edge, fill="tonexty")
        line["width"] = 1.2
        hover = (
            "%{x:.1f} s: mean %{y:.4g} Mbit/s asked for, %{customdata[0]} to %{customdata[1]}<extra></extra>"
        )
    figure.add_scatter(
        x=t_s.round(3),
        y=_short(mbit),
        yaxis=axis,
        mode="lines",
        line=line,
        hovertemplate=hover,
        **({} if steps.t_s.size <= STRETCHES else {"customdata": _texts(low, high)}),
    )
    return float(known.max())


def _crossed(figure: go.Figure, samples: pd.DataFrame, axis: str) -> None:
    """Draw what crossed while the link was not saturated; of many intervals the mean of each stretch of them."""
    if samples.empty:
        return
    per = -(-len(samples) // DOTS)
    groups = samples.assign(megabits=samples["frame_bytes"].astype(float) * 8e-6).groupby(
        np.arange(len(samples)) // per
    )
    own = groups.agg(
        begin=("begin_s", "min"), end=("t_s", "max"), bits=("megabits", "sum"), length=("interval_s", "sum")
    )
    begin, end = own["begin"].to_numpy(dtype=float), own["end"].to_numpy(dtype=float)
    mbit = (own["bits"] / own["length"]).to_numpy(dtype=float)
    # A hole between two looks, or one that was saturated, is not drawn across.
    holes = np.flatnonzero(begin[1:] - end[:-1] > 0.5 * (end - begin)[1:]) + 1
    t_s = np.insert((begin + end) / 2, holes, np.nan)
    figure.add_scatter(
        x=t_s.round(3),
        y=_short(np.insert(mbit, holes, np.nan)),
        yaxis=axis,
        mode="lines+markers",
        line={"color": "var(--muted)", "width": 1},
        marker={"size": 2, "color": "var(--muted)"},
        hovertemplate="%{x:.2f} s: %{y:.3g} Mbit/s crossed<extra></extra>",
    )


def _probes(figure: go.Figure, probes: pd.DataFrame, axis: str, end: float | None) -> None:
    """Draw the rate that each probe's time stands for; one beyond the axis at its edge, pointing on."""
    own = probes[
        probes["ratio"].notna() & (probes["ratio"] > 0) & (probes["message_bytes"] > _ONE_FRAME_BYTES)
    ]
    own = own[own["asked_mbit"].notna()]
    if own.empty:
        return
    rate = (own["asked_mbit"] / own["ratio"]).to_numpy(dtype=float)
    beyond = rate > end if end else np.zeros(rate.size, dtype=bool)
    failed = [pd.notna(ok) and not ok for ok in own["ok"]]
    figure.add_scatter(
        x=own["t_s"].round(3).tolist(),
        y=np.where(beyond, (end or 0) * 0.97, rate).round(4).tolist(),
        yaxis=axis,
        mode="markers",
        marker={
            "symbol": ["triangle-up" if out else "diamond-open" for out in beyond],
            "size": 7,
            "color": ["var(--bad)" if bad else "var(--ink)" for bad in failed],
            "line": {"width": 1.4},
        },
        customdata=[
            [f"{int(row.message_bytes):,}", number(value), f"{row.asked_mbit:.4g}", _state(row.state)]
            for row, value in zip(own.itertuples(), rate, strict=True)
        ],
        hovertemplate="probe of %{customdata[0]} B%{customdata[3]}<br>%{customdata[1]} Mbit/s, "
        "%{customdata[2]} asked for<extra></extra>",
    )


def _state(state: object) -> str:
    return f", {escape(state)}" if isinstance(state, str) else ""


def _texts(low: NDArray[np.float64], high: NDArray[np.float64]) -> list[list[str]]:
    return [[number(a), number(b)] for a, b in zip(low, high, strict=True)]


def _short(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return values.round(4).astype(np.float32)
