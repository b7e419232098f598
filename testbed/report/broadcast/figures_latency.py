"""The figures of what an image takes: time by part, on each device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from testbed.report.blocks import Axis, Pane, Pick
from testbed.report.broadcast.facts import ratio_name
from testbed.report.broadcast.timing import PARTS, Latency
from testbed.report.numbers import with_interval
from testbed.report.style import Device, Figure, Key, combination, figure_of

__all__ = ["latency_pick"]

_COLOURS = {"encode_ms": "var(--bs)", "air_ms": "var(--downlink)", "decode_ms": "var(--compute)"}


def latency_pick(rows: Sequence[Latency], devices: Mapping[str, Device]) -> Pick | None:
    """Return the latency of an image by part, one figure a device; None where nothing was on air.

    Args:
        rows: What :func:`testbed.report.broadcast.timing.latencies_of` gave.
        devices: The look of each device.
    """
    if not rows:
        return None
    places = list(dict.fromkeys((row.set, row.ratio) for row in rows))
    most = max(max(row.whole.value, row.whole.high if row.whole.known else 0.0) for row in rows)
    panes = []
    for place, key in enumerate(places):
        own = [row for row in rows if (row.set, row.ratio) == key]
        names = [name for name in devices if any(row.device == name for row in own)]
        figures = [
            _figure(
                f"latency-{place}-{number}", [row for row in own if row.device == name], devices[name], most
            )
            for number, name in enumerate(names)
        ]
        panes.append(Pane((place,), figures))
    legend = [Key(title, _COLOURS[part]) for part, title in PARTS.items()]
    options = [f"{images}, k/n = {ratio_name(ratio)}" for images, ratio in places]
    note = (
        "Means over trials of the time from the begin of encoding to the decoded image: encoding at the base station "
        "(of all users’ images together), from the first byte sent to the last one received, and decoding. Bars: 95 % "
        "intervals of the sum, over repeats."
    )
    return Pick("latencies", "", note, [Axis("images", options)], panes, 2, legend)


def _figure(name: str, rows: Sequence[Latency], device: Device, most: float) -> Figure:
    figure = go.Figure()
    labels = [combination(row.scheme, row.scenario) for row in rows]
    parts = list(PARTS)
    for part in parts:
        last = part == parts[-1]
        figure.add_bar(
            orientation="h",
            y=labels,
            x=[row.parts[part].value for row in rows],
            name=PARTS[part],
            marker={"color": _COLOURS[part]},
            showlegend=False,
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [row.whole.high - row.whole.value if row.whole.known else None for row in rows],
                "arrayminus": [row.whole.value - row.whole.low if row.whole.known else None for row in rows],
                "thickness": 1.2,
                "width": 3,
                "color": "var(--ink)",
            }
            if last
            else None,
            customdata=[[*with_interval(row.parts[part], "ms"), row.images] for row in rows],
            hovertemplate=f"%{{y}}<br>{PARTS[part]}: %{{customdata[0]}} (%{{customdata[1]}}), "
            "n = %{customdata[2]} images<extra></extra>",
        )
    figure.update_layout(
        barmode="stack",
        height=80 + 30 * len(labels),
        bargap=0.35,
        xaxis={"title": {"text": "time for an image (ms)"}, "range": [0, 1.04 * most]},
        yaxis={"autorange": "reversed"},
    )
    narrow = {"yaxis": {"ticktext": [label.replace(" · ", "<br>") for label in labels], "tickvals": labels}}
    alt = f"Bars of the time of an image on {device.name}: encode, air and decode, by scheme and scenario."
    return figure_of(name, device.name, figure, alt=alt, narrow=narrow)
