"""The figures of the radio, for links that nobody shapes: what each device's driver said of its wireless interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from testbed.report.rates import extremes
from testbed.report.style import Device, Figure, Key, figure_of, name_panel

__all__ = ["RADIO_KEYS", "radio_figure"]

POINTS = 1500
RADIO_KEYS = (
    Key("to the device (rx)", "var(--ink)", "line"),
    Key("from the device (tx)", "var(--ink)", "dashed"),
)


def radio_figure(
    name: str, device: Device, radio: pd.DataFrame, shapes: Sequence[dict[str, Any]], until_s: float
) -> Figure | None:
    """Return the signal and the physical rates of one device over time, or None where nothing was read.

    Args:
        name: The figure's id in the page.
        device: The device's look.
        radio: The table ``radio``.
        shapes: What is shaded.
        until_s: The end of the run.
    """
    own = radio[radio["device"] == device.name]
    drawn = {"signal_dbm": ("y", "solid"), "rx_mbit": ("y2", "solid"), "tx_mbit": ("y2", "dot")}
    if own[list(drawn)].notna().sum().sum() == 0:
        return None
    figure = go.Figure()
    t_s = own["t_s"].to_numpy(dtype=float)
    for column, (axis, dash) in drawn.items():
        times, values = _thinned(t_s, own[column].to_numpy(dtype=float))
        figure.add_scatter(
            x=times.round(2),
            y=values.round(2).astype(np.float32),
            yaxis=axis,
            mode="lines",
            line={"color": device.colour, "width": 1.6, "dash": dash, "shape": "hv"},
            hovertemplate="%{x:.1f} s: %{y:.4g} "
            + ("dBm" if axis == "y" else f"Mbit/s ({column[:2]})")
            + "<extra></extra>",
        )
    for top, title in ((1.0, "signal"), (0.5, "physical rate")):
        name_panel(figure, top, title)
    figure.update_layout(
        height=300,
        shapes=list(shapes),
        showlegend=False,
        xaxis={
            "title": {"text": "time since the start of the run (s)"},
            "range": [0, until_s],
            "anchor": "free",
            "position": 0,
            "nticks": 7,
        },
        yaxis={"domain": [0.58, 0.96], "title": {"text": "dBm"}, "nticks": 4},
        yaxis2={
            "domain": [0.08, 0.46],
            "title": {"text": "Mbit/s"},
            "nticks": 4,
            "rangemode": "tozero",
        },
    )
    return figure_of(
        name,
        device.name,
        figure,
        alt=f"Lines of the received signal and of the physical rates of {device.name} over time.",
    )


def _thinned(
    t_s: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the readings that there are, of many the extremes."""
    known = np.isfinite(values)
    t_s, values = t_s[known], values[known]
    places = extremes(values, POINTS)
    return t_s[places], values[places]
