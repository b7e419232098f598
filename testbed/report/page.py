"""Put the report together: one HTML file that opens from disk and asks the network for nothing."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from testbed import __version__
from testbed.records.run import Run, load_run
from testbed.report.checks import checks_of
from testbed.report.figures import latency_quality_figure
from testbed.report.metrics import (
    Comparison,
    Quality,
    compare,
    policies_of,
    quality_of,
    scenarios_of,
    serving_rows,
    trial_means,
)
from testbed.report.numbers import change, number
from testbed.report.sections import sections_of
from testbed.report.sentence import headline
from testbed.report.stats import bootstrap_mean
from testbed.report.style import Figure

__all__ = ["ForestRow", "render_report", "write_report"]

FOREST_ROWS = 6


@dataclass(frozen=True)
class ForestRow:
    """One comparison on the first screen, with the places of its marks in percent of the drawing's width.

    Attributes:
        policy: The policy.
        reference: The policy that it is compared with.
        scenario: The scenario; "all scenarios" where they are taken together.
        reference_ms: The reference's mean token latency.
        policy_ms: The policy's.
        change: The change as text.
        interval: Its interval as text; empty where there is none.
        verdict: faster, slower or open.
        zero: Where no change is.
        dot: Where the change is.
        low: Where the interval begins.
        width: How long it is.
        whole: Whether this is the row of all scenarios together.
        n: The pairs of repeats behind it.
    """

    policy: str
    reference: str
    scenario: str
    reference_ms: str
    policy_ms: str
    change: str
    interval: str
    verdict: str
    zero: float
    dot: float
    low: float
    width: float
    whole: bool
    n: int


def write_report(run: Run | Path | str, out: Path | None = None) -> Path:
    """Write a run's report and return its path.

    Args:
        run: The run, finished or not, or its folder.
        out: The HTML file, ``report.html`` in the run's folder by default; an earlier one is replaced as a whole.
    """
    loaded = run if isinstance(run, Run) else load_run(run)
    target = out or loaded.path / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.part")
    unfinished.write_text(render_report(loaded), encoding="utf-8")
    unfinished.replace(target)
    return target


def render_report(run: Run) -> str:
    """Return a run's report as one HTML page.

    Args:
        run: The run, finished or not.
    """
    energy = run.energy()
    comparisons, quality, rows = compare(run), quality_of(run), serving_rows(run)
    means = trial_means(run)
    policies = policies_of(run)
    alone = (policies[0], bootstrap_mean(means["itl_ms"])) if len(policies) == 1 and len(means) else None
    checks = checks_of(run, energy)
    forest = forest_rows(comparisons)
    # With many rows the first screen keeps those of all scenarios together.
    long = len(forest) > FOREST_ROWS and any(row.whole for row in forest)
    shown = [row for row in forest if row.whole or not long]
    folded = [row for row in forest if long and not row.whole]
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({"report.jinja": _resource("report.jinja")}),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["figure_json"] = _figure_json
    environment.filters["marked"] = _marked
    return environment.get_template("report.jinja").render(
        run=run,
        name=run.name,
        campaign=str(run.manifest.get("campaign_name") or ""),
        started=_date(float(run.manifest["started_unix"])),
        sentence=headline(comparisons, quality, alone=alone, where=_where(run)),
        banner=_banner(run),
        checks=checks,
        wrong=[check for check in checks if check.state == "bad"],
        forest_shown=shown,
        forest_folded=folded,
        reference=policies[0] if policies else "",
        comparisons=comparisons,
        pareto=latency_quality_figure(rows, quality, scenarios_of(run)),
        quality=[_quality_line(entry) for entry in quality],
        sections=sections_of(run, energy),
        version=__version__,
        # These three are ours or plotly's, not the run's.
        css=Markup(_resource("report.css")),
        js=Markup(_resource("report.js")),
        plotly=Markup(get_plotlyjs()),
    )


def forest_rows(comparisons: Sequence[Comparison]) -> list[ForestRow]:
    """Return the comparisons with the places of their marks on one common scale around zero.

    Args:
        comparisons: What :func:`testbed.report.metrics.compare` gave.
    """
    ends = [0.0]
    for entry in comparisons:
        ends.append(entry.change.value)
        # A huge interval must not flatten the others: it is cut at the edge, and its text says how long it is.
        ends += [
            max(-1.0, min(1.0, end)) for end in (entry.change.low, entry.change.high) if entry.change.known
        ]
    low, high = min(ends), max(ends)
    room = (high - low or 1.0) * 0.06
    low, high = low - room, high + room

    def place(value: float) -> float:
        return round(100 * min(1.0, max(0.0, (value - low) / (high - low))), 2)

    rows = []
    for entry in comparisons:
        value, interval = change(entry.change)
        known = entry.change.known
        begin = place(entry.change.low) if known else place(entry.change.value)
        end = place(entry.change.high) if known else begin
        decided = entry.change.excludes_zero
        verdict = ("faster" if entry.change.value < 0 else "slower") if decided else "open"
        rows.append(
            ForestRow(
                entry.policy,
                entry.reference,
                entry.scenario or "all scenarios",
                number(entry.reference_ms),
                number(entry.policy_ms),
                value,
                interval,
                verdict,
                place(0.0),
                place(entry.change.value),
                begin,
                round(end - begin, 2),
                entry.scenario is None,
                entry.change.n,
            )
        )
    return rows


def _quality_line(quality: Quality) -> dict[str, str]:
    """Return one policy's perplexity for the first screen."""
    value, interval = change(quality.change) if quality.change else ("", "")
    return {
        "policy": quality.policy,
        "perplexity": number(quality.perplexity.value),
        "change": value,
        "interval": interval,
    }


def _where(run: Run) -> str:
    count = len(run.devices)
    if not count:
        return ""
    kind = (
        "simulated" if run.manifest.get("simulated") else "emulated" if run.manifest.get("emulated") else ""
    )
    boards = "board" if count == 1 else "boards"
    return f"on {count} {kind} {boards}" if kind else f"on {count} {boards}"


def _banner(run: Run) -> str:
    state = str(run.manifest["state"])
    if state == "completed":
        return ""
    known = {"running": "is still running", "failed": "has failed", "interrupted": "was interrupted"}
    return f"This run {known.get(state, f'is {state}')}: the report shows what was recorded so far."


def _date(unix_s: float) -> str:
    return f"{dt.datetime.fromtimestamp(unix_s, dt.UTC):%Y-%m-%d %H:%M} UTC"


def _resource(name: str) -> str:
    return (files("testbed.report") / name).read_text(encoding="utf-8")


def _marked(text: str) -> Markup:
    """Return a text with what stands between backticks as code; all else is escaped."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _figure_json(figure: Figure) -> Markup:
    """Return a figure as JSON that can stand inside a script element: no text of the run can end it."""
    text = json.dumps({**figure.spec, "narrow": figure.narrow}, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
