"""The sections of the report below its first screen: each a list of blocks, each block from the records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from testbed.records.energy import idle_power_mw, total_power
from testbed.records.outline import goes_on_with
from testbed.records.run import Run
from testbed.report.blocks import (
    SHOWN_AT_ONCE,
    Alert,
    Axis,
    Block,
    Code,
    Facts,
    Missing,
    Note,
    Pane,
    Pick,
    Plot,
    Section,
    Sheet,
    by_group,
)
from testbed.report.breakdown import bottlenecks, mean_parts, parts_in, timeline, token_parts
from testbed.report.checks import clock_errors, energy_problems, quality_only
from testbed.report.figures import bottleneck_figure, parts_figure, timeline_figure
from testbed.report.figures_power import (
    TOKENS,
    EnergyRow,
    Item,
    energy_figure,
    energy_rows,
    power_figure,
)
from testbed.report.linkfacts import backend_entries, trial_links
from testbed.report.metrics import planned_trials, policies_of, scenarios_of
from testbed.report.prediction import PredictedRun
from testbed.report.quality import Accuracy, Quality
from testbed.report.sections_decisions import policies_section, prediction_section, quality_section
from testbed.report.sections_links import links_section
from testbed.report.sections_serving import losses_sections, metrics_section
from testbed.report.style import Device, Figure, device_styles, part_legend
from testbed.report.tables import (
    clock_table,
    energy_table,
    fleet_table,
    models_table,
    trials_table,
)

__all__ = ["Found", "energy_blocks", "provenance_blocks", "sections_of", "trial_alerts"]

UNFOLDED = 60
"""Tables of more rows are folded away."""

_OTHERS = (
    " The layers of passes that answered other requests, between a token and the one before, are set apart."
)


@dataclass(frozen=True)
class Found:
    """What was found in a run once, and is used in several places of the page.

    Attributes:
        energy: What ``run.energy()`` gave.
        means: What :func:`testbed.report.metrics.trial_means` gave.
        quality: What :func:`testbed.report.quality.quality_of` gave.
        accuracy: What :func:`testbed.report.quality.accuracy_of` gave.
        predicted: What :func:`testbed.report.prediction.predicted_trials` gave.
        borrowed: The run that the quality was measured in, where it was not this one.
    """

    energy: pd.DataFrame
    means: pd.DataFrame
    quality: list[Quality]
    accuracy: list[Accuracy]
    predicted: PredictedRun | None
    borrowed: str = ""


def sections_of(run: Run, found: Found) -> list[Section]:
    """Return the sections of a run's report.

    Args:
        run: The run.
        found: What was found in it.
    """
    devices = device_styles(run.devices)
    pairs = set(zip(run.completed["policy"], run.completed["scenario"], strict=True))
    # Bars of one scenario stand together, since a policy is chosen and a scenario is not.
    order = [(p, s) for s in scenarios_of(run) for p in policies_of(run) if (p, s) in pairs]
    if quality_only(run):
        provenance = Section("fleet", "Fleet and provenance", "fleet", provenance_blocks(run, devices))
        return [quality_section(found.quality, found.accuracy), provenance]
    parts = token_parts(run)
    return [
        policies_section(run, found.means, found.quality, devices),
        *losses_sections(run, devices),
        Section("time", "Where a token’s time goes", "time", _time(run, parts, order, devices)),
        Section("timeline", "One token’s timeline", "timeline", _timeline(run, parts, order, devices)),
        quality_section(found.quality, found.accuracy, found.borrowed),
        prediction_section(run, found.predicted, devices),
        Section("energy", "Power and energy", "energy", energy_blocks(run, found.energy, order, devices)),
        links_section(run, devices),
        metrics_section(run),
        Section("trials", "Trials", "trials", _trials(run, found.means)),
        Section("fleet", "Fleet and provenance", "fleet", provenance_blocks(run, devices)),
    ]


def _time(
    run: Run, parts: pd.DataFrame, order: Sequence[tuple[str, str]], devices: Mapping[str, Device]
) -> list[Block]:
    blocks: list[Block] = []
    picked = _parts(run, parts)
    if picked is None:
        blocks.append(
            Missing(f"No token has the time stamps that the parts of its time follow from.{_omitted(run)}")
        )
    else:
        blocks.append(
            Note(
                "Per layer, downlink, compute (with the device’s queue) and uplink are averaged over the devices used; "
                "waiting is the rest of the layer’s time, until its slowest device has answered. The base station has "
                "what is left. The parts sum to the token’s time. Means are over trials."
                + _OTHERS
                * ("others_ms" in parts_in(parts))
            )
        )
        blocks.append(picked)
    shares = bottlenecks(run)
    most = 10.0 * math.ceil(float(shares["share"].max()) * 10) if len(shares) else 100.0
    maps: dict[str, list[Figure]] = {}
    for place, key in enumerate(order):
        figure = bottleneck_figure(shares, *key, devices, place, most)
        if figure is not None:
            maps.setdefault(key[1], []).append(figure)
    if maps:
        note = "Share of tokens, in percent, for which a device was the last of a layer to answer. A row sums to 100."
        title = "Bottleneck device per layer"
        blocks.append(by_group("bottlenecks", title, note, "scenario", maps, columns=3, scale=f"{most:.0f}"))
    if run.manifest.get("simulated"):
        return blocks
    colours = {name: device.colour for name, device in devices.items()}
    errors = clock_errors(run)
    if errors:
        blocks.append(
            Note(
                "A clock error moves time between downlink and uplink of a device; compute, waiting and the sums do "
                "not depend on it.",
                "clocks",
            )
        )
        blocks.append(Sheet(clock_table(errors, colours)))
    else:
        blocks.append(Alert("No clock was estimated: the split into downlink and uplink is void.", "clocks"))
    return blocks


def _omitted(run: Run) -> str:
    """Return what a simulated run left out of its records, as a sentence; empty where nothing was."""
    simulation = run.manifest.get("simulation")
    omitted = simulation.get("omitted") if isinstance(simulation, dict) else None
    return f" The simulation left out: {'; '.join(map(str, omitted))}." if omitted else ""


def _parts(run: Run, parts: pd.DataFrame) -> Pick | None:
    """Return the parts of a token's time, of later and of first tokens, in milliseconds and as shares."""
    policies, scenarios = policies_of(run), scenarios_of(run)
    panes = []
    for place, first in enumerate((False, True)):
        means = mean_parts(parts, first=first)
        for scale, relative in enumerate((False, True)):
            figure = parts_figure(means, policies, scenarios, first=first, relative=relative)
            if figure is None:
                return None
            panes.append(Pane((place, scale), [figure]))
    axes = [
        Axis("token", ["after the first", "the first, prompt included"]),
        Axis("scale", ["ms", "share of its time"]),
    ]
    return Pick("causes", "Share of each cause", "", axes, panes, legend=part_legend(parts_in(parts)))


