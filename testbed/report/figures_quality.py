"""Latency against quality: one point a policy, over all scenarios or in each, by every measure of quality there is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from testbed.report.blocks import Axis, Pane, Pick
from testbed.report.bounds import Bound
from testbed.report.metrics import Row
from testbed.report.numbers import MINUS, with_interval
from testbed.report.quality import Accuracy, Quality, rated
from testbed.report.stats import Interval
from testbed.report.style import (
    Figure,
    Key,
    error_bars,
    escape,
    figure_of,
    letter_of,
    scenario_colour,
)

__all__ = ["POINTS_WITH_NAMES", "Measure", "Point", "front_of", "latency_quality", "measures_of"]

POINTS_WITH_NAMES = 6
"""With more points than this their letters stand in them, and the names in a legend."""
_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "star")
_DASHES = ("solid", "dash", "dot", "dashdot")
_OVER_ALL, _EVERY = "mean of all", "each of them"


@dataclass(frozen=True)
class Measure:
    """One measure of quality; lower is better in all of them.

    Attributes:
        option: What the reader picks.
        axis: The title of its axis.
        unit: Its unit.
        of: The value of a policy in a scenario (None: over all), or None where it was not measured.
        relative: Whether it is a change against the reference.
    """

    option: str
    axis: str
    unit: str
    of: Callable[[str, str | None], Interval | None]
    relative: bool = False


@dataclass(frozen=True)
class Point:
    """One policy in one scenario, or over all (None)."""

    policy: str
    scenario: str | None
    across: Interval
    latency: Interval


def measures_of(
    quality: Sequence[Quality],
    accuracy: Sequence[Accuracy],
    dropped: Mapping[tuple[str, str | None], Interval],
) -> list[Measure]:
    """Return the measures of quality that there are, the surest first.

    Args:
        quality: The quality of each policy on held-out text.
        accuracy: The right answers to questions.
        dropped: The share of the gate mass that each policy dropped while it generated, by policy and scenario; used
            where no quality pass says it.
    """
    found = []
    if quality:
        title = "change of perplexity in % (lower is better)"
        found.append(Measure("perplexity", title, "%", _of(quality, _change_percent), relative=True))
    if any(entry.kl is not None for entry in quality):
        title = "KL from the undropped model (nat a token)"
        found.append(Measure("KL", title, "nat", _of(quality, lambda entry: entry.kl)))
    if any(entry.agreement is not None for entry in quality):
        title = "tokens with another most likely next token (%)"
        found.append(Measure("agreement", title, "%", _of(quality, lambda entry: _missing(entry.agreement))))
    for name in dict.fromkeys(entry.questions for entry in accuracy):
        own = [entry for entry in accuracy if entry.questions == name]
        title = f"right answers lost, {escape(name)} (points of %)"
        found.append(Measure(f"{name} questions", title, "points", _lost(own), relative=True))
    if any(entry.kept is not None for entry in quality):
        found.append(
            Measure(
                "gate mass",
                "gate mass not sent, held-out text (%)",
                "%",
                _of(quality, lambda e: _missing(e.kept)),
            )
        )
    elif dropped:

        def share(policy: str, scenario: str | None) -> Interval | None:
            known = dropped.get((policy, scenario))
            return known.scaled(100) if known is not None else None

        found.append(Measure("gate mass", "gate mass dropped while generating (%)", "%", share))
    return found


def latency_quality(
    rows: Sequence[Row],
    over_all: Mapping[str, Interval],
    measures: Sequence[Measure],
    policies: Sequence[str],
    scenarios: Sequence[str],
    *,
    bounds: Mapping[tuple[str, str | None], Bound],
    best: str | None = None,
) -> Pick | None:
    """Return latency against quality, or None where nothing can be drawn.

    Args:
        rows: The serving metrics by policy and scenario.
        over_all: The mean token latency of each policy over all scenarios.
        measures: The measures of quality.
        policies: The policies in the campaign's order: their letters follow from it.
        scenarios: The scenarios in the campaign's order.
        bounds: The lower bounds by policy and scenario.
        best: The policy that the page's sentence names.
    """
    latency = {(row.policy, row.scenario): row.mean for row in rows if row.metric == "itl"}
    named = len(latency) <= POINTS_WITH_NAMES
    views: list[tuple[str, list[tuple[str | None, Mapping[str, Interval]]]]] = []
    single: list[tuple[str | None, Mapping[str, Interval]]] = [
        (scenario, {p: latency[p, s] for p, s in latency if s == scenario}) for scenario in scenarios
    ]
    if not named and len(scenarios) > 1:
        views.append((_OVER_ALL, [(None, over_all)]))
    views.append((_EVERY, single))
    if not named and len(scenarios) > 1:
        views += [(str(own[0]), [own]) for own in single]
    drawn = _Drawing(policies, scenarios, bounds, best, named)
    panes: list[Pane] = []
    options: list[str] = []
    for measure in measures:
        figures = []
        for place, (_, sets) in enumerate(views):
            points = [
                Point(policy, scenario, across, value)
                for scenario, means in sets
                for policy, value in means.items()
                if (across := measure.of(policy, scenario)) is not None
            ]
            number = f"-{len(options)}-{place}" if options or place else ""
            figures.append(drawn.figure(f"latency-quality{number}", measure, points) if points else None)
        if any(figures):
            for place, figure in enumerate(figures):
                none = "" if figure else "No policy was rated in this scenario by this measure."
                legend = drawn.legend(views[place][1]) if figure else ()
                panes.append(Pane((len(options), place), [figure] if figure else [], none, legend))
            options.append(measure.option)
    if not panes:
        return None
    lower = (
        " A short bar below a point, on a thin line, is the lower bound of its policy’s budget."
        if bounds
        else ""
    )
    changes = f"Changes are against {policies[0]}. " if any(measure.relative for measure in measures) else ""
    if not named:
        changes += "The scale across is that of square roots, which keeps small costs apart. "
    note = (
        f"{changes}Thin bars are 95 % intervals: of the latency over repeats, of the quality over windows of text or "
        "questions, those of a change paired and widened for several policies. The steps are the Pareto front: what no "
        f"other policy beats in both.{lower}"
    )
    axes = [Axis("quality", options), Axis("scenario", [name for name, _ in views])]
    return Pick("pareto", "Latency against quality", note, axes, panes)


def front_of(points: Sequence[Point]) -> list[Point]:
    """Return the Pareto front: the points that no other beats in both, from the best quality on."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.across.value, point.latency.value)):
        if not front or point.latency.value < front[-1].latency.value:
            front.append(point)
    return front


