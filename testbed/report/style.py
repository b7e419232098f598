"""How figures look. Colours are named here and given their values, light and dark, by report.css."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from testbed.report.breakdown import PARTS
from testbed.report.stats import Interval

__all__ = [
    "PANEL_GAP",
    "PART_COLOURS",
    "SHADES",
    "Device",
    "Figure",
    "Key",
    "combination",
    "device_styles",
    "error_bars",
    "escape",
    "figure_of",
    "finite",
    "heat_figure",
    "letter_of",
    "name_panel",
    "pair_name",
    "part_legend",
    "scenario_colour",
    "trial_keys",
    "trial_shapes",
]

PANEL_GAP = 0.04
"""The share of a figure's height that is left for a panel's title."""
HUES = 8
SHADES = 4
SCENARIO_COLOURS = 4
CELLS_WITH_TEXT = 160
NARROW_LETTERS = 40
_DASHES = ("solid", "dash", "dot")
_PATTERNS = ("", "/", ".")


@dataclass(frozen=True)
class Key:
    """One entry of a legend that the page draws itself.

    Attributes:
        title: What it stands for.
        colour: Its colour.
        mark: A class of report.css for another mark than a square: line, thin, dashed, dot, diamond, letter.
        text: What stands in the mark.
    """

    title: str
    colour: str
    mark: str = ""
    text: str = ""


PART_COLOURS: Mapping[str, str] = {part: f"var(--{part.removesuffix('_ms')})" for part in PARTS}


@dataclass(frozen=True)
class Device:
    """The look of one device, the same in every figure.

    Attributes:
        name: Its name.
        colour: A reference to a colour of report.css.
        dash: The dash of its lines: tells the devices beyond the eighth from those of the same hue.
        pattern: The pattern of its bars, to the same end.
    """

    name: str
    colour: str
    dash: str
    pattern: str

    @property
    def label(self) -> str:
        """Return its name with a swatch of its colour, for the ticks of an axis."""
        return f'<span style="color:{self.colour}">\N{BLACK SQUARE}</span> {escape(self.name)}'


@dataclass(frozen=True)
class Figure:
    """One figure of the page. Its texts are plain: the template escapes them.

    Attributes:
        name: Its id in the page.
        title: Its title.
        spec: ``data`` and ``layout`` for plotly.js.
        alt: What it shows, in a sentence, for those who do not see it.
        note: How to read it.
        narrow: What changes in the layout on a narrow screen.
        legend: A legend that the page draws itself, above the figure.
    """

    name: str
    title: str
    spec: dict[str, Any] = field(repr=False)
    alt: str
    note: str = ""
    narrow: dict[str, Any] = field(default_factory=dict)
    legend: Sequence[Key] = ()


def part_legend(parts: Sequence[str]) -> tuple[Key, ...]:
    """Return the legend of some of :data:`testbed.report.breakdown.PARTS`."""
    return tuple(Key(PARTS[part], PART_COLOURS[part]) for part in parts)


def device_styles(devices: Sequence[str]) -> dict[str, Device]:
    """Return the look of each device by its place in the inventory."""
    styles = {}
    for place, name in enumerate(devices):
        turn = min(place // HUES, len(_DASHES) - 1)
        styles[name] = Device(name, f"var(--d{place % HUES + 1})", _DASHES[turn], _PATTERNS[turn])
    return styles


def figure_of(
    name: str,
    title: str,
    figure: go.Figure,
    *,
    alt: str,
    note: str = "",
    narrow: dict[str, Any] | None = None,
    legend: Sequence[Key] = (),
) -> Figure:
    """Return a plotly figure as a figure of the page, without plotly's own template: the page brings the look."""
    # By way of JSON, which packs arrays into base64 and turns NaN into null.
    spec: dict[str, Any] = json.loads(figure.to_json(validate=False))
    spec["layout"].pop("template", None)
    return Figure(name, title, spec, alt, note, narrow or {}, legend)


def escape(text: object) -> str:
    """Return text that plotly.js shows as it stands: it would take ``<b>`` for markup."""
    return html.escape(str(text), quote=False)


def pair_name(policy: str, scenario: str) -> str:
    """Return how a policy in a scenario is called."""
    return f"{policy} · {scenario}"


def combination(policy: str, scenario: str) -> str:
    """Return how a policy in a scenario is called within a figure, escaped for plotly.js."""
    return escape(pair_name(policy, scenario))


