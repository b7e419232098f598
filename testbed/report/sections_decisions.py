"""The sections of the policies: what they did, what it cost in quality, and how well the model predicts."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from testbed.records.run import Run
from testbed.report.ablation import ablation_rows, ablations
from testbed.report.blocks import Block, Missing, Note, Pick, Plot, Section, Sheet
from testbed.report.bounds import bounds_of
from testbed.report.decisions import drop_rows, dropped_shares
from testbed.report.figures_decisions import by_device, by_layer
from testbed.report.figures_prediction import dispatch_figure, trial_figure
from testbed.report.metrics import policies_of, scenarios_of
from testbed.report.numbers import number
from testbed.report.prediction import (
    PredictedRun,
    dispatch_errors,
    error_row,
    order_agreement,
    predicted_dispatches,
)
from testbed.report.quality import Accuracy, Quality, rated
from testbed.report.style import Device, pair_name
from testbed.report.tables_decisions import (
    ablation_table,
    accuracy_table,
    bounds_table,
    drop_table,
    error_table,
    quality_table,
)

__all__ = ["policies_section", "prediction_section", "quality_section"]

UNFOLDED = 18


def policies_section(
    run: Run, means: pd.DataFrame, quality: list[Quality], devices: Mapping[str, Device]
) -> Section:
    """Return what the policies did: ablations, lower bounds, and what they dropped.

    Args:
        run: The run.
        means: What :func:`testbed.report.metrics.trial_means` gave.
        quality: What :func:`testbed.report.quality.quality_of` gave.
        devices: The look of each device.
    """
    policies, scenarios = policies_of(run), scenarios_of(run)
    blocks: list[Block] = []
    rows = ablation_rows(run, means)
    if rows:
        costs = {
            (policy, scenario): entry.change
            for policy in policies
            for scenario in (None, *scenarios)
            if (entry := rated(quality, policy, scenario)) is not None and entry.change is not None
        }
        whole = [row for row in rows if row.against_reference.scenario is None] or rows
        parts = [row for row in rows if row not in whole]
        blocks.append(Sheet(ablation_table(whole, costs)))
        if parts:
            blocks.append(Sheet(ablation_table(parts, costs, by_scenario=True), folded=True))
        joint = ", ".join(dict.fromkeys(ablation.joint for ablation in ablations(run)))
        blocks.append(
            Note(
                f"Read from the settings of the campaign: {joint} {'differ' if ', ' in joint else 'differs'} from "
                f"{policies[0]} in the selection of experts and in the sharing of the band; the parts differ in one of "
                "them. Faint: no difference was found. These intervals are each for itself."
            )
        )
    bounds = bounds_of(run)
    if bounds:
        listed = [bounds[key] for key in sorted(bounds, key=lambda key: _order(key, policies, scenarios))]
        over_all = [bound for bound in listed if bound.scenario is None] or listed
        single = [bound for bound in listed if bound not in over_all]
        blocks.append(Sheet(bounds_table(over_all)))
        if single:
            blocks.append(Sheet(bounds_table(single, by_scenario=True), folded=True))
        text = "The bound is that of a relaxation for the budget and the settings of each policy, by the latency model."
        if not run.manifest.get("simulated"):
            text += " The times are measured: what the model does not know of is part of the distance."
        if any(bound.above.value < 0 for bound in listed):
            text += " Red: below the bound, so the model that gave it is too slow there."
        blocks.append(Note(text))
    blocks += _dropped(run, policies, scenarios, devices)
    return Section("policies", "What each policy did", "policies", blocks)


def _dropped(
    run: Run, policies: list[str], scenarios: list[str], devices: Mapping[str, Device]
) -> list[Block]:
    shares = dropped_shares(run)
    if shares.empty:
        return [Missing("What the policies dropped was not recorded.")]
    rows = drop_rows(run)
    sheet = Sheet(drop_table(rows), folded=len(rows) > UNFOLDED)
    layers: Pick | None = by_layer(shares, policies, scenarios, devices)
    if layers is None:
        return [
            Note("No policy dropped anything: every token went to all experts that its router chose."),
            sheet,
        ]
    return [by_device(shares, policies, scenarios, devices), layers, sheet]


def quality_section(quality: list[Quality], accuracy: list[Accuracy], borrowed: str = "") -> Section:
    """Return what was measured of the quality.

    Args:
        quality: What :func:`testbed.report.quality.quality_of` gave.
        accuracy: What :func:`testbed.report.quality.accuracy_of` gave.
        borrowed: The run that it was measured in, where it was not this one.
    """
    blocks: list[Block] = []
    if borrowed:
        blocks.append(
            Note(
                f"Not simulated: this was measured in the run {borrowed}, with policies of the same settings."
            )
        )
    if quality:
        blocks.append(Sheet(quality_table(quality), folded=len(quality) > 2 * UNFOLDED))
        text = (
            "Changes are against the first policy of the campaign, paired by window of text; KL and agreement are "
            f"against the model with all the experts that its router chose. n: windows, of {_tokens(quality)} tokens "
            "together."
        )
        if any(entry.scenario is not None for entry in quality):
            text += (
                " A policy that looks at the links was read once in each scenario, with the links of that scenario; "
                "over all scenarios each has equal weight."
            )
        blocks.append(Note(text))
    else:
        blocks.append(Missing("No perplexity was measured."))
    if accuracy:
        blocks.append(Sheet(accuracy_table(accuracy), folded=len(accuracy) > 2 * UNFOLDED))
    return Section("rated", "Quality", "quality", blocks)


def prediction_section(run: Run, predicted: PredictedRun | None, devices: Mapping[str, Device]) -> Section:
    """Return how well the latency model predicts this run, or how well this simulated run predicts another.

    Args:
        run: The run.
        predicted: What :func:`testbed.report.prediction.predicted_trials` gave.
        devices: The look of each device.
    """
    colours = {name: device.colour for name, device in devices.items()}
    blocks: list[Block] = []
    if predicted is not None:
        blocks += _trials(run, predicted)
    rows = predicted_dispatches(run)
    if len(rows):
        blocks.append(Plot(dispatch_figure(rows, devices)))
        errors = dispatch_errors(rows, list(devices))
        table = error_table(errors, colours, name="errors", caption="Errors of a dispatch", of="device")
        blocks.append(Sheet(table))
        blocks.append(
            Note(
                "A dispatch is predicted when it is decided, with the rates in force then; measured is from its first "
                "byte sent to its last byte back. An error is relative to what was measured."
            )
        )
    if not blocks:
        simulated = run.manifest.get("simulated")
        text = "This run predicts no measured one." if simulated else "No dispatch of this run was predicted."
        blocks.append(Missing(text))
    return Section("prediction", "Predicted against measured", "prediction", blocks)


def _trials(run: Run, predicted: PredictedRun) -> list[Block]:
    if predicted.problem:
        return [Missing(f"{predicted.problem[0].upper()}{predicted.problem[1:]}.")]
    whole = error_row("all", predicted.pairs)
    agreed, compared = order_agreement(predicted.pairs)
    of = (
        "mean token latencies of a policy in a scenario"
        if (predicted.pairs["repeat"] == -1).all()
        else "trials"
    )
    text = (
        f"This simulated run predicts {predicted.name}: over {whole.n} {of} the median error is "
        f"{number(100 * whole.median, 2)} %, the 90th percentile {number(100 * whole.p90, 2)} %."
    )
    if predicted.first is not None:
        first = error_row("first", predicted.first)
        errors = f"{number(100 * first.median, 2)} % and {number(100 * first.p90, 2)} %"
        text += f" For the time to the first token: {errors}."
    if compared:
        text += f" Of {compared} pairs of policies in one scenario, {agreed} are predicted in their measured order."
    simulation = run.manifest.get("simulation") or {}
    if simulation.get("calibrated_with") == predicted.name:
        text += (
            " The model was calibrated with this very run: how well it predicts another, this does not show."
        )
    if simulation.get("differs"):
        differs = ", ".join(map(str, simulation["differs"]))
        text += f" The campaign is not as it was in that run; what differs: {differs}."
    grouped = predicted.pairs.groupby(["policy", "scenario"], sort=False)
    rows = [whole, *(error_row(pair_name(*key), own) for key, own in grouped)]
    table = error_table(
        rows, {}, name="trial-errors", caption="Errors of a trial’s mean", of="policy, scenario"
    )
    return [
        Note(text),
        Plot(trial_figure(predicted, policies_of(run), scenarios_of(run))),
        Sheet(table, folded=len(rows) > UNFOLDED),
    ]


def _tokens(quality: list[Quality]) -> str:
    counts = sorted({entry.tokens for entry in quality})
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


def _order(key: tuple[str, str | None], policies: list[str], scenarios: list[str]) -> tuple[int, int]:
    policy, scenario = key
    return policies.index(policy), -1 if scenario is None else scenarios.index(scenario)