@dataclass(frozen=True)
class _Drawing:
    """What all views of a page have in common."""

    policies: Sequence[str]
    scenarios: Sequence[str]
    bounds: Mapping[tuple[str, str | None], Bound]
    best: str | None
    named: bool

    def figure(self, name: str, measure: Measure, points: Sequence[Point]) -> Figure:
        figure = go.Figure()
        for scenario in dict.fromkeys(point.scenario for point in points):
            own = [point for point in points if point.scenario == scenario]
            self._front(figure, own, scenario)
        for point in points:
            self._bound(figure, point)
        # The policy that the sentence names is drawn last, so that no other covers it.
        for point in sorted(points, key=lambda point: point.policy == self.best):
            self._point(figure, point, measure)
        across: dict[str, object] = {"title": {"text": measure.axis}, "zeroline": False}
        if not self.named:
            ends = [
                end for point in points for end in (point.across.value, point.across.low, point.across.high)
            ]
            ticks = _ticks([end for end in ends if math.isfinite(end)])
            across |= {
                "tickangle": 0,
                "tickvals": [_root(tick) for tick in ticks],
                "ticktext": [f"{tick:g}".replace("-", MINUS) for tick in ticks],
            }
        figure.update_layout(
            height=350,
            xaxis=across,
            yaxis={"title": {"text": "mean token latency (ms)"}, "zeroline": False},
        )
        alt = f"Scatter plot of mean token latency against {measure.option}, one point a policy and scenario."
        return figure_of(name, "Latency against quality", figure, alt=alt)

    def legend(self, sets: Sequence[tuple[str | None, Mapping[str, Interval]]]) -> list[Key]:
        """Return the scenarios by colour, and the policies by letter."""
        keys = [Key(name, self._colour(name)) for name, _ in sets if name is not None]
        if self.named:
            return keys
        shown = [policy for policy in self.policies if any(policy in means for _, means in sets)]
        return [
            *(keys if len(keys) > 1 else []),
            *(
                Key(policy, "var(--ink)", "letter", letter_of(self.policies.index(policy)))
                for policy in shown
            ),
        ]

    def _x(self, value: float) -> float:
        return value if self.named or not math.isfinite(value) else _root(value)

    def _across(self, interval: Interval) -> Interval:
        ends = self._x(interval.low), self._x(interval.high)
        return Interval(self._x(interval.value), *ends, interval.n, interval.level)

    def _point(self, figure: go.Figure, point: Point, measure: Measure) -> None:
        place, best = self.policies.index(point.policy), point.policy == self.best and not self.named
        marker: dict[str, object] = {"color": self._colour(point.scenario)}
        if self.named:
            marker |= {"symbol": _SYMBOLS[place % len(_SYMBOLS)], "size": 10}
            text, position = escape(point.policy), "top right"
        else:
            marker |= {
                "size": 19,
                "line": {"color": "var(--waiting)" if best else "var(--paper)", "width": 3 if best else 1},
            }
            text, position = letter_of(place), "middle center"
        where = f" · {escape(point.scenario)}" if point.scenario is not None else ""
        across, latency = with_interval(point.across, measure.unit), with_interval(point.latency, "ms")
        figure.add_scatter(
            x=[self._x(point.across.value)],
            y=[point.latency.value],
            error_x=error_bars(self._across(point.across)),
            error_y=error_bars(point.latency),
            mode="markers+text",
            text=[text],
            textposition=position,
            textfont={} if self.named else {"color": "var(--paper)", "size": 11},
            marker=marker,
            showlegend=False,
            hovertemplate=f"<b>{escape(point.policy)}</b>{where}"
            f"<br>{measure.option}: {' · '.join(filter(None, across))}"
            f"<br>token latency: {' · '.join(filter(None, latency))}{self._above(point)}<extra></extra>",
            cliponaxis=False,
        )

    def _bound(self, figure: go.Figure, point: Point) -> None:
        bound = self.bounds.get((point.policy, point.scenario))
        if bound is None:
            return
        colour = self._colour(point.scenario)
        figure.add_scatter(
            x=[self._x(point.across.value)] * 2,
            y=[point.latency.value, bound.bound_ms.value],
            mode="lines+markers",
            line={"color": colour, "width": 1, "dash": "dot"},
            marker={"symbol": "line-ew-open", "size": [0, 13], "color": colour, "line": {"width": 2}},
            hoverinfo="skip",
            showlegend=False,
        )

    def _above(self, point: Point) -> str:
        bound = self.bounds.get((point.policy, point.scenario))
        if bound is None:
            return ""
        return f"<br>lower bound: {with_interval(bound.bound_ms, 'ms')[0]}"

    def _front(self, figure: go.Figure, points: Sequence[Point], scenario: str | None) -> None:
        front = front_of(points)
        if len(front) < 2:
            return
        place = self.scenarios.index(scenario) if scenario in self.scenarios else 0
        figure.add_scatter(
            x=[self._x(point.across.value) for point in front],
            y=[point.latency.value for point in front],
            mode="lines",
            line={
                "shape": "hv",
                "dash": _DASHES[place % len(_DASHES)],
                "width": 1.8,
                "color": self._colour(scenario),
            },
            hoverinfo="skip",
            showlegend=False,
        )

    def _colour(self, scenario: str | None) -> str:
        return scenario_colour(self.scenarios.index(scenario)) if scenario in self.scenarios else "var(--ink)"