def letter_of(place: int) -> str:
    """Return the letter of a policy by its place in the campaign: A to Z, then AA and so on."""
    return (letter_of(place // 26 - 1) if place >= 26 else "") + chr(ord("A") + place % 26)


def scenario_colour(place: int) -> str:
    """Return the colour of a scenario by its place in the campaign."""
    return f"var(--s{place % SCENARIO_COLOURS + 1})"


def error_bars(interval: Interval) -> dict[str, Any]:
    """Return an interval as the error bars of a point."""
    known = interval.known
    return {
        "type": "data",
        "symmetric": False,
        "array": [interval.high - interval.value if known else None],
        "arrayminus": [interval.value - interval.low if known else None],
        "thickness": 1,
        "width": 4,
        "color": "var(--faint)",
    }


def heat_figure(
    name: str,
    title: str,
    grid: pd.DataFrame,
    *,
    most: float,
    labels: Sequence[str],
    rows: str,
    hover: str,
    alt: str,
    note: str = "",
) -> Figure:
    """Return a heat map of shares, with the same look in every section.

    Args:
        name: Its id in the page.
        title: Its title.
        grid: Percent; NaN leaves a cell empty. Its index names the rows from the top.
        most: The share that has the strongest colour.
        labels: The columns' names, as plotly.js shows them.
        rows: What the rows are: the title of that axis; none where empty.
        hover: What is said of a cell: ``%{x}``, ``%{y}`` and ``%{z:.1f}`` stand for its place and value.
        alt: What it shows, in a sentence.
        note: How to read it.
    """
    row_px = 30 if len(grid) <= 16 else 15
    height = 70 + row_px * len(grid) + (30 if rows else 0)
    # Beside long names of rows, the names of the columns have little room on a phone.
    tight = sum(map(len, grid.columns)) + max(map(len, map(str, grid.index)), default=0) > NARROW_LETTERS
    narrow = {"height": height + 40, "xaxis": {"tickangle": -60}} if tight else {}
    values = grid.to_numpy(dtype=float)
    # Plain data for plotly.js: there may be a hundred of these, and plotly's own objects check every value.
    heat = {
        "type": "heatmap",
        "z": [[finite(round(float(value), 1)) for value in row] for row in values],
        "text": [[_cell(value) for value in row] for row in values],
        "x": list(labels),
        "y": [escape(row) for row in grid.index],
        "zmin": 0,
        "zmax": most,
        "colorscale": [[0, "var(--heat-0)"], [0.5, "var(--heat-1)"], [1, "var(--heat-2)"]],
        "showscale": False,
        "hoverongaps": False,
        "xgap": 2,
        "ygap": 2,
        "hovertemplate": f"{hover}<extra></extra>",
    }
    if grid.size <= CELLS_WITH_TEXT:
        heat["texttemplate"] = "%{text}"
    xaxis = {"showgrid": False, "ticks": "", "side": "top", "tickangle": 0 if len(labels) <= 4 else -60}
    yaxis = {
        "autorange": "reversed",
        "showgrid": False,
        "ticks": "",
        "type": "category",
        "title": {"text": rows},
    }
    spec = {"data": [heat], "layout": {"height": height, "xaxis": xaxis, "yaxis": yaxis}}
    return Figure(name, title, spec, alt, note, narrow)


def _cell(percent: float) -> str:
    """Return what stands in a cell of a heat map: nothing for none at all."""
    if not math.isfinite(percent) or percent == 0:
        return ""
    return f"{percent:.0f}" if percent >= 0.5 else "<1"


def trial_shapes(trials: pd.DataFrame, policies: Sequence[str]) -> list[dict[str, Any]]:
    """Return the shapes that shade the trials over the full height of a figure, in a tone for each policy."""
    frame = {"type": "rect", "xref": "x", "yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
    shapes: list[dict[str, Any]] = []
    for place, policy in enumerate(policies):
        look = {"fillcolor": _shade(place, len(policies)), "line": {"width": 0}}
        own = trials[trials["policy"] == policy]
        for start, end in zip(own["t_start_s"], own["t_end_s"], strict=True):
            shapes.append(frame | look | {"x0": float(start), "x1": float(end)})
    return shapes


def trial_keys(trials: pd.DataFrame, policies: Sequence[str]) -> list[Key]:
    """Return the legend of :func:`trial_shapes`: the policies that ran."""
    ran = set(trials["policy"])
    if len(policies) > SHADES:
        return [Key("any trial", _shade(0, len(policies)))] if ran else []
    return [Key(policy, _shade(place)) for place, policy in enumerate(policies) if policy in ran]


def _shade(place: int, policies: int = 0) -> str:
    """Return the tone of a policy's trials; one for all where there are more policies than tones."""
    return f"var(--shade-{place + 1 if policies <= SHADES else 1})"


def name_panel(figure: go.Figure, top: float, title: str) -> None:
    """Write a panel's title into the gap above it.

    Args:
        figure: A figure of several panels, one above the other.
        top: Where the panel's place ends, from 0 (the bottom) to 1; the panel ends :data:`PANEL_GAP` below.
        title: The title.
    """
    figure.add_annotation(
        xref="paper",
        yref="paper",
        x=0,
        y=top - PANEL_GAP,
        xanchor="left",
        yanchor="bottom",
        showarrow=False,
        text=title,
        font={"color": "var(--muted)"},
    )


def finite(value: float) -> float | None:
    """Return a number that JSON can hold: None for NaN and the infinities."""
    return value if math.isfinite(value) else None
