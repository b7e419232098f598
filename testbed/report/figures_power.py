"""The figures of power and energy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from testbed.records.energy import TotalPower
from testbed.report.checks import COVERAGE_LEAST
from testbed.report.numbers import number, with_interval
from testbed.report.stats import Interval, bootstrap_mean
from testbed.report.style import (
    SHADES,
    Device,
    Figure,
    combination,
    escape,
    figure_of,
    finite,
    trial_keys,
    trial_shapes,
)
from testbed.telemetry.energy import GAP_PERIODS

__all__ = [
    "ALL_DEVICES",
    "IMAGES",
    "TOKENS",
    "EnergyRow",
    "Item",
    "energy_figure",
    "energy_rows",
    "power_figure",
    "thin",
]

ALL_DEVICES = "all devices"
POINTS = 3000


@dataclass(frozen=True)
class Item:
    """What the energy of a trial is divided by.

    Attributes:
        name: One of it.
        long: The same with what it is.
        joules: The column of ``run.energy()`` with the joules of one.
        count: The column with how many there were.
    """

    name: str
    long: str
    joules: str
    count: str


TOKENS = Item("token", "generated token", "joules_per_token", "output_tokens")
IMAGES = Item("image", "image that it decoded", "joules_per_image", "images")


@dataclass(frozen=True)
class EnergyRow:
    """Energy per item (a generated token, a decoded image) on one device, for one policy and scenario.

    Attributes:
        policy: The policy.
        scenario: The scenario.
        device: The device.
        joules_per_item: The mean over trials.
        idle_joules_per_item: What the board would have taken in the same time idling; NaN where unknown.
        trials: The trials that were run.
        problem: What is wrong, or an empty string.
    """

    policy: str
    scenario: str
    device: str
    joules_per_item: Interval
    idle_joules_per_item: float
    trials: int
    problem: str


def energy_rows(
    energy: pd.DataFrame, order: Sequence[tuple[str, str]], devices: Sequence[str], item: Item = TOKENS
) -> list[EnergyRow]:
    """Return the energy per item; trials with an error or too little coverage are left out of the mean and named.

    Args:
        energy: What ``run.energy()`` gave.
        order: Policies and scenarios in order.
        devices: The devices in order.
        item: What the energy is for.

    Returns:
        One row a policy, scenario and device, and one for all devices together, from trials in which none is wrong.
    """
    rows = []
    if len(devices) > 1:
        energy = pd.concat([energy, _together(energy, len(devices), item)], ignore_index=True)
        devices = [*devices, ALL_DEVICES]
    for policy, scenario in order:
        for device in devices:
            own = energy[
                (energy["policy"] == policy) & (energy["scenario"] == scenario) & (energy["device"] == device)
            ]
            if own.empty:
                continue
            good = own[own["error"].isna() & (own["coverage"] >= COVERAGE_LEAST) & own[item.joules].notna()]
            bad = own[~own.index.isin(good.index)]
            idle = (good["idle_joules"] / good[item.count]).mean() if len(good) else float("nan")
            rows.append(
                EnergyRow(
                    policy,
                    scenario,
                    device,
                    bootstrap_mean(good[item.joules]),
                    float(idle),
                    len(own),
                    _problem(bad, len(own)),
                )
            )
    return rows


def power_figure(
    powers: Mapping[str, TotalPower],
    idle_mw: Mapping[str, float],
    trials: pd.DataFrame,
    policies: Sequence[str],
    devices: Mapping[str, Device],
) -> Figure:
    """Return the power of each board over time, one panel a board, the trials shaded by policy."""
    figure = go.Figure()
    count = len(devices)
    layout: dict[str, Any] = {}
    shapes = _shade(figure, trials, policies)
    for place, (name, device) in enumerate(devices.items()):
        power = powers[name]
        axis = "" if place == 0 else str(place + 1)
        # Panels from the top down, a tenth of each left free for its title.
        top = 1 - place / count
        layout[f"yaxis{axis}"] = {
            "domain": [max(0.0, top - 0.72 / count), top - 0.06 / count],
            "rangemode": "tozero",
            "title": {"text": "W"},
            "nticks": 4,
        }
        figure.add_annotation(
            xref="paper",
            yref="paper",
            x=0,
            y=top - 0.05 / count,
            xanchor="left",
            yanchor="bottom",
            showarrow=False,
            text=_panel_title(device, power, idle_mw[name]),
        )
        if power.error is not None:
            # An axis without a trace is not drawn, and a missing board must not vanish.
            figure.add_scatter(x=[None], y=[None], yaxis=f"y{axis}", showlegend=False, hoverinfo="skip")
            layout[f"yaxis{axis}"] |= {"range": [0, 1], "showticklabels": False, "title": {"text": ""}}
            continue
        t_s, mw = thin(power.t_s, power.mw)
        figure.add_scatter(
            x=t_s.round(3).astype(np.float32),
            y=(mw / 1000).round(4).astype(np.float32),
            yaxis=f"y{axis}",
            mode="lines",
            line={"color": device.colour, "width": 1.3},
            name=escape(name),
            showlegend=False,
            hovertemplate="%{x:.1f} s: %{y:.3g} W<extra>" + escape(name) + "</extra>",
        )
        if np.isfinite(idle_mw[name]):
            level = {"y0": idle_mw[name] / 1000, "y1": idle_mw[name] / 1000}
            line = {"color": "var(--muted)", "width": 1, "dash": "dot"}
            across = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": f"y{axis}", "line": line}
            shapes.append(across | level)
    figure.update_layout(
        height=70 + 120 * count,
        shapes=shapes,
        xaxis={"title": {"text": "time since the start of the run (s)"}, "anchor": "free", "position": 0},
        legend={
            "title": {"text": "trials with" if len(policies) <= SHADES else ""},
            "itemclick": False,
            "itemdoubleclick": False,
        },
        **layout,
    )
    return figure_of(
        "power",
        "Power over time",
        figure,
        alt="Lines of the power of each board over time, one panel a board, with the trials shaded.",
        note=(
            "The total by each board's rule (see fleet). Shaded: the trials. Dotted: idle, the median while no trial, "
            "no other work of the devices and no probe was within a second. Long runs are thinned to the extremes of "
            "each interval."
        ),
    )


def energy_figure(
    rows: Sequence[EnergyRow],
    order: Sequence[tuple[str, str]],
    devices: Mapping[str, Device],
    *,
    name: str = "energy-figure",
    item: Item = TOKENS,
) -> Figure | None:
    """Return joules per item by policy and scenario, a bar a device; the idle part in a lighter tone.

    Args:
        rows: What :func:`energy_rows` gave.
        order: The policies and scenarios that are drawn, in order.
        devices: The look of each device.
        name: The figure's id in the page.
        item: What the energy is for.
    """
    shown = [key for key in order if any((row.policy, row.scenario) == key for row in rows)]
    if not shown:
        return None
    figure = go.Figure()
    for device_name, device in devices.items():
        own = {(row.policy, row.scenario): row for row in rows if row.device == device_name}
        chosen = [own[key] for key in shown if key in own]
        labels = [combination(row.policy, row.scenario) for row in chosen]
        totals = [row.joules_per_item for row in chosen]
        idle = [finite(row.idle_joules_per_item) or 0.0 for row in chosen]
        spread = {
            "type": "data",
            "symmetric": False,
            "array": [t.high - t.value if t.known else None for t in totals],
            "arrayminus": [t.value - t.low if t.known else None for t in totals],
            "thickness": 1.2,
            "width": 3,
            "color": "var(--ink)",
        }
        common = {"orientation": "h", "y": labels, "offsetgroup": device_name, "legendgroup": device_name}
        figure.add_bar(
            **common,
            x=idle,
            name=f"{escape(device_name)}, idle",
            showlegend=False,
            marker={"color": device.colour, "opacity": 0.35, "pattern": {"shape": device.pattern}},
            hovertemplate=f"idle: %{{x:.3g}} J a{_n(item)} {item.name}<extra>"
            + escape(device_name)
            + "</extra>",
        )
        figure.add_bar(
            **common,
            base=idle,
            x=[(finite(t.value) or 0.0) - part for t, part in zip(totals, idle, strict=True)],
            error_x=spread,
            name=escape(device_name),
            marker={"color": device.colour, "pattern": {"shape": device.pattern}},
            text=["" if t.n else " <b>no energy</b>" for t in totals],
            textposition="outside",
            textfont={"color": "var(--bad)"},
            customdata=[[*with_interval(t, "J"), t.n] for t in totals],
            hovertemplate=f"%{{customdata[0]}} a{_n(item)} {item.name} (%{{customdata[1]}}, n = %{{customdata[2]}})"
            "<extra>" + escape(device_name) + "</extra>",
        )
    figure.update_layout(
        barmode="group",
        height=110 + len(shown) * (20 + 16 * len(devices)),
        bargap=0.25,
        bargroupgap=0.08,
        xaxis={"title": {"text": f"energy of a board per {item.long} (J)"}, "rangemode": "tozero"},
        yaxis={"autorange": "reversed"},
        legend={"traceorder": "normal"},
    )
    labels = [combination(*key) for key in shown]
    return figure_of(
        name,
        f"Energy per {item.name}",
        figure,
        alt=f"Bars of the energy per {item.long} of each device by scenario, with intervals.",
        note=(
            "Bars with 95 % intervals over repeats. The lighter part is what the board would have taken idling for as "
            "long; where idle power is unknown the bar has no lighter part."
        ),
        narrow={"yaxis": {"ticktext": [text.replace(" · ", "<br>") for text in labels], "tickvals": labels}},
    )


def thin(
    t_s: NDArray[np.float64], mw: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return at most about ``POINTS`` readings, and a NaN in every hole, so that no line is drawn across it.

    Of each stretch of a long run the lowest and the highest reading are kept, in order of time.
    """
    if t_s.size < 2:
        return t_s, mw
    steps = np.diff(t_s)
    holes = np.flatnonzero(steps > GAP_PERIODS * np.median(steps))
    chosen = np.arange(t_s.size)
    if t_s.size > POINTS:
        kept = [np.array([0, t_s.size - 1]), holes, holes + 1]
        for stretch in np.array_split(chosen, POINTS // 2):
            kept.append(stretch[[mw[stretch].argmin(), mw[stretch].argmax()]])
        chosen = np.unique(np.concatenate(kept))
    after = np.searchsorted(chosen, holes) + 1
    times = np.insert(t_s[chosen], after, (t_s[holes] + t_s[holes + 1]) / 2)
    return times, np.insert(mw[chosen], after, np.nan)


def _together(energy: pd.DataFrame, devices: int, item: Item) -> pd.DataFrame:
    """Return the energy of all devices of each trial as rows of one more device; what one lacks, all lack."""
    keys = ["trial", "policy", "scenario", "repeat"]
    grouped = energy.groupby(keys, sort=False)
    sums = grouped[["idle_joules", item.joules]].sum(min_count=devices)
    sums["joules"] = grouped["joules"].sum(min_count=devices)
    sums["coverage"] = grouped["coverage"].min()
    sums[item.count] = grouped[item.count].first()
    sums["error"] = grouped["error"].first()
    return sums.reset_index().assign(device=ALL_DEVICES)


def _shade(figure: go.Figure, trials: pd.DataFrame, policies: Sequence[str]) -> list[dict[str, Any]]:
    """Return the shapes that shade the trials, and name their tones in the legend."""
    for key in trial_keys(trials, policies):
        edge = {"width": 1, "color": "var(--muted)"}
        marker = {"symbol": "square", "size": 13, "color": key.colour, "line": edge}
        name = escape(key.title)
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=marker, name=name, hoverinfo="skip")
    return trial_shapes(trials, policies)


def _panel_title(device: Device, power: TotalPower, idle_mw: float) -> str:
    if power.error is not None:
        return f'{device.label}  <span style="color:var(--bad)"><b>{escape(power.error)}</b></span>'
    known = np.isfinite(idle_mw)
    idle = f"idle {number(idle_mw / 1000)} W" if known else "idle power was not measured"
    return f'{device.label}  <span style="color:var(--muted)">{idle}</span>'


def _n(item: Item) -> str:
    return "n" if item.name[0] in "aeiou" else ""


def _problem(bad: pd.DataFrame, trials: int) -> str:
    if bad.empty:
        return ""
    errors = list(dict.fromkeys(str(error) for error in bad["error"].dropna()))
    first = errors[0] if errors else f"coverage down to {bad['coverage'].min():.0%}"
    return f"{first} ({len(bad)} of {trials} trials)"
