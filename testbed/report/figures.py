"""The figures of latency: against quality, by part, by bottleneck, and one token's timeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from testbed.report.breakdown import PARTS, Timeline
from testbed.report.metrics import Quality, Row
from testbed.report.numbers import number, with_interval
from testbed.report.stats import Interval
from testbed.report.style import (
    PART_COLOURS,
    PART_LEGEND,
    Device,
    Figure,
    Key,
    combination,
    escape,
    figure_of,
    finite,
    pair_name,
)

__all__ = ["bottleneck_figure", "latency_quality_figure", "parts_figure", "timeline_figure"]

_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "star", "triangle-down", "pentagon")
_POINTS_WITH_NAMES = 6
_SCENARIO_COLOURS = 4
_DASHES = ("solid", "dash", "dot", "dashdot")
_CELLS_WITH_TEXT = 160


def latency_quality_figure(
    rows: Sequence[Row], quality: Sequence[Quality], scenarios: Sequence[str]
) -> Figure | None:
    """Return latency against quality, one point a policy and scenario, or None where either was not measured."""
    perplexity = {entry.policy: entry.perplexity for entry in quality}
    latency = [row for row in rows if row.metric == "itl" and row.policy in perplexity]
    if not latency:
        return None
    figure = go.Figure()
    policies = list(perplexity)
    named = len(latency) <= _POINTS_WITH_NAMES
    for place, scenario in enumerate(scenarios):
        own = [row for row in latency if row.scenario == scenario]
        _front(figure, [(perplexity[row.policy].value, row.mean.value) for row in own], place)
        for row in own:
            across = perplexity[row.policy]
            texts = [[*with_interval(across), *with_interval(row.mean, "ms")]]
            figure.add_scatter(
                x=[across.value],
                y=[row.mean.value],
                error_x=_bars(across),
                error_y=_bars(row.mean),
                mode="markers+text" if named else "markers",
                text=[escape(row.policy)],
                textposition="top right",
                marker={
                    "symbol": _SYMBOLS[policies.index(row.policy) % len(_SYMBOLS)],
                    "size": 10,
                    "color": _scenario_colour(place),
                },
                name=escape(scenario),
                showlegend=False,
                customdata=texts,
                hovertemplate="%{text}<br>perplexity %{customdata[0]} (%{customdata[1]})"
                "<br>token latency %{customdata[2]} (%{customdata[3]})<extra>%{fullData.name}</extra>",
                cliponaxis=False,
            )
    if not named:
        # Too many points to write beside each: the shapes are named once.
        for place, policy in enumerate(policies):
            marker = {"symbol": _SYMBOLS[place % len(_SYMBOLS)], "size": 9, "color": "var(--ink)"}
            figure.add_scatter(x=[None], y=[None], mode="markers", marker=marker, name=escape(policy))
    figure.update_layout(
        height=380,
        xaxis={"title": {"text": "perplexity on held-out text (lower is better)"}},
        yaxis={"title": {"text": "mean token latency (ms)"}},
    )
    return figure_of(
        "latency-quality",
        "Latency against quality",
        figure,
        alt="Scatter plot of mean token latency against perplexity, one point a policy and scenario.",
        note=(
            "Thin bars are 95 % intervals: of the latency over repeats, of the perplexity over windows of text (the "
            "same windows for all policies, so differences are surer than the bars look). The steps are the Pareto "
            "front of each scenario."
        ),
        legend=[Key(scenario, _scenario_colour(place)) for place, scenario in enumerate(scenarios)],
    )


def parts_figure(means: pd.DataFrame, order: Sequence[tuple[str, str]], *, first: bool) -> Figure | None:
    """Return the parts of a token's time as stacked bars, one a policy and scenario.

    Args:
        means: What :func:`testbed.report.breakdown.mean_parts` gave.
        order: Policies and scenarios in the order of the bars.
        first: Whether these are the first tokens.
    """
    by_name = {(row["policy"], row["scenario"]): row for _, row in means.iterrows()}
    shown = [key for key in order if key in by_name]
    if not shown:
        return None
    figure = go.Figure()
    labels = [combination(*key) for key in shown]
    longest = max(float(by_name[key]["duration_ms"]) for key in shown)
    for part, title in PARTS.items():
        values = [float(by_name[key][part]) for key in shown]
        figure.add_bar(
            orientation="h",
            y=labels,
            x=values,
            name=title,
            marker={
                "color": PART_COLOURS[part],
                "line": {"color": "var(--paper)", "width": 1},
            },
            text=[number(value) if value > 0.045 * longest else "" for value in values],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            hovertemplate=f"%{{y}}<br>{title}: %{{x:.3g}} ms<extra></extra>",
        )
    totals = [
        {
            "x": float(by_name[key]["duration_ms"]),
            "y": label,
            "text": f" <b>{number(float(by_name[key]['duration_ms']))}</b>",
            "showarrow": False,
            "xanchor": "left",
            "yanchor": "middle",
        }
        for key, label in zip(shown, labels, strict=True)
    ]
    figure.update_layout(
        barmode="stack",
        annotations=totals,
        height=66 + 44 * len(shown),
        bargap=0.28,
        xaxis={"title": {"text": "mean time of a token (ms)"}, "range": [0, longest * 1.1]},
        yaxis={"autorange": "reversed"},
        showlegend=False,
    )
    name = "parts-first" if first else "parts"
    title = "The first token, prompt included" if first else "A token after the first"
    alt = "Stacked bars: time of a token at the base station, downlink, compute, uplink and waiting."
    counts = {pair_name(*key): int(by_name[key]["tokens"]) for key in shown}
    if len(set(counts.values())) == 1:
        note = f"n = {counts.popitem()[1]} tokens for each bar."
    else:
        note = f"Tokens: {', '.join(f'{name}: n = {count}' for name, count in counts.items())}."
    narrow = {"yaxis": {"ticktext": [label.replace(" · ", "<br>") for label in labels], "tickvals": labels}}
    return figure_of(name, title, figure, alt=alt, note=note, narrow=narrow, legend=PART_LEGEND)


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
    heat = go.Heatmap(
        z=grid.to_numpy().round(1),
        x=[devices[name].label for name in grid.columns],
        y=[str(layer) for layer in grid.index],
        zmin=0,
        zmax=most,
        colorscale=[[0, "var(--heat-0)"], [0.5, "var(--heat-1)"], [1, "var(--heat-2)"]],
        showscale=False,
        xgap=2,
        ygap=2,
        texttemplate="%{z:.0f}" if grid.size <= _CELLS_WITH_TEXT else None,
        hovertemplate="%{x}<br>layer %{y}: last for %{z:.1f} % of tokens<extra></extra>",
    )
    figure = go.Figure(heat)
    figure.update_layout(
        height=100 + 30 * min(len(grid), 24),
        xaxis={"showgrid": False, "ticks": "", "side": "top"},
        yaxis={
            "autorange": "reversed",
            "showgrid": False,
            "ticks": "",
            "type": "category",
            "title": {"text": "MoE layer"},
        },
    )
    tokens = int(own.groupby("layer")["tokens"].first().max())
    return figure_of(
        f"bottleneck-{place}",
        pair_name(policy, scenario),
        figure,
        alt=f"Heat map: share of tokens for which each device answered last in each layer, {policy}, {scenario}.",
        note=f"n = {tokens} tokens",
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
    gaps = _gaps(spans, line.duration_ms)
    own = [begin for begin, _ in gaps], [end - begin for begin, end in gaps]
    _segment(figure, "bs_ms", [station] * len(gaps), *own, [""] * len(gaps))
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


def _front(figure: go.Figure, points: Sequence[tuple[float, float]], place: int) -> None:
    """Draw the Pareto front of one scenario: the points that no other beats in both."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not front or y < front[-1][1]:
            front.append((x, y))
    if len(front) > 1:
        figure.add_scatter(
            x=[x for x, _ in front],
            y=[y for _, y in front],
            mode="lines",
            line={
                "shape": "hv",
                "dash": _DASHES[place % len(_DASHES)],
                "width": 1.8,
                "color": _scenario_colour(place),
            },
            hoverinfo="skip",
            showlegend=False,
        )


def _scenario_colour(place: int) -> str:
    return f"var(--s{place % _SCENARIO_COLOURS + 1})"


def _bars(interval: Interval) -> dict[str, object]:
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
