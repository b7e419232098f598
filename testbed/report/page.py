"""Put the report together: one HTML file that opens from disk and asks the network for nothing."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from testbed import __version__
from testbed.records.run import Run, load_run
from testbed.report.ablation import policy_settings
from testbed.report.bounds import bounds_of
from testbed.report.broadcast.conditions import broadcast_conditions
from testbed.report.broadcast.facts import facts_of
from testbed.report.broadcast.looks import looks_of
from testbed.report.broadcast.regions import regions_of
from testbed.report.broadcast.sections import BroadcastFound, broadcast_sections, lead_blocks
from testbed.report.broadcast.sentence import broadcast_headline, broadcast_second_line
from testbed.report.broadcast.trust import checks_of_broadcast
from testbed.report.checks import Check, checks_of, quality_only
from testbed.report.conditions import conditions_of
from testbed.report.decisions import mass_dropped
from testbed.report.figures_quality import latency_quality, measures_of
from testbed.report.forest import forest_of
from testbed.report.metrics import (
    Comparison,
    compare,
    means_over_all,
    policies_of,
    scenarios_of,
    serving_rows,
    trial_means,
)
from testbed.report.prediction import PredictedRun, predicted_trials
from testbed.report.quality import Quality, accuracy_of, quality_of
from testbed.report.sections import Found, sections_of
from testbed.report.sentence import best_of, headline, quality_headline, second_line
from testbed.report.stats import Interval, bootstrap_mean
from testbed.report.style import Figure, device_styles

__all__ = ["render_report", "write_report"]


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
    return _broadcast(run) if run.broadcast else _split_experts(run)


def _split_experts(run: Run) -> str:
    """Return the page of a run of split experts."""
    energy = run.energy()
    predicted = predicted_trials(run)
    rated_in = run if len(run.quality) or len(run.choices) else _same_policies(run, predicted)
    borrowed = rated_in.name if rated_in is not run else ""
    comparisons, quality, rows = compare(run), quality_of(rated_in), serving_rows(run)
    means, accuracy, dropped = trial_means(run), accuracy_of(rated_in), mass_dropped(run)
    policies, scenarios = policies_of(run), scenarios_of(run)
    alone = (policies[0], bootstrap_mean(means["itl_ms"])) if len(policies) == 1 and len(means) else None
    checks = checks_of(run, energy, predicted)
    over_all = means_over_all(means, policies, scenarios)
    best = best_of(comparisons, quality) if comparisons else None
    winner = best.policy if best is not None and best.change.excludes_zero and best.change.value < 0 else None
    measures = measures_of(quality, accuracy, dropped)
    pareto = latency_quality(
        rows, over_all, measures, policies, scenarios, bounds=bounds_of(run), best=winner
    )
    return _rendered(
        run,
        sentence=_sentence(run, comparisons, quality, alone, dropped),
        second=second_line(comparisons, quality),
        conditions=conditions_of(run),
        checks=checks,
        forest=forest_of(comparisons, quality, dropped, over_all, policies, winner),
        reference=policies[0] if policies else "",
        comparisons=comparisons,
        pareto=pareto,
        measured=bool(measures),
        borrowed=borrowed,
        quality_only=quality_only(run),
        sections=sections_of(run, Found(energy, means, quality, accuracy, predicted, borrowed)),
    )


def _broadcast(run: Run) -> str:
    """Return the page of a broadcast run: the same page around other sections."""
    facts, energy = facts_of(run), run.energy()
    regions = regions_of(facts)
    found = BroadcastFound(energy, facts, regions, looks_of(facts), device_styles(run.devices))
    return _rendered(
        run,
        sentence=broadcast_headline(facts, regions, "" if run.manifest.get("simulated") else _where(run)),
        second=broadcast_second_line(facts, regions),
        conditions=broadcast_conditions(run, facts),
        checks=checks_of_broadcast(run, energy, facts),
        lead=lead_blocks(found),
        sections=broadcast_sections(run, found),
    )


def _rendered(run: Run, *, checks: Sequence[Check], **found: Any) -> str:
    """Return the page.

    Args:
        run: The run.
        checks: The trust strip.
        found: What the template shows of this run's workload.
    """
    return _template().render(
        run=run,
        name=run.name,
        campaign=str(run.manifest.get("campaign_name") or ""),
        started=_date(float(run.manifest["started_unix"])),
        banner=_banner(run),
        simulated=_simulated(run),
        checks=checks,
        wrong=[check for check in checks if check.state == "bad"],
        version=__version__,
        # These three are ours or plotly's, not the run's.
        css=Markup(_resource("report.css")),
        js=Markup(_resource("report.js")),
        plotly=Markup(get_plotlyjs()),
        **{"lead": (), "quality_only": False, **found},
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({"report.jinja": _resource("report.jinja")}),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["figure_json"] = _figure_json
    environment.filters["marked"] = _marked
    return environment.get_template("report.jinja")


def _sentence(
    run: Run,
    comparisons: Sequence[Comparison],
    quality: Sequence[Quality],
    alone: tuple[str, Interval] | None,
    dropped: Mapping[tuple[str, str | None], Interval],
) -> str:
    """Return the sentence of a run; of one without trials, that of its quality."""
    where = _where(run)
    if quality and quality_only(run):
        return quality_headline(quality, where)
    kept = {policy: 1 - share.value for (policy, scenario), share in dropped.items() if scenario is None}
    return headline(comparisons, quality, alone=alone, where=where, kept=kept)


def _same_policies(run: Run, predicted: PredictedRun | None) -> Run:
    """Return the run whose quality holds for a simulated one: that which it predicts, if policies and weights are."""
    other = predicted.run if predicted is not None else None
    if other is None or policy_settings(other.manifest) != policy_settings(run.manifest):
        return run
    held, weights = ((one.manifest.get("model") or {}).get("weights") for one in (other, run))
    return other if held == weights else run


def _simulated(run: Run) -> str:
    """Return what a simulated run is; empty for one that was measured."""
    if not run.manifest.get("simulated"):
        return ""
    if run.broadcast:
        return "Images, channels and codecs were computed on one machine; nothing was sent or timed."
    predicts = run.manifest.get("predicts")
    of = f" It predicts the run {predicts}." if predicts else ""
    simulation = run.manifest.get("simulation") or {}
    by = simulation.get("calibrated_with") or simulation.get("calibration")
    model = f"calibrated with {by}" if by else "not calibrated: what nobody measured takes no time in it"
    return f"A model made these figures, {model}; nothing was measured.{of}"


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
    content = {**figure.spec, "narrow": figure.narrow}
    text = json.dumps(content, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
