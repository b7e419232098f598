"""The figures of latency: by part, by bottleneck, and one token's timeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from testbed.report.breakdown import PARTS, Timeline, parts_in
from testbed.report.numbers import number
from testbed.report.style import (
    PART_COLOURS,
    Device,
    Figure,
    escape,
    figure_of,
    finite,
    heat_figure,
    pair_name,
    part_legend,
)

__all__ = ["bottleneck_figure", "parts_figure", "timeline_figure"]

_ROOMY_BARS = 8


def parts_figure(
    means: pd.DataFrame,
    policies: Sequence[str],
    scenarios: Sequence[str],
    *,
    first: bool,
    relative: bool = False,
) -> Figure | None:
    """Return the parts of a token's time as stacked bars, one a policy; a panel for each scenario.

    Args:
        means: What :func:`testbed.report.breakdown.mean_parts` gave.
        policies: The policies in the order of the bars.
        scenarios: The scenarios in the order of the panels.
        first: Whether these are the first tokens.
        relative: Draw the parts as shares of the token's time.
    """
    by_name = {(row["policy"], row["scenario"]): row for _, row in means.iterrows()}
    panels = [(s, [p for p in policies if (p, s) in by_name]) for s in scenarios]
    panels = [(scenario, shown) for scenario, shown in panels if shown]
    shown = [(policy, scenario) for scenario, names in panels for policy in names]
    if not shown:
        return None
    figure = go.Figure()
    used = parts_in(means)
    whole = {key: float(by_name[key]["duration_ms"]) for key in shown}
    longest = 100.0 if relative else max(whole.values())
    row_px = 40 if len(shown) <= _ROOMY_BARS else 25
    places, height = _panels([len(names) for _, names in panels], row_px, 26 if len(panels) > 1 else 4, 52)
    axes: dict[str, object] = {}
    notes: list[dict[str, object]] = []
    for panel, ((scenario, names), place) in enumerate(zip(panels, places, strict=True), start=1):
        end = "" if panel == 1 else str(panel)
        labels = [escape(policy) for policy in names]
        own = [(policy, scenario) for policy in names]
        for part in used:
            title = PARTS[part]
            values = [float(by_name[key][part]) * (100 / whole[key] if relative else 1.0) for key in own]
            figure.add_bar(
                orientation="h",
                y=labels,
                x=values,
                yaxis=f"y{end}",
                name=title,
                marker={"color": PART_COLOURS[part], "line": {"color": "var(--paper)", "width": 1}},
                text=[number(value) if value > 0.045 * longest else "" for value in values],
                textposition="inside",
                insidetextanchor="middle",
                textangle=0,
                hovertemplate=f"%{{y}}, {escape(scenario)}<br>{title}: %{{x:.3g}} "
                f"{'%' if relative else 'ms'}<extra></extra>",
            )
        for key, label in zip(own, labels, strict=True):
            text = f" <b>{number(whole[key])}</b>{' ms' if relative else ''}"
            at = longest if relative else whole[key]
            notes.append(_beside(text, at, label, f"y{end}"))
        if len(panels) > 1:
            notes.append(_panel_title(escape(scenario), place[1]))
        axes[f"yaxis{end}"] = {"autorange": "reversed", "domain": list(place), "anchor": "x", "ticks": ""}
    unit = "%" if relative else "ms"
    figure.update_layout(
        barmode="stack",
        annotations=notes,
        height=height,
        bargap=0.24,
        xaxis={
            "title": {
                "text": f"share of a token’s mean time ({unit})"
                if relative
                else f"mean time of a token ({unit})"
            },
            "range": [0, longest * (1.14 if relative else 1.1)],
            "anchor": f"y{len(panels)}" if len(panels) > 1 else "y",
            **({"tickvals": [0, 20, 40, 60, 80, 100]} if relative else {}),
        },
        showlegend=False,
        **axes,
    )
    name = f"{'parts-first' if first else 'parts'}{'-share' if relative else ''}"
    title = "The first token, prompt included" if first else "A token after the first"
    alt = "Stacked bars: parts of a token’s time, from the base station to waiting."
    counts = [int(by_name[key]["tokens"]) for key in shown]
    span = f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
    note = f"n = {span} tokens for each bar."
    # On a phone the time beside a bar takes a greater part of the width.
    narrow = {"xaxis": {"range": [0, longest * (1.34 if relative else 1.2)]}}
    return figure_of(name, title, figure, alt=alt, note=note, narrow=narrow, legend=part_legend(used))


def _panels(
    rows: Sequence[int], row_px: int, title_px: int, below_px: int
) -> tuple[list[tuple[float, float]], int]:
    """Return where the panels of a figure stand, from the top, each as high as its rows; and the figure's height.

    Args:
        rows: The rows of each panel.
        row_px: The height of one.
        title_px: The room above each panel.
        below_px: The room below the last for its axis.
    """
    inside = sum(rows) * row_px + len(rows) * title_px
    places, top = [], float(inside)
    for count in rows:
        top -= title_px
        places.append((max(0.0, (top - count * row_px) / inside), top / inside))
        top -= count * row_px
    return places, inside + below_px + 12


def _panel_title(text: str, top: float) -> dict[str, object]:
    return {
        "xref": "paper",
        "yref": "paper",
        "x": 0,
        "y": top,
        "xanchor": "left",
        "yanchor": "bottom",
        "showarrow": False,
        "text": text,
        "font": {"color": "var(--muted)"},
    }


def _beside(text: str, x: float, y: str, axis: str) -> dict[str, object]:
    return {
        "x": x,
        "y": y,
        "yref": axis,
        "text": text,
        "showarrow": False,
        "xanchor": "left",
        "yanchor": "middle",
    }


def bottleneck_figure(
    shares: pd.DataFrame, policy: str, scenario: str, devices: Mapping[str, Device], place: int, most: float
) -> Figure | None:
    """Return how often each device was the last of a layer to answer, as a heat map of one policy and scenario.

    Args:
        shares: What :func:`testbed.report.breakdown.bottlenecks` gave.
        policy: The policy.
        scenario: The scenario.
        devices: The look of each device.
        place: Makes the figure's name its own.
        most: The share in percent that has the strongest colour, the same for figures that are compared.
    """
    own = shares[(shares["policy"] == policy) & (shares["scenario"] == scenario)]
    if own.empty:
        return None
    grid = own.pivot_table(index="layer", columns="device", values="share", aggfunc="sum").fillna(0.0) * 100
    shown = [name for name in devices if name in set(shares["device"])]
    grid = grid.reindex(columns=shown, fill_value=0.0).sort_index()
    tokens = int(own.groupby("layer")["tokens"].first().max())
    return heat_figure(
        f"bottleneck-{place}",
        pair_name(policy, scenario),
        grid,
        most=most,
        labels=[devices[name].label for name in grid.columns],
        rows="MoE layer",
        hover="%{x}<br>layer %{y}: last for %{z:.1f} % of tokens",
        alt=f"Heat map: share of tokens for which each device answered last in each layer, {policy}, {scenario}.",
        note=f"n = {tokens:,} tokens",
    )


def timeline_figure(line: Timeline, devices: Mapping[str, Device], place: int, until_ms: float) -> Figure:
    """Return one token's dispatches as a Gantt chart: a row a device, and the base station above.

    Args:
        line: The token.
        devices: The look of each device.
        place: Makes the figure's name its own.
        until_ms: The end of the time axis, the same for figures that are compared.
    """
    figure = go.Figure()
    rows = line.dispatches
    begins = rows.groupby("layer")["send_ms"].min()
    ends = rows.groupby("layer")["done_ms"].max()
    rows = rows.assign(end_ms=rows["layer"].map(ends))
    spans = sorted(zip(begins, ends, strict=True))
    station = "base station"
    gaps = _gaps(sorted([*spans, *line.others]), line.duration_ms)
    own = [begin for begin, _ in gaps], [end - begin for begin, end in gaps]
    _segment(figure, "bs_ms", [station] * len(gaps), *own, [""] * len(gaps))
    if line.others:
        begun, lengths = zip(*((begin, end - begin) for begin, end in line.others), strict=True)
        count = len(line.others)
        _segment(figure, "others_ms", [station] * count, begun, lengths, [""] * count)
    labels = [devices[name].label for name in rows["device"]]
    layers = [f"layer {layer}, " for layer in rows["layer"]]
    stages = {
        "downlink_ms": ("send_ms", "received_ms"),
        "compute_ms": ("received_ms", "replied_ms"),
        "uplink_ms": ("replied_ms", "done_ms"),
        "waiting_ms": ("done_ms", "end_ms"),
    }
    for part, (first, last) in stages.items():
        _segment(figure, part, labels, rows[first].tolist(), (rows[last] - rows[first]).tolist(), layers)
    grid = {"color": "var(--grid)", "width": 1, "dash": "dot"}
    lines = [
        {
            "type": "line",
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "x0": begin,
            "x1": begin,
            "line": grid,
            "layer": "below",
        }
        for begin, _ in spans
    ]
    used = [device.label for device in devices.values()]
    figure.update_layout(
        barmode="overlay",
        shapes=lines,
        height=64 + 25 * (len(used) + 1),
        xaxis={"title": {"text": "time since the token was begun (ms)"}, "range": [0, until_ms]},
        yaxis={
            "range": [len(used) + 0.5, -0.5],
            "categoryorder": "array",
            "categoryarray": [station, *used],
            "ticks": "",
        },
        showlegend=False,
    )
    token = f"trial {line.trial}, prompt {line.request}, token {line.position}"
    if line.batch > 1:
        token += f", one of {line.batch} requests in its pass"
    return figure_of(
        f"timeline-{place}",
        pair_name(line.policy, line.scenario),
        figure,
        alt=f"Gantt chart of one token's dispatches to each device, {line.policy}, {line.scenario}.",
        note=f"{token}: {number(line.duration_ms)} ms",
    )


def _segment(
    figure: go.Figure,
    part: str,
    names: Sequence[str],
    base: Sequence[float],
    length: Sequence[float],
    layers: Sequence[str],
) -> None:
    """Draw one part of the dispatches; waiting is a thin line, since nothing happens in it."""
    figure.add_bar(
        orientation="h",
        y=names,
        base=[finite(value) for value in base],
        x=[finite(value) for value in length],
        width=0.12 if part == "waiting_ms" else 0.62,
        name=PARTS[part],
        marker={"color": PART_COLOURS[part], "line": {"width": 0}},
        customdata=layers,
        hovertemplate=f"%{{customdata}}{PARTS[part]}: %{{x:.3g}} ms<extra></extra>",
    )


def _gaps(spans: Sequence[tuple[float, float]], until: float) -> list[tuple[float, float]]:
    """Return what is between spans that follow each other, from zero on."""
    gaps, at = [], 0.0
    for start, end in [*spans, (until, until)]:
        if start > at:
            gaps.append((at, start))
        at = max(at, end)
    return gaps
