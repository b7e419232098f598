"""The figure of lost devices: who was away in a trial, and what the tokens made meanwhile got."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from testbed.records.run import Run
from testbed.report.blocks import Axis, Pane, Pick, Plot
from testbed.report.losses import absences
from testbed.report.style import Device, Figure, Key, escape, figure_of, pair_name

__all__ = ["LOSS_KEYS", "loss_figures"]

MOST_TRIALS = 24
"""So many trials can be picked from; the tables have all."""
MARKS: Mapping[str, tuple[str, str]] = {
    "lost": ("x", "var(--bad)"),
    "deadline": ("triangle-down", "var(--waiting)"),
    "waited": ("line-ns-open", "var(--muted)"),
    "refused": ("square-open", "var(--bad)"),
    "failed": ("star", "var(--bad)"),
    "readmitted": ("circle", "var(--good)"),
}
"""The events that stand in the figure; what was rerouted or dropped shows in the tokens below."""
LOSS_KEYS = (
    Key("away", "var(--heat-1)", "line"),
    Key("pairs lost", "var(--bad)", "dot"),
    Key("pairs rerouted", "var(--accent)", "dot"),
    Key("a token that got all as asked", "var(--faint)", "dot"),
)
_GOT = {"rerouted": "var(--accent)", "lost": "var(--bad)"}
_STRETCHES = 400
_ROW_PX = 24
_BELOW_PX = 130


def loss_figures(run: Run, devices: Mapping[str, Device]) -> Plot | Pick | None:
    """Return the figure of each trial in which anything happened, to be picked from; None where there is none.

    Args:
        run: The run.
        devices: The look of each device.
    """
    troubled = set(run.events["trial"])
    trials = [row for row in run.trials.to_dict("records") if row["trial"] in troubled]
    figures = [_figure(run, trial, place, devices) for place, trial in enumerate(trials[:MOST_TRIALS])]
    if not figures:
        return None
    if len(figures) == 1:
        return Plot(figures[0])
    names = [f"{trial['trial']}: {pair_name(trial['policy'], trial['scenario'])}" for trial in trials]
    note = (
        f"The first {MOST_TRIALS} of {len(trials)} trials with an event." if len(trials) > MOST_TRIALS else ""
    )
    panes = [Pane((place,), [figure]) for place, figure in enumerate(figures)]
    axes = [Axis("trial", names[: len(figures)])]
    return Pick("loss-figures", "What tokens got", note, axes, panes, legend=LOSS_KEYS)


def _figure(run: Run, trial: Mapping[str, Any], place: int, devices: Mapping[str, Device]) -> Figure:
    name, begin_s, end_s = str(trial["trial"]), float(trial["t_start_s"]), float(trial["t_end_s"])
    events = run.events[run.events["trial"] == name]
    end_s = max(end_s, float(events["t_s"].max()))
    figure = go.Figure()
    labels = {device: look.label for device, look in devices.items()}
    away = absences(events, end_s)
    lengths_s = [one.end_s - one.begin_s for one in away]
    if away:
        figure.add_bar(
            orientation="h",
            y=[labels.get(one.device, escape(one.device)) for one in away],
            base=[one.begin_s - begin_s for one in away],
            x=lengths_s,
            width=0.36,
            marker={"color": "var(--heat-1)", "line": {"width": 0}},
            customdata=[f"{length_s:.3g}" for length_s in lengths_s],
            hovertemplate="%{y} away for %{customdata} s<extra></extra>",
            showlegend=False,
        )
    for event, (symbol, colour) in MARKS.items():
        own = events[(events["event"] == event) & events["device"].notna()]
        if own.empty:
            continue
        figure.add_scatter(
            x=(own["t_s"] - begin_s).round(4).tolist(),
            y=[labels.get(device, escape(device)) for device in own["device"]],
            mode="markers",
            name=event,
            marker={"symbol": symbol, "size": 10, "color": colour, "line": {"width": 1.6, "color": colour}},
            customdata=[escape(_where(row)) for row in own.to_dict("records")],
            hovertemplate=f"{event} at %{{x:.3f}} s%{{customdata}}<extra></extra>",
        )
    known = _tokens(figure, run.tokens[run.tokens["trial"] == name], begin_s)
    rows = list(labels.values())
    inside = _ROW_PX * len(rows) + _BELOW_PX
    border = _BELOW_PX / inside
    figure.update_layout(
        barmode="overlay",
        height=inside + 92,
        xaxis={
            "title": {"text": "time since the start of the trial (s)"},
            "range": [0, end_s - begin_s],
            "anchor": "y2",
        },
        yaxis={
            "domain": [border + 0.06, 1],
            "range": [len(rows) - 0.5, -0.5],
            "categoryorder": "array",
            "categoryarray": rows,
            "ticks": "",
        },
        yaxis2={
            "domain": [0, border - 0.02],
            "title": {"text": "% of a token’s pairs"},
            "range": [-5, 105],
            "nticks": 4,
        },
        showlegend=True,
    )
    note = "" if known else "What each token got was not recorded."
    return figure_of(
        f"losses-{place}",
        f"What tokens got: {name}, {pair_name(str(trial['policy']), str(trial['scenario']))}",
        figure,
        alt="Above: when each device was away, with the events. Below: the share of each token’s pairs that were lost "
        "or rerouted.",
        note=note,
        legend=LOSS_KEYS,
    )


def _tokens(figure: go.Figure, tokens: pd.DataFrame, begin_s: float) -> bool:
    """Draw what each token lost, or that was rerouted, in percent; return whether that was recorded."""
    own = tokens[tokens["wanted"].notna() & (tokens["wanted"] > 0)].sort_values("t_s")
    if own.empty:
        figure.add_scatter(x=[None], y=[None], yaxis="y2", showlegend=False)
        return False
    share = {column: (100 * own[column] / own["wanted"]).to_numpy(dtype=float) for column in _GOT}
    share[""] = np.where(share["lost"] + share["rerouted"] > 0, np.nan, 0.0)
    for column, colour in {"": "var(--faint)", **_GOT}.items():
        percent = share[column]
        there = np.flatnonzero(percent > 0) if column else np.flatnonzero(percent == 0)
        shown = there[_shown(percent[there])]
        figure.add_scatter(
            x=(own["t_s"].to_numpy(dtype=float)[shown] - begin_s).round(4).tolist(),
            y=percent[shown].round(2).tolist(),
            yaxis="y2",
            mode="markers",
            marker={"size": 5 if column else 3, "color": colour, "opacity": 0.8},
            hovertemplate=f"%{{x:.3f}} s: %{{y:.1f}} % {column}<extra></extra>" if column else None,
            hoverinfo=None if column else "skip",
            showlegend=False,
        )
    return True


def _shown(share: NDArray[np.float64]) -> list[int]:
    """Return the places of the tokens that are drawn: all, or where there are many, the highest of each stretch."""
    if share.size <= _STRETCHES:
        return list(range(share.size))
    stretches = np.array_split(np.arange(share.size), _STRETCHES)
    return [int(part[np.argmax(share[part])]) for part in stretches]


def _where(row: Mapping[str, Any]) -> str:
    """Return what an event's row says beside its time, as the end of a sentence."""
    words = [
        f"request {row['request']}" if pd.notna(row["request"]) else "",
        f"token {row['step']}" if pd.notna(row["step"]) else "",
        f"layer {row['layer']}" if pd.notna(row["layer"]) else "",
        str(row["detail"]) if pd.notna(row["detail"]) else "",
    ]
    told = ", ".join(word for word in words if word)
    return f"<br>{told}" if told else ""