def _timeline(
    run: Run, parts: pd.DataFrame, order: Sequence[tuple[str, str]], devices: Mapping[str, Device]
) -> list[Block]:
    lines = [timeline(run, parts, *key) for key in order]
    found = [line for line in lines if line is not None]
    if not found:
        return [Missing(f"No token has the time stamps that a timeline needs.{_omitted(run)}")]
    # Scenarios may differ tenfold, and with many policies only one scenario is seen at once.
    longest: dict[str, float] = {}
    for line in found:
        longest[line.scenario] = max(longest.get(line.scenario, 0.0), line.duration_ms)
    together = max(longest.values())
    few = len(found) <= SHOWN_AT_ONCE
    groups: dict[str, list[Figure]] = {}
    for place, line in enumerate(found):
        until_ms = together if few else longest[line.scenario]
        groups.setdefault(line.scenario, []).append(timeline_figure(line, devices, place, until_ms))
    note = (
        "The token of median duration of each policy and scenario, dispatch by dispatch, on one scale; dotted "
        "lines begin a layer. `testbed report --trace` gives every token to a trace viewer."
    )
    return [by_group("timelines", "", note, "scenario", groups, legend=part_legend(parts_in(parts)))]


def energy_blocks(
    run: Run,
    energy: pd.DataFrame,
    order: Sequence[tuple[str, str]],
    devices: Mapping[str, Device],
    *,
    item: Item = TOKENS,
    compared: str = "policy",
) -> list[Block]:
    """Return the power over time, and the energy of each item on each device.

    Args:
        run: The run.
        energy: What ``run.energy()`` gave.
        order: Policies and scenarios in order.
        devices: The look of each device.
        item: What the energy is for.
        compared: What is compared.
    """
    if run.manifest.get("simulated"):
        return [Missing("A simulated run has no power: there was no board to take any.")]
    blocks: list[Block] = []
    problems = energy_problems(energy)
    for place, row in enumerate(problems.to_dict("records")):
        coverage = "" if math.isnan(row["coverage"]) else f" Least coverage: {row['coverage']:.1%}."
        text = f"{row['device']}: {row['error']}. Trials: {row['trials']}.{coverage}"
        blocks.append(Alert(f"The energy is wrong or missing. {text}", "energy-bad" if place == 0 else ""))
    powers = {name: total_power(run, name) for name in devices}
    idle = {name: idle_power_mw(run, power) for name, power in powers.items()}
    if not devices:
        return [*blocks, Alert("The records name no device, so there is no power.", "energy-bad")]
    if energy.empty:
        for name, power in powers.items():
            if power.error is not None:
                blocks.append(Alert(f"{name}: {power.error}."))
    if any(power.error is None for power in powers.values()):
        blocks.append(Plot(power_figure(powers, idle, run.trials, policies_of(run), devices)))
    rows = energy_rows(energy, order, list(devices), item)
    drawn = _joules(rows, order, devices, item)
    if drawn is None:
        blocks.append(Missing(f"No trial was completed, so there is no energy per {item.name}."))
        return blocks
    colours = {name: device.colour for name, device in devices.items()}
    table = energy_table(rows, colours, item=item, compared=compared)
    return [*blocks, drawn, Sheet(table, folded=len(rows) > UNFOLDED)]


