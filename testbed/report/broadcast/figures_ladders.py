"""The figures along a ladder: quality against the SNR, the gap between the users, or the error of the CSI."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from testbed.report.blocks import Axis, Pane, Pick
from testbed.report.broadcast.facts import Facts, Scenario, ratio_name
from testbed.report.broadcast.figures_regions import share_text
from testbed.report.broadcast.ladders import Ladder, Rung, by_met_snr, changes_of, rungs_of
from testbed.report.broadcast.looks import DIGITS, Look, bars_of, scatter_style
from testbed.report.broadcast.regions import Region, places_of
from testbed.report.style import Figure, escape, figure_of

__all__ = ["ladder_pick", "met_pick"]

HEIGHT = 330
MOST_LADDERS = 4

Across = Callable[[Rung, Scenario, int], float]
"""Where a rung stands on the axis, for a user (from 0)."""


def ladder_pick(
    name: str,
    title: str,
    note: str,
    facts: Facts,
    regions: Sequence[Region],
    looks: Mapping[str, Look],
    ladders: Sequence[Ladder],
    across: Across,
    axis: Callable[[int], str],
    *,
    joined: bool = True,
    changes: bool = False,
) -> Pick | None:
    """Return the PSNR of each user along ladders, one figure a user; None where there is nothing to draw.

    Args:
        name: The id in the page.
        title: The title.
        note: How to read it.
        facts: What was compared.
        regions: The regions of all measures.
        looks: The look of each scheme.
        ladders: The ladders; the longest few are drawn.
        across: Where a rung stands.
        axis: The title of that axis for a user (from 1).
        joined: Whether the points of a scheme are joined.
        changes: Draw the change against the first rung, in the mean over shares, and not the PSNR at one share.
    """
    places, shown = places_of(regions), ladders[:MOST_LADDERS]
    whole = [scheme.name for scheme in facts.schemes.values() if not scheme.ablates]
    panes = []
    for p, own in enumerate(places.values()):
        for number, ladder in enumerate(shown):
            rungs = {scheme: (changes_of if changes else rungs_of)(ladder, own, scheme) for scheme in whole}
            figures = [
                _figure(
                    f"{name}-{p}-{number}-{user}",
                    facts,
                    looks,
                    rungs,
                    across,
                    axis(user),
                    user,
                    joined,
                    changes,
                )
                for user in facts.users
            ]
            drawn = [figure for figure in figures if figure is not None]
            panes.append(Pane((p, number), drawn, "" if drawn else "Nothing of it was played."))
    if not any(pane.figures for pane in panes):
        return None
    options = [f"{images}, k/n = {ratio_name(ratio)}" for images, ratio in places]
    axes = [Axis("images", options), Axis("scenarios", [ladder.title for ladder in shown])]
    return Pick(name, title, note, axes, panes, 2)


def met_pick(facts: Facts, looks: Mapping[str, Look]) -> Pick | None:
    """Return, for scenarios that fade, the PSNR by the SNR that an image met; None where no scenario fades.

    Args:
        facts: What was compared.
        looks: The look of each scheme.
    """
    fading = [scenario.name for scenario in facts.scenarios.values() if scenario.fading != "none"]
    places = list(dict.fromkeys((panel.set, panel.ratio) for panel in facts.panels))
    panes = []
    for p, (images, ratio) in enumerate(places):
        chosen = facts.images[(facts.images["set"] == images) & (facts.images["bandwidth_ratio"] == ratio)]
        for number, scenario in enumerate(fading):
            table = by_met_snr(facts, scenario, chosen)
            figures = [
                _met(f"met-{p}-{number}-{user}", facts, table[table["user"] == user], looks, user)
                for user in facts.users
            ]
            drawn = [figure for figure in figures if figure is not None]
            panes.append(Pane((p, number), drawn, "" if drawn else "Too few images for a mean."))
    if not any(pane.figures for pane in panes):
        return None
    options = [f"{images}, k/n = {ratio_name(ratio)}" for images, ratio in places]
    note = (
        "Images of fading scenarios by the SNR that they met, in steps of 2 dB, over all shares; steps of fewer than "
        "eight images or three fades are left out. Each step has other images: how easy one is for the learned schemes "
        "in scenarios without fading is taken off. Where a code breaks, its curve falls off: the digital cliff. Open "
        "marks: some images could not be decoded."
    )
    axes = [Axis("images", options), Axis("scenario", fading)]
    return Pick("met", "PSNR against the SNR that an image met", note, axes, panes, 2)


def _figure(
    name: str,
    facts: Facts,
    looks: Mapping[str, Look],
    by_scheme: Mapping[str, Sequence[Rung]],
    across: Across,
    axis: str,
    user: int,
    joined: bool,
    changes: bool,
) -> Figure | None:
    figure, place, lines = go.Figure(), facts.users.index(user), 0
    subject = facts.subject.name if facts.subject else ""
    for rank, scheme in enumerate(sorted(by_scheme, key=lambda one: one == subject)):
        rungs = sorted(
            by_scheme[scheme], key=lambda rung: across(rung, facts.scenarios[rung.scenario], place)
        )
        if not rungs:
            continue
        lines += 1
        figure.add_scatter(
            x=[across(rung, facts.scenarios[rung.scenario], place) for rung in rungs],
            y=[round(rung.point.values[place].value, DIGITS) for rung in rungs],
            error_y=bars_of(
                [rung.point.compared[place] for rung in rungs],
                [changes or rung.point.received[place] >= 1 for rung in rungs],
            ),
            mode="lines+markers" if joined else "markers",
            name=escape(scheme),
            legendrank=1 if scheme == subject else 10 + rank,
            customdata=[
                [
                    escape(rung.scenario),
                    " · ".join(filter(None, rung.point.texts(place, "dB"))),
                    f"{rung.point.received[place]:.0%}",
                    share_text(rung.point),
                ]
                for rung in rungs
            ],
            hovertemplate=f"<b>{escape(scheme)}</b>, %{{customdata[0]}}, %{{customdata[3]}}<br>"
            "%{customdata[1]}<br>decoded: %{customdata[2]}<extra></extra>",
            **scatter_style(looks[scheme], [rung.point.received[place] for rung in rungs], 7),
        )
    if not lines:
        return None
    return _finished(name, figure, axis, user, lines, "change of PSNR" if changes else "PSNR")


def _met(name: str, facts: Facts, table: pd.DataFrame, looks: Mapping[str, Look], user: int) -> Figure | None:
    figure, lines = go.Figure(), 0
    subject = facts.subject.name if facts.subject else ""
    whole = [scheme.name for scheme in facts.schemes.values() if not scheme.ablates]
    for rank, scheme in enumerate(sorted(whole, key=lambda one: one == subject)):
        rows = table[table["scheme"] == scheme]
        if rows.empty:
            continue
        lines += 1
        figure.add_scatter(
            x=rows["snr_db"].tolist(),
            y=rows["psnr_db"].round(DIGITS).tolist(),
            mode="lines+markers",
            name=escape(scheme),
            legendrank=1 if scheme == subject else 10 + rank,
            customdata=[[f"{got:.0%}", int(n)] for got, n in zip(rows["received"], rows["n"], strict=True)],
            hovertemplate=f"<b>{escape(scheme)}</b>, %{{x:g}} dB<br>%{{y:.2f}} dB, n = %{{customdata[1]}}<br>"
            "decoded: %{customdata[0]}<extra></extra>",
            **scatter_style(looks[scheme], rows["received"].tolist(), 6),
        )
    if not lines:
        return None
    return _finished(name, figure, f"SNR that an image of user {user} met (dB)", user, lines)


def _finished(
    name: str, figure: go.Figure, axis: str, user: int, lines: int, measure: str = "PSNR"
) -> Figure:
    figure.update_layout(
        height=HEIGHT + 11 * lines,
        xaxis={"title": {"text": axis}, "zeroline": False},
        yaxis={"title": {"text": f"{measure} of user {user} (dB)"}, "zeroline": False},
    )
    return figure_of(
        name, f"User {user}", figure, alt=f"{measure} of user {user}, one line a scheme; across: {axis}."
    )
