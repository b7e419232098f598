"""The figures of serving: throughput and token latency against the number of requests answered at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from testbed.report.metrics import Row
from testbed.report.numbers import with_interval
from testbed.report.stats import Interval
from testbed.report.style import Figure, error_bars, escape, figure_of, scenario_colour
from testbed.report.throughput import Ladder, Throughput

__all__ = ["ladder_figures"]

_DASHES = ("solid", "dash", "dot")
_LOOKS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")


def ladder_figures(
    ladder: Ladder,
    place: int,
    policies: Sequence[str],
    throughput: Sequence[Throughput],
    latency: Sequence[Row],
) -> list[Figure]:
    """Return two figures: tokens a second, and the time between tokens, each against the requests at once.

    Args:
        ladder: The scenarios that are compared.
        place: Makes the figures' names their own.
        policies: The policies in order.
        throughput: The throughput by policy and scenario.
        latency: The serving metrics.
    """
    rates = {(row.policy, row.scenario): row.tokens_per_s for row in throughput}
    times = {(row.policy, row.scenario): row.mean for row in latency if row.metric == "itl"}
    return [
        _figure(f"throughput-{place}", "Throughput", "tokens per second", "tok/s", ladder, policies, rates),
        _figure(f"ladder-itl-{place}", "Time between tokens", "mean itl (ms)", "ms", ladder, policies, times),
    ]


def _figure(
    name: str,
    title: str,
    axis: str,
    unit: str,
    ladder: Ladder,
    policies: Sequence[str],
    values: Mapping[tuple[str, str], Interval],
) -> Figure:
    figure = go.Figure()
    highest = 0.0
    shown = [policy for policy in policies if any((policy, s) in values for s in ladder.steps.values())]
    for number, policy in enumerate(shown):
        points = {n: values[policy, s] for n, s in ladder.steps.items() if (policy, s) in values}
        bars = [error_bars(interval) for interval in points.values()]
        ends = [end for one in points.values() for end in (one.value, one.high) if end == end]
        highest = max([highest, *ends])
        colour = scenario_colour(number)  # not those of the devices, which stand for devices everywhere
        figure.add_scatter(
            x=list(points),
            y=[interval.value for interval in points.values()],
            error_y={
                **(bars[0] if bars else {}),
                "array": [bar["array"][0] for bar in bars],
                "arrayminus": [bar["arrayminus"][0] for bar in bars],
            },
            mode="lines+markers",
            name=escape(policy),
            line={"color": colour, "width": 1.6, "dash": _DASHES[number // 4 % len(_DASHES)]},
            marker={"symbol": _LOOKS[number % len(_LOOKS)], "size": 8, "color": colour},
            customdata=[list(with_interval(interval, unit)) for interval in points.values()],
            hovertemplate="%{x} at once: %{customdata[0]} %{customdata[1]}<extra>%{fullData.name}</extra>",
        )
    numbers = list(ladder.steps)
    wide = numbers[-1] >= 4 * numbers[0]
    figure.update_layout(
        height=300 + (26 if len(shown) > 1 else 0),
        xaxis={
            "title": {"text": "requests answered at once"},
            "tickvals": numbers,
            "ticktext": [str(number) for number in numbers],
            **({"type": "log"} if wide else {}),
        },
        yaxis={"title": {"text": axis}, "range": [0, 1.1 * highest if highest else 1]},
        showlegend=len(shown) > 1,
    )
    return figure_of(
        name,
        title,
        figure,
        alt=f"Lines: {axis} against the number of requests answered at once, one line a policy.",
    )