def _joules(
    rows: Sequence[EnergyRow], order: Sequence[tuple[str, str]], devices: Mapping[str, Device], item: Item
) -> Plot | Pick | None:
    """Return the energy per item, one scenario at a time where there are many bars."""
    figure = energy_figure(rows, order, devices, item=item)
    scenarios = list(dict.fromkeys(scenario for _, scenario in order))
    if figure is None or len(order) <= SHOWN_AT_ONCE or len(scenarios) < 2:
        return Plot(figure) if figure is not None else None
    panes = []
    for place, scenario in enumerate(scenarios):
        own = [key for key in order if key[1] == scenario]
        name = f"energy-figure-{place}" if place else "energy-figure"
        one = energy_figure(rows, own, devices, name=name, item=item)
        panes.append(Pane((place,), [one] if one else [], "" if one else "No trial of it was completed."))
    return Pick("energies", f"Energy per {item.name}", "", [Axis("scenario", scenarios)], panes)


def _trials(run: Run, means: pd.DataFrame) -> list[Block]:
    blocks = trial_alerts(run)
    if run.trials.empty:
        return [*blocks, Missing("No trial was recorded.")]
    return [*blocks, Sheet(trials_table(run, means), folded=len(run.trials) > 12)]


def trial_alerts(run: Run) -> list[Block]:
    """Return what went wrong with a run's trials: those that failed, had unsound links, or were not run.

    Args:
        run: The run.
    """
    blocks: list[Block] = []
    planned, done = planned_trials(run), len(run.completed)
    failed = run.trials[run.trials["state"] == "failed"]
    for row in failed.to_dict("records"):
        error = row["error"] if pd.notna(row["error"]) else "no reason was recorded"
        blocks.append(Alert(f"{row['trial']} ({row['policy']}, {row['scenario']}) failed: {error}"))
    links = trial_links(run)
    unsound = [name for name in run.completed["trial"] if links[name].state in ("off", "unverified")]
    if unsound:
        blocks.append(
            Alert(
                f"{len(unsound)} of {done} completed trials had links that were not as asked or not verified; "
                "they are in the figures all the same."
            )
        )
    if planned and done + len(failed) < planned:
        missing = planned - done - len(failed)
        verb = goes_on_with(run.manifest)
        hint = f": `{verb} --resume {run.name}` goes on." if verb else "."
        blocks.append(Alert(f"{missing} of {planned} trials were not run{hint}"))
    return blocks


def provenance_blocks(run: Run, devices: Mapping[str, Device]) -> list[Block]:
    """Return what a run was made with: the fleet, the versions, the campaign, and the command that repeats it.

    Args:
        run: The run.
        devices: The look of each device.
    """
    manifest = run.manifest
    colours = {name: device.colour for name, device in devices.items()}
    blocks: list[Block] = [Sheet(fleet_table(manifest, colours))]
    if isinstance(manifest.get("models"), dict) and manifest["models"]:
        blocks.append(Sheet(models_table(manifest["models"])))
    if manifest.get("command"):
        blocks.append(Code("The command that repeats this run", str(manifest["command"])))
    else:
        blocks.append(Missing("The command that repeats this run was not recorded."))
    for key, title in _PROVENANCE.items():
        value = manifest.get(key)
        if key == "links":
            used = {f"{where}, in force": names for where, names in backend_entries(run)}
            known = value if isinstance(value, dict) else {}
            # The records say the same by direction, without a line for every device.
            value = {name: entry for name, entry in known.items() if name != "backends" or not used} | used
        entries = list(_flat(value))
        if entries:
            blocks.append(Facts(title, entries))
    if manifest.get("campaign"):
        blocks.append(
            Code(f"Campaign file: {manifest.get('campaign_name', '')}", str(manifest["campaign"]), True)
        )
    else:
        blocks.append(Missing("The campaign file was not recorded."))
    placement = manifest.get("placement")
    if isinstance(placement, dict) and placement:
        blocks.append(Code("Placement: layer, expert, devices", _placement_text(placement), True))
    return blocks


_PROVENANCE = {
    "simulation": "Simulation",
    "model": "Model",
    "versions": "Versions",
    "machine": "Base station and controller",
    "links": "Links",
    "seeds": "Seeds",
}


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Return nested values as dotted names with texts."""
    if isinstance(value, dict):
        return [
            entry
            for key, inner in value.items()
            for entry in _flat(inner, f"{name}.{key}" if name else str(key))
        ]
    if value is None or value == "" or value == []:
        return []
    if isinstance(value, list):
        return [(name, ", ".join(str(entry) for entry in value))]
    if isinstance(value, float):
        return [(name, f"{value:.6g}")]
    return [(name or "value", f"{value:,}" if type(value) is int and abs(value) >= 10_000 else str(value))]


def _placement_text(placement: Mapping[str, Any]) -> str:
    lines = []
    for layer, experts in placement.items():
        if isinstance(experts, dict):
            held = ", ".join(f"{expert}: {_names(names)}" for expert, names in experts.items())
            lines.append(f"layer {layer}   {held}")
    return "\n".join(lines)


def _names(names: Any) -> str:
    return " + ".join(str(name) for name in names) if isinstance(names, list) else str(names)
