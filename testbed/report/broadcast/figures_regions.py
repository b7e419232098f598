"""The figures of the performance regions and of the ablations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from testbed.report.blocks import Axis, Pane, Pick
from testbed.report.broadcast.ablations import Loss
from testbed.report.broadcast.facts import MEASURES, Facts, Panel, ratio_name
from testbed.report.broadcast.looks import DIGITS, USER_COLOURS, Look, bars_of, scatter_style
from testbed.report.broadcast.regions import Point, Region
from testbed.report.numbers import with_interval
from testbed.report.style import Figure, Key, escape, figure_of

__all__ = ["ablation_pick", "counted_text", "region_pick", "share_text"]

HEIGHT = 400


def region_pick(facts: Facts, regions: Sequence[Region], looks: Mapping[str, Look]) -> Pick | None:
    """Return the performance regions, to be picked by measure, scenario, set and ratio; None where there are none.

    Args:
        facts: What was compared.
        regions: What :func:`testbed.report.broadcast.regions.regions_of` gave.
        looks: The look of each scheme.
    """
    if not regions or len(facts.users) < 2:
        return None
    by_key = {(r.measure, r.panel): r for r in regions}
    measures = [m for m in MEASURES if any(r.measure == m for r in regions)]
    scenarios = list(dict.fromkeys(r.panel.scenario for r in regions))
    sets = list(dict.fromkeys(r.panel.set for r in regions))
    ratios = sorted({r.panel.ratio for r in regions}, reverse=True)
    panes = []
    for m, measure in enumerate(measures):
        for c, scenario in enumerate(scenarios):
            for s, name in enumerate(sets):
                for k, ratio in enumerate(ratios):
                    region = by_key.get((measure, Panel(scenario, name, ratio)))
                    key = (m, c, s, k)
                    if region is None:
                        none = (
                            f"{name} has no {measure.title}: its images are too small."
                            if m
                            else "Not played."
                        )
                        panes.append(Pane(key, [], none))
                        continue
                    place = "-".join(map(str, key))
                    figure = region_figure(f"region-{place}", facts, region, looks)
                    panes.append(Pane(key, [figure]))
    axes = [
        Axis("measure", [measure.title for measure in measures]),
        Axis("scenario", scenarios),
        Axis("images", sets),
        Axis("k/n", [ratio_name(ratio) for ratio in ratios]),
    ]
    note = (
        "One point a swept share of user 1, in the mean over images; up and right is better. Bars: 95 % intervals for "
        "comparing schemes, without what the learned ones share (how easy an image is); those of each mean alone stand "
        "in the table. Open marks, without bars: some images could not be decoded, and count as a grey image. Click a "
        "name to hide it."
    )
    return Pick("regions-figure", "Performance regions", note, axes, panes)


def region_figure(name: str, facts: Facts, region: Region, looks: Mapping[str, Look]) -> Figure:
    """Return one region: user 2 against user 1, one line a scheme; ablations have a section of their own."""
    measure = region.measure
    figure = go.Figure()
    subject = facts.subject.name if facts.subject else ""
    shown = [s for s in facts.schemes.values() if not s.ablates and s.name in region.points]
    for rank, scheme in enumerate(sorted(shown, key=lambda one: one.name == subject)):
        points = region.points[scheme.name]
        look = looks[scheme.name]
        figure.add_scatter(
            x=[round(point.values[0].value, DIGITS) for point in points],
            y=[round(point.values[1].value, DIGITS) for point in points],
            error_x=bars_of([point.compared[0] for point in points], [_decoded(point) for point in points]),
            error_y=bars_of([point.compared[1] for point in points], [_decoded(point) for point in points]),
            mode="lines+markers",
            name=escape(scheme.name),
            legendrank=1 if scheme.name == subject else 10 + rank,
            customdata=[[share_text(point), *_texts(point, measure.unit)] for point in points],
            hovertemplate=f"<b>{escape(scheme.name)}</b>, %{{customdata[0]}}<br>user 1: %{{customdata[1]}}"
            "<br>user 2: %{customdata[2]}<br>decoded: %{customdata[3]}<extra></extra>",
            **scatter_style(look, [min(point.received[:2]) for point in points]),
        )
    unit = f" ({measure.unit})" if measure.unit else ""
    ranges, beyond = _frame([region.points[scheme.name] for scheme in shown])
    axes = [
        {
            "title": {"text": f"{measure.title} of user {user + 1}{_snr(facts, region, user)}{unit}"},
            "zeroline": False,
        }
        | ({"range": ranges[user]} if beyond else {})
        for user in (0, 1)
    ]
    figure.update_layout(height=HEIGHT + 11 * len(shown), xaxis=axes[0], yaxis=axes[1])
    note = counted_text(region)
    if beyond:
        note += f" {beyond} points with images that could not be decoded lie below the frame: double-click for all."
    alt = f"{measure.title} of user 2 against user 1 in {region.panel.scenario}, one line a scheme over swept shares."
    return figure_of(name, "Performance region", figure, alt=alt, note=note)


def _decoded(point: Point) -> bool:
    return min(point.received[:2]) >= 1


def _frame(lines: Sequence[Sequence[Point]]) -> tuple[list[list[float]], int]:
    """Return the ranges of both axes, and how many points they do not hold.

    They leave out only what is worse than all points whose images were all decoded: grey images would press everything
    else together. What is better stands in the frame, whatever was lost.
    """
    points = [point for line in lines for point in line]
    whole = [point for point in points if _decoded(point)]
    ranges = []
    for user in (0, 1):
        ends = [
            end
            for point in whole
            for end in (point.values[user].value, point.compared[user].low, point.compared[user].high)
            if math.isfinite(end)
        ]
        least, most = (min(ends), max(ends)) if ends else (0.0, 1.0)
        most = max([most, *(point.values[user].value for point in points)])
        room = 0.06 * (most - least) or 0.5
        ranges.append([round(least - room, DIGITS), round(most + room, DIGITS)])
    beyond = sum(
        not all(low <= point.values[user].value <= high for user, (low, high) in enumerate(ranges))
        for point in points
    )
    return ranges, beyond if whole else 0


def counted_text(region: Region) -> str:
    """Return how much is behind a region, for its note."""
    pairs, repeats, seeds = region.counted
    texts = [
        f"{pairs} {'pair' if pairs == 1 else 'pairs'} of images",
        f"{repeats} {'repeat' if repeats == 1 else 'repeats'}",
    ]
    single = [name for name, cube in region.cubes.items() if len(cube.models) == 1 and cube.models != ("",)]
    if pairs == 1 and repeats > 1:
        texts.append("the intervals do not speak of images")
    if seeds > 1:
        texts.append(f"{seeds} training seeds")
        if single:
            texts.append(f"one of {', '.join(single)}: no interval over trainings there")
    elif single:
        texts.append("one training seed: the intervals do not speak of trainings")
    left_out = f"; not compared: {', '.join(region.left_out)}" if region.left_out else ""
    return f"{region.panel.set}, {region.panel.scenario}: {', '.join(texts)}{left_out}."


def share_text(point: Point) -> str:
    """Return the share of a point as people write it; a mean over shares has none."""
    return f"share {point.share:g}" if math.isfinite(point.share) else "mean over shares"


def ablation_pick(facts: Facts, losses: Sequence[Loss]) -> Pick | None:
    """Return the ablations by set and ratio: one figure an ablation, one row a scenario; None where there are none.

    Args:
        facts: What was compared.
        losses: What :func:`testbed.report.broadcast.ablations.losses_of` gave.
    """
    if not losses:
        return None
    places = list(dict.fromkeys((loss.panel.set, loss.panel.ratio) for loss in losses))
    panes = []
    for place, (name, ratio) in enumerate(places):
        own = [loss for loss in losses if (loss.panel.set, loss.panel.ratio) == (name, ratio)]
        schemes = list(dict.fromkeys(loss.scheme for loss in own))
        figures = [
            _ablation(f"ablation-{place}-{number}", [loss for loss in own if loss.scheme == scheme])
            for number, scheme in enumerate(schemes)
        ]
        panes.append(Pane((place,), figures))
    options = [f"{name}, k/n = {ratio_name(ratio)}" for name, ratio in places]
    note = (
        "PSNR of the ablated scheme less that of the whole one, of the same images and noise, in the mean over the "
        "swept shares. Left of the line the ablation loses. Bars: 95 % intervals over pairs of images and training "
        "seeds, as far as there are several."
    )
    legend = [Key(f"user {user}", _user_colour(user), "dot") for user in facts.users]
    return Pick("ablations-figure", "", note, [Axis("images", options)], panes, 2, legend)


def _ablation(name: str, losses: Sequence[Loss]) -> Figure:
    figure = go.Figure()
    users = len(losses[0].changes)
    rows = [escape(loss.panel.scenario) for loss in losses]
    for user in range(users):
        own = [loss.changes[user] for loss in losses]
        shift = 0.16 * (user - (users - 1) / 2)
        figure.add_scatter(
            x=[round(one.value, DIGITS) for one in own],
            y=[place + shift for place in range(len(rows))],
            error_x=bars_of(own) | {"color": _user_colour(user + 1), "thickness": 1.6},
            mode="markers",
            marker={"color": _user_colour(user + 1), "size": 8},
            customdata=[[row, *with_interval(one, "dB")] for row, one in zip(rows, own, strict=True)],
            hovertemplate=f"%{{customdata[0]}}, user {user + 1}: %{{customdata[1]}}"
            "<br>%{customdata[2]}<extra></extra>",
            showlegend=False,
        )
    zero = {"type": "line", "x0": 0, "x1": 0, "yref": "paper", "y0": 0, "y1": 1}
    figure.update_layout(
        height=90 + 30 * len(rows),
        shapes=[zero | {"line": {"color": "var(--faint)", "width": 1}, "layer": "below"}],
        xaxis={"title": {"text": "change of PSNR (dB)"}, "zeroline": False},
        yaxis={
            "tickvals": list(range(len(rows))),
            "ticktext": rows,
            "range": [len(rows) - 0.5, -0.5],
            "showgrid": False,
            "zeroline": False,
        },
    )
    mine, whole = losses[0].seeds
    title = f"{losses[0].scheme} against {losses[0].whole}"
    seeds = f"Trainings: {mine} against {whole}." if (mine, whole) != (0, 0) else ""
    return figure_of(name, title, figure, alt=f"Change of PSNR by scenario: {title}.", note=seeds)


def _user_colour(user: int) -> str:
    return USER_COLOURS[(user - 1) % len(USER_COLOURS)]


def _texts(point: Point, unit: str) -> list[str]:
    texts = [" · ".join(filter(None, point.texts(user, unit))) for user in (0, 1)]
    return [*texts, " and ".join(f"{share:.0%}" for share in point.received[:2])]


def _snr(facts: Facts, region: Region, user: int) -> str:
    snr = facts.scenarios[region.panel.scenario].snr_db
    return f" at {snr[user]:g} dB" if user < len(snr) else ""