def _of(
    quality: Sequence[Quality], value: Callable[[Quality], Interval | None]
) -> Callable[..., Interval | None]:
    def of(policy: str, scenario: str | None) -> Interval | None:
        entry = rated(quality, policy, scenario)
        return value(entry) if entry is not None else None

    return of


def _change_percent(entry: Quality) -> Interval:
    """Return the change of perplexity in percent, paired; the reference's own is none."""
    if entry.change is None:
        return Interval(0.0, 0.0, 0.0, entry.perplexity.n)
    return entry.change.scaled(100)


def _missing(share: Interval | None) -> Interval | None:
    """Return what is missing to one, in percent."""
    if share is None:
        return None
    ends = 100 * (1 - share.high), 100 * (1 - share.low)
    return Interval(100 * (1 - share.value), *ends, share.n, share.level)


def _lost(accuracy: Sequence[Accuracy]) -> Callable[..., Interval | None]:
    def of(policy: str, scenario: str | None) -> Interval | None:
        own = [entry for entry in accuracy if entry.policy == policy]
        exact = next((entry for entry in own if entry.scenario == scenario), None)
        if exact is None and len(own) == 1 and own[0].scenario is None:
            exact = own[0]
        if exact is None:
            return None
        change = exact.change
        if change is None:
            return Interval(0.0, 0.0, 0.0, exact.accuracy.n)
        return Interval(-100 * change.value, -100 * change.high, -100 * change.low, change.n, change.level)

    return of


def _root(value: float) -> float:
    """Return a value on the scale of square roots, which shows small costs beside large ones; the sign is kept."""
    return math.copysign(math.sqrt(abs(value)), value)


def _ticks(values: Sequence[float]) -> list[float]:
    """Return the ticks of a scale of square roots that holds these values: zero, and 1, 2 and 5 times powers of ten."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    most = max(-low, high)
    if most <= 0:
        return [0.0]
    room = 0.1 * (_root(max(0.0, high)) - _root(min(0.0, low)))
    top = math.floor(math.log10(most))
    kept = [0.0]
    for step in (
        float(f"{step * 10.0**power:.6g}") for power in range(top - 2, top + 1) for step in (1, 2, 5)
    ):
        if step <= most * 1.02 and _root(step) - _root(kept[-1]) > room:
            kept.append(step)
    return [
        *(-step for step in reversed(kept[1:]) if step <= -low),
        *(step for step in kept if step <= high * 1.02),
    ]
