"""The section of the links: rates over time, what the probes measured, and the bytes that crossed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from testbed.records.outline import outline_of
from testbed.records.run import Run
from testbed.report.blocks import Alert, Block, Grid, Missing, Note, Plot, Section, Sheet
from testbed.report.figures_links import link_summary, ratio_figure
from testbed.report.figures_radio import RADIO_KEYS, radio_figure
from testbed.report.figures_rates import (
    DOTS,
    RATE_KEYS,
    STRETCHES,
    RateLines,
    Window,
    closer_window,
    rates_figure,
)
from testbed.report.linkfacts import backend_notes, links_untouched, probes_of, trial_links
from testbed.report.metrics import policies_of, scenarios_of
from testbed.report.rates import (
    DIRECTIONS,
    Steps,
    asked_steps,
    rate_summary,
    samples_of,
    varying_scenarios,
)
from testbed.report.style import Device, Figure, trial_keys, trial_shapes
from testbed.report.tables_links import (
    UNEXPLAINED_MOST,
    links_table,
    lossy_devices,
    rates_table,
    too_much,
    traffic_table,
    traffic_totals,
)

__all__ = ["links_section"]

NAMED = 6
"""So many of what is off stand in the alert; the table has all."""
CLOSER_SCENARIOS = 3
UNFOLDED = 40


def links_section(run: Run, devices: Mapping[str, Device]) -> Section:
    """Return the section of the links.

    Args:
        run: The run.
        devices: The look of each device.
    """
    colours = {name: device.colour for name, device in devices.items()}
    notes = backend_notes(run)
    blocks: list[Block] = []
    if links_untouched(run):
        blocks.append(
            Note(
                "Shaping is `none`: the links were left as they are. No rate was asked for, and none was verified."
            )
        )
        blocks += _radio(run, devices)
    else:
        simulated = run.manifest.get("simulated")
        if simulated:
            blocks.append(
                Note("Simulated links: each has the rate that was asked for, so nothing was verified.")
            )
        else:
            blocks += [Note(" ".join(notes))] if notes else []
            blocks += _unsound(run)
        blocks += _rates(run, devices, colours)
        blocks += _verification(run, devices, colours)
        if len(run.radio):
            blocks += _radio(run, devices)
        if simulated:
            return Section("links", "Links", "links", blocks)
    return Section("links", "Links", "links", [*blocks, *_traffic(run, colours)])


def _unsound(run: Run) -> list[Block]:
    """Say which links were off, and which completed trials had such links or some that nobody verified."""
    probes = probes_of(run)
    if probes.empty:
        text = "No link was probed in this run, so its rates are not known."
        return [Alert(text, "links-bad")]
    worst = [
        f"{row['device']} {row['direction']} in {row['scenario']}, {int(row['message_bytes']):,} B"
        f"{_busy(row['state'])}{_ratio(row['low'], row['high'])}"
        for row in link_summary(probes).query("failed > 0").to_dict("records")
    ]
    off: list[Block] = [Alert(f"Outside the tolerance: {_listed(worst, '; ')}.")] if worst else []
    known = trial_links(run)
    reasons: dict[str, list[str]] = {}
    for trial in run.completed["trial"]:
        links = known[str(trial)]
        if links.state in ("off", "unverified"):
            reasons.setdefault(links.reason, []).append(str(trial))
    named = [
        Alert(f"{_listed(trials)}: {reason}.", "links-bad" if place == 0 else "")
        for place, (reason, trials) in enumerate(reasons.items())
    ]
    return [*off, *named]


def _verification(run: Run, devices: Mapping[str, Device], colours: Mapping[str, str]) -> list[Block]:
    probes, outline = probes_of(run), outline_of(run.manifest)
    if probes.empty:
        return []
    blocks: list[Block] = []
    summary = link_summary(probes)
    failed = int((summary["failed"] > 0).sum())
    figure = ratio_figure(probes, scenarios_of(run), devices, outline.tolerance)
    if figure is not None:
        blocks.append(Plot(figure))
    return [*blocks, Sheet(links_table(summary, colours), folded=failed == 0 or len(summary) > UNFOLDED)]


def _rates(run: Run, devices: Mapping[str, Device], colours: Mapping[str, str]) -> list[Block]:
    steps = asked_steps(run)
    samples, probes = samples_of(run, steps), probes_of(run)
    lines = {name: _lines(name, steps, samples, probes) for name in devices}
    shown = [name for name in devices if _moves(lines[name])]
    if not shown:
        return []
    policies, shapes = policies_of(run), trial_shapes(run.trials, policies_of(run))
    ends = [run.trials["t_end_s"].max(), run.links["t_s"].max()]
    begins = [run.trials["t_start_s"].min(), run.links["t_s"].min()]
    begin_s = min((float(begin) for begin in begins if pd.notna(begin)), default=0.0)
    end_s = max((float(end) for end in ends if pd.notna(end)), default=1.0)
    # A little room, so that what was measured first is not cut in half by the edge.
    whole = Window(begin_s - 0.015 * (end_s - begin_s), end_s)
    figures = [
        rates_figure(f"links-rates-{place}", devices[name], lines[name], whole, shapes)
        for place, name in enumerate(devices)
        if name in shown
    ]
    keys = [*(key for key in RATE_KEYS if len(samples) or key.mark in ("line", "diamond"))]
    note = _drawn(steps, samples)
    steady = [name for name in devices if name not in shown]
    if steady:
        note += f" Not shown, since one rate held all along: {', '.join(steady)}."
    blocks: list[Block] = [
        Grid("Rates over time", note, figures, legend=[*keys, *trial_keys(run.trials, policies)])
    ]
    moving = varying_scenarios(run)
    for number, scenario in enumerate(moving[:CLOSER_SCENARIOS]):
        blocks += _closer(run, scenario, number, devices, lines, steps)
    if len(moving) > CLOSER_SCENARIOS:
        blocks.append(Note(f"Without a closer look: {', '.join(moving[CLOSER_SCENARIOS:])}."))
    return [*blocks, *_rates_sheet(run, steps, samples, colours)]


def _closer(
    run: Run,
    scenario: str,
    number: int,
    devices: Mapping[str, Device],
    lines: Mapping[str, Mapping[str, RateLines]],
    steps: Mapping[tuple[str, str], Steps],
) -> list[Block]:
    """Return the begin of the first trial of a scenario at a scale at which single changes can be seen."""
    trials = run.completed[run.completed["scenario"] == scenario]
    if trials.empty:
        return []
    trial = trials.iloc[0]
    window = closer_window(steps, float(trial["t_start_s"]), float(trial["t_end_s"]))
    figures: list[Figure] = [
        rates_figure(f"links-closer-{number}-{place}", device, lines[name], window, [])
        for place, (name, device) in enumerate(devices.items())
        if any(lines[name][direction].asked is not None for direction in DIRECTIONS)
    ]
    text = (
        f"{trial['trial']} ({trial['policy']}, {scenario}) from {window.begin_s:.1f} to {window.end_s:.1f} s, "
        "with every change of a rate."
    )
    return [Grid(f"A closer look: {scenario}", text, figures)]


def _rates_sheet(
    run: Run, steps: Mapping[tuple[str, str], Steps], samples: pd.DataFrame, colours: Mapping[str, str]
) -> list[Block]:
    summary = rate_summary(run, steps, samples)
    if summary.empty:
        return []
    tolerance = outline_of(run.manifest).tolerance
    wrong = [
        f"{row['device']} {row['direction']} in {row['scenario']} ({row['ratio']:.3f})"
        for row in summary.to_dict("records")
        if too_much(row, tolerance)
    ]
    blocks: list[Block] = []
    if wrong:
        blocks.append(Alert(f"More was delivered than was asked for: {_listed(wrong)}."))
    blocks.append(Sheet(rates_table(summary, colours, tolerance), folded=len(summary) > UNFOLDED))
    if summary["intervals"].sum():
        blocks.append(
            Note(
                "Saturated intervals have something waiting at both ends; in between a link may still have run empty. "
                "So delivered over asked below 1 is no proof against a link, and above 1 it is. Faint: too few "
                "intervals to say."
            )
        )
    return blocks


def _lines(
    name: str, steps: Mapping[tuple[str, str], Steps], samples: pd.DataFrame, probes: pd.DataFrame
) -> dict[str, RateLines]:
    own_samples, own_probes = samples[samples["device"] == name], probes[probes["device"] == name]
    return {
        direction: RateLines(
            steps.get((name, direction)),
            own_probes[own_probes["direction"] == direction],
            own_samples[own_samples["direction"] == direction],
        )
        for direction in DIRECTIONS
    }


def _moves(lines: Mapping[str, RateLines]) -> bool:
    """Return whether there is more to see than one rate that held all along."""
    return any(
        len(own.samples) or (own.asked is not None and pd.Series(own.asked.mbit).nunique() > 1)
        for own in lines.values()
    )


def _drawn(steps: Mapping[tuple[str, str], Steps], samples: pd.DataFrame) -> str:
    """Say what is drawn, and what was left out to keep it readable."""
    text = "The rate asked for is in the device’s colour; shaded: the trials."
    busiest = max((own.t_s.size for own in steps.values()), default=0)
    if busiest > STRETCHES:
        text += (
            f" Up to {busiest:,} changes a line: drawn as the mean (line) and the extremes (band) over "
            f"{STRETCHES} equal stretches of the run."
        )
    if len(samples):
        full = samples[samples["saturated"]]
        text += " Dots: sampled intervals with something waiting at both ends"
        counts = full.groupby(["device", "direction"]).size()
        many = int(counts.max()) if len(counts) else 0
        text += f", of up to {many:,} a line the extremes." if many > DOTS else "."
    else:
        text += " The counters of the links were not sampled in this run."
    return text


def _radio(run: Run, devices: Mapping[str, Device]) -> list[Block]:
    ends = [run.trials["t_end_s"].max(), run.radio["t_s"].max()]
    until_s = max((float(end) for end in ends if pd.notna(end)), default=1.0)
    policies = policies_of(run)
    shapes = trial_shapes(run.trials, policies)
    drawn = [
        radio_figure(f"links-radio-{place}", device, run.radio, shapes, until_s)
        for place, device in enumerate(devices.values())
    ]
    figures = [figure for figure in drawn if figure is not None]
    if not figures:
        return [
            Missing(
                "No device told of its radio, so nothing is known of the links but the times in the records."
            )
        ]
    silent = [name for name, figure in zip(devices, drawn, strict=True) if figure is None]
    note = (
        "What the driver of each device’s wireless interface said: the received signal, and the physical rates, of "
        "which data get a part only. Shaded: the trials."
    )
    if silent:
        note += f" Nothing was read on: {', '.join(silent)}."
    return [Grid("Radio over time", note, figures, legend=[*RADIO_KEYS, *trial_keys(run.trials, policies)])]


def _traffic(run: Run, colours: Mapping[str, str]) -> list[Block]:
    if run.traffic.empty:
        return [Missing("The bytes that crossed the links were not counted.")]
    totals = traffic_totals(run.traffic)
    wrong = totals[totals["share"].abs() > UNEXPLAINED_MOST]
    told = bool(totals["retransmitted_bytes"].notna().any())
    blocks: list[Block] = []
    if len(wrong):
        which = ", ".join(f"{row['device']} {row['direction']}" for row in wrong.to_dict("records"))
        cause = "Something else used the link" if told else "TCP sent again, or something else used the link"
        blocks.append(Alert(f"The kernel counted bytes that the records do not explain: {which}. {cause}."))
    blocks.append(Sheet(traffic_table(totals, colours, lossy_devices(run.links))))
    if told:
        blocks.append(
            Note(
                "Sent again: payload that TCP retransmitted, because a frame was lost or its acknowledgement came too "
                "late. Such bytes cross the link once more, and explain counted bytes beyond those of the records."
            )
        )
    return blocks


def _listed(names: Sequence[str], between: str = ", ") -> str:
    rest = len(names) - NAMED
    return between.join(names[:NAMED]) + (f"{between}and {rest} more" if rest > 0 else "")


def _busy(state: object) -> str:
    return f" ({state})" if isinstance(state, str) else ""


def _ratio(low: float, high: float) -> str:
    """Return a ratio's range as text; a message that should take no time has none."""
    if pd.isna(low):
        return ": a message of one frame took too long"
    return f": ratio {low:.3f}" if f"{low:.3f}" == f"{high:.3f}" else f": ratio {low:.3f} to {high:.3f}"
