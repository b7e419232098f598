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

__all__ = [
    "PANEL_GAP",
    "PART_COLOURS",
    "PART_LEGEND",
    "Device",
    "Figure",
    "Key",
    "combination",
    "device_styles",
    "escape",
    "figure_of",
    "finite",
    "name_panel",
    "pair_name",
    "trial_keys",
    "trial_shapes",
]

PANEL_GAP = 0.04
"""The share of a figure's height that is left for a panel's title."""
HUES = 8
SHADES = 4
_DASHES = ("solid", "dash", "dot")
_PATTERNS = ("", "/", ".")


@dataclass(frozen=True)
class Key:
    """One entry of a legend that the page draws itself.

    Attributes:
        title: What it stands for.
        colour: Its colour.
        mark: A class of report.css for another mark than a square: line, thin, dashed, dot, diamond.
    """

    title: str
    colour: str
    mark: str = ""


PART_COLOURS: Mapping[str, str] = {part: f"var(--{part.removesuffix('_ms')})" for part in PARTS}
PART_LEGEND = tuple(Key(title, PART_COLOURS[part]) for part, title in PARTS.items())


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


def trial_shapes(trials: pd.DataFrame, policies: Sequence[str]) -> list[dict[str, Any]]:
    """Return the shapes that shade the trials over the full height of a figure, in a tone for each policy."""
    frame = {"type": "rect", "xref": "x", "yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
    shapes: list[dict[str, Any]] = []
    for place, policy in enumerate(policies):
        look = {"fillcolor": _shade(place), "line": {"width": 0}}
        own = trials[trials["policy"] == policy]
        for start, end in zip(own["t_start_s"], own["t_end_s"], strict=True):
            shapes.append(frame | look | {"x0": float(start), "x1": float(end)})
    return shapes


def trial_keys(trials: pd.DataFrame, policies: Sequence[str]) -> list[Key]:
    """Return the legend of :func:`trial_shapes`: the policies that ran."""
    ran = set(trials["policy"])
    return [Key(policy, _shade(place)) for place, policy in enumerate(policies) if policy in ran]


def _shade(place: int) -> str:
    return f"var(--shade-{place % SHADES + 1})"


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
