from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from testbed.records import RecordWriter, load_run, read_manifest, write_manifest
from testbed.report import render_report
from testbed.report.ablation import ablation_rows, ablations
from testbed.report.bounds import bounds_of
from testbed.report.decisions import drop_rows, dropped_shares, idle_policies, mass_dropped
from testbed.report.figures_quality import Point, front_of
from testbed.report.metrics import Comparison, policies_of, scenarios_of, trial_means
from testbed.report.prediction import (
    dispatch_errors,
    error_row,
    order_agreement,
    predicted_dispatches,
    predicted_trials,
)
from testbed.report.quality import Quality, accuracy_of, quality_of, rated, worst_change
from testbed.report.sentence import best_of, headline, keeps_quality, second_line
from testbed.report.stats import Interval, bootstrap_ratio, wilson

Maker = Callable[..., Path]
SMALL: dict[str, Any] = {"repeats": 2, "prompts": 1, "tokens": 3}


def interval(value: float, half: float = 0.001) -> Interval:
    return Interval(value, value - half, value + half, 5)


def against(policy: str, value: float, half: float = 0.01) -> Comparison:
    return Comparison(policy, "top-2", None, 20.0, 30.0, interval(value, half))


def costs(policy: str, *changes: float) -> list[Quality]:
    """Return a policy's quality over all, and by scenario where there are several changes."""
    perplexity = Interval(20.0, 19.0, 21.0, 16)
    whole = Quality(policy, perplexity, 4000, interval(sum(changes) / len(changes)))
    if len(changes) == 1:
        return [whole]
    single = [
        replace(whole, scenario=f"s{place}", change=interval(value)) for place, value in enumerate(changes)
    ]
    return [whole, *single]


REFERENCE = [Quality("top-2", Interval(20.0, 19.0, 21.0, 16), 4000, None)]


class TestSentence:
    def test_the_fastest_policy_that_keeps_the_quality_is_named(self) -> None:
        comparisons = [against("top-1", -0.5), against("budget", -0.3), against("slow", -0.1)]
        quality = [*REFERENCE, *costs("top-1", 0.09), *costs("budget", 0.006), *costs("slow", 0.001)]
        assert best_of(comparisons, quality).policy == "budget"
        assert headline(comparisons, quality).startswith("budget cut the mean token latency by")
        line = second_line(comparisons, quality).replace("\N{NO-BREAK SPACE}", " ")
        assert line.startswith(
            "2 of 3 policies keep the perplexity within 1 % of top-2’s, interval included."
        )
        assert "The fastest of all was top-1: \N{MINUS SIGN}50.0 %, at +9.00 % perplexity." in line

    def test_one_scenario_above_the_limit_is_enough_to_lose_it(self) -> None:
        quality = [*REFERENCE, *costs("budget", 0.002, 0.004, 0.0105)]
        assert quality[1].change is not None
        assert quality[1].change.high < 0.01
        assert not keeps_quality(quality, "budget")

    def test_the_interval_counts_not_only_the_estimate(self) -> None:
        assert keeps_quality(costs("budget", 0.0085), "budget")
        assert not keeps_quality(costs("budget", 0.0095), "budget")

    def test_without_a_faster_one_that_keeps_it_the_fastest_is_named_with_its_cost(self) -> None:
        comparisons = [against("top-1", -0.5), against("budget", -0.005)]
        quality = [*REFERENCE, *costs("top-1", 0.09), *costs("budget", 0.001)]
        assert headline(comparisons, quality).startswith("top-1 cut")
        assert "none of them was found to be faster" in second_line(comparisons, quality)

    def test_a_cost_that_differs_between_scenarios_is_a_range(self) -> None:
        quality = [*REFERENCE, *costs("budget", 0.002, 0.006)]
        text = headline([against("budget", -0.3)], quality).replace("\N{NO-BREAK SPACE}", " ")
        assert "at +0.20 to +0.60 % perplexity by scenario" in text

    def test_the_gate_mass_is_said_where_quality_was_not_measured(self) -> None:
        text = headline([against("budget", -0.3)], [], kept={"budget": 0.912})
        assert "its quality was not measured, and it kept 91.2" in text


class TestQuality:
    def test_a_policy_that_follows_links_is_rated_in_each_scenario_and_over_all(self, many_run: Path) -> None:
        run = load_run(many_run)
        quality = quality_of(run)
        assert [entry.scenario for entry in quality if entry.policy == "wlr"] == [None, *scenarios_of(run)]
        assert [entry.scenario for entry in quality if entry.policy == "top-1"] == [None]
        assert rated(quality, "top-1", "street") is rated(quality, "top-1", None)
        worst, weak = worst_change(quality, "wlr"), rated(quality, "wlr", "weak-nano")
        assert weak is not None
        assert worst is weak.change

    def test_all_scenarios_together_are_their_mean_paired_by_window(self, many_run: Path) -> None:
        run = load_run(many_run)
        quality = quality_of(run)
        frame = run.quality
        wlr = frame[frame["policy"] == "wlr"].groupby(["text", "window"])[["nll_sum", "tokens"]].sum()
        base = frame[frame["policy"] == "top-2"].set_index(["text", "window"])["nll_sum"]
        expected = math.exp((wlr["nll_sum"].sum() - 3 * base.sum()) / wlr["tokens"].sum()) - 1
        whole = rated(quality, "wlr", None)
        assert whole is not None
        assert whole.change is not None
        assert whole.change.value == pytest.approx(expected)
        assert whole.change.n == 16
        assert whole.tokens == 16 * 255

    def test_a_policy_that_differs_in_nothing_has_no_change_at_all(self, many_run: Path) -> None:
        entry = rated(quality_of(load_run(many_run)), "top-2-minmax", None)
        assert entry is not None
        assert entry.change is not None
        assert entry.kl is not None
        assert entry.change.value == pytest.approx(0, abs=1e-12)
        assert entry.kl.value == 0

    def test_divergence_and_agreement_are_per_token_and_never_beyond_their_ends(self, many_run: Path) -> None:
        run = load_run(many_run)
        for entry in quality_of(run):
            assert entry.kl is not None
            assert entry.agreement is not None
            assert entry.kl.low >= 0
            assert entry.agreement.high <= 1
        top = rated(quality_of(run), "top-1", None)
        rows = run.quality[run.quality["policy"] == "top-1"]
        assert top is not None
        assert top.agreement is not None
        assert top.agreement.value == pytest.approx(rows["agree"].sum() / rows["tokens"].sum())

    def test_a_window_without_a_measure_leaves_it_unknown(self, make_many: Maker) -> None:
        folder = make_many(**SMALL, policies=("top-2", "top-1"), scenarios=("even",))
        rows = load_run(folder).quality
        own = rows[rows["policy"] == "top-1"].assign(scenario=None)
        own.loc[own.index[0], ["kl_sum"]] = None
        RecordWriter(folder).write("quality", "quality-top-1-any", own)
        entry = rated(quality_of(load_run(folder)), "top-1", None)
        assert entry is not None
        assert entry.kl is None
        assert entry.agreement is not None

    def test_right_answers_are_paired_by_question(self, many_run: Path) -> None:
        found = {(entry.policy, entry.scenario): entry for entry in accuracy_of(load_run(many_run))}
        top = found["top-1", None]
        assert top.change is not None
        # Both intervals of the shares overlap, and yet every question that changed changed the same way.
        assert top.change.high < 0
        assert found["top-2", None].accuracy.low < top.accuracy.high
        assert top.chance == 0.25

    def test_wilson_knows_that_all_right_is_no_proof(self) -> None:
        share = wilson(10, 10)
        assert share.value == 1
        assert share.high == 1
        assert share.low == pytest.approx(0.722, abs=1e-3)  # tabulated for 10 of 10


class TestDropped:
    def test_shares_are_of_what_the_router_wanted(self, many_run: Path) -> None:
        run = load_run(many_run)
        shares = dropped_shares(run)
        table = run.selection.merge(run.trials[["trial", "policy"]], on="trial")
        top = table[(table["policy"] == "top-1") & (table["stage"] == "decode")]
        row = next(
            row
            for row in drop_rows(run)
            if (row.policy, row.scenario, row.stage) == ("top-1", "even", "decode")
        )
        assert row.dropped.value == pytest.approx(0.5)
        assert 0.2 < row.mass.value < 0.5
        assert set(idle_policies(shares)) == {"top-2", "top-2-minmax"}
        assert top["dropped"].sum() == top["pairs"].sum()
        over_all = mass_dropped(run)["top-1", None]
        assert over_all.value == pytest.approx(
            top["dropped_mass"].sum() / (top["mass"] + top["dropped_mass"]).sum()
        )

    def test_a_pair_that_moved_is_not_wanted_twice(self, make_many: Maker) -> None:
        folder = make_many(**SMALL, policies=("top-2",), scenarios=("even",), quality=False)
        about = {"trial": "t001", "stage": "decode", "layer": 0, "mass": 1.0}
        rows = [
            {**about, "device": "orin-nx", "pairs": 6, "dropped": 0, "moved_in": 2, "dropped_mass": 0.0},
            {**about, "device": "orin-nano", "pairs": 2, "dropped": 2, "moved_in": 0, "dropped_mass": 0.5},
        ]
        RecordWriter(folder).write("selection", "t001", rows)
        shares = dropped_shares(load_run(folder))
        own = shares[(shares["layer"] == 0) & (shares["stage"] == "decode")].set_index("device")
        assert own.loc["orin-nano", "pairs"] > 0
        row = next(row for row in drop_rows(load_run(folder)) if row.stage == "decode")
        assert row.moved.value > 0
        wanted = own["wanted"].sum()
        assert wanted == sum(r["pairs"] - r["moved_in"] + r["dropped"] for r in rows) + _other_wanted(folder)

    def test_a_device_that_was_left_with_nothing_counts(self, many_run: Path) -> None:
        shares = dropped_shares(load_run(many_run))
        own = shares[(shares["policy"] == "budget-90") & (shares["scenario"] == "street")]
        assert set(own["device"]) == {"agx-orin", "orin-nx", "orin-nano", "xavier-nx"}
        dropped = own.groupby("device")["pairs_dropped"].sum()
        assert dropped["orin-nx"] > 0
        assert dropped.drop("orin-nx").sum() == 0


def _other_wanted(folder: Path) -> int:
    """Return what the trials other than the first wanted in layer 0 while they generated."""
    rows = load_run(folder).selection
    rows = rows[(rows["trial"] != "t001") & (rows["layer"] == 0) & (rows["stage"] == "decode")]
    return int((rows["pairs"] - rows["moved_in"] + rows["dropped"]).sum())


class TestAblation:
    def test_parts_are_found_by_the_settings_of_the_campaign(self, many_run: Path) -> None:
        found = [(a.joint, a.selection, a.bandwidth) for a in ablations(load_run(many_run))]
        assert found == [
            ("budget-98-minmax", "budget-98", "top-2-minmax"),
            ("budget-90-minmax", "budget-90", "top-2-minmax"),
        ]

    def test_a_part_that_differs_in_its_activations_too_is_no_part(self, many_run: Path) -> None:
        run = load_run(many_run)
        text = str(run.manifest["campaign"]).replace("tau: 0.98}}", "tau: 0.98}, activations: int8}", 1)
        assert text != run.manifest["campaign"]
        changed = replace(run, manifest=run.manifest | {"campaign": text})
        found = {a.joint: a.selection for a in ablations(changed)}
        assert found == {"budget-98-minmax": None, "budget-90-minmax": "budget-90"}

    def test_a_joint_policy_without_its_parts_is_no_ablation(self, make_many: Maker) -> None:
        folder = make_many(
            **SMALL, policies=("top-2", "budget-90-minmax"), scenarios=("even",), quality=False
        )
        assert ablations(load_run(folder)) == []

    def test_leaving_the_band_alone_is_the_scenario_kind(self, make_many: Maker) -> None:
        folder = make_many(
            **SMALL, policies=("top-2", "budget-90", "budget-90-minmax"), scenarios=("even",), quality=False
        )
        manifest = read_manifest(folder)
        text = str(manifest["campaign"]).replace(
            "tau: 0.9}}", "tau: 0.9}, bandwidth: {kind: scenario, per: layer}}"
        )
        write_manifest(folder, manifest | {"campaign": text})
        assert [(a.joint, a.selection) for a in ablations(load_run(folder))] == [
            ("budget-90-minmax", "budget-90")
        ]

    def test_the_joint_policy_is_compared_with_each_part_by_repeat(self, many_run: Path) -> None:
        run = load_run(many_run)
        means = trial_means(run)
        rows = [row for row in ablation_rows(run, means) if row.ablation.joint == "budget-90-minmax"]
        own = {row.role: row for row in rows if row.against_reference.scenario == "weak-nano"}
        part = own["selection"].against_joint
        assert part is not None
        weak = means[means["scenario"] == "weak-nano"].groupby("policy")["itl_ms"].mean()
        assert part.change.value == pytest.approx(weak["budget-90-minmax"] / weak["budget-90"] - 1)
        assert own["joint"].against_joint is None

    def test_all_scenarios_come_first(self, many_run: Path) -> None:
        run = load_run(many_run)
        scenarios = [row.against_reference.scenario for row in ablation_rows(run, trial_means(run))[:9]]
        assert scenarios[:3] == [None] * 3


class TestBounds:
    def test_a_bound_is_compared_with_the_time_of_the_same_tokens(self, many_run: Path) -> None:
        run = load_run(many_run)
        bounds = bounds_of(run)
        assert {policy for policy, _ in bounds} == {name for name in policies_of(run) if "budget" in name}
        bound = bounds["budget-90", "even"]
        assert bound.bound_ms.value < bound.policy_ms.value
        assert bound.above.value == pytest.approx(bound.policy_ms.value / bound.bound_ms.value - 1)
        assert ("budget-90", None) in bounds

    def test_no_bound_is_no_row(self, make_many: Maker) -> None:
        folder = make_many(**SMALL, policies=("top-2", "top-1"), scenarios=("even",), quality=False)
        assert bounds_of(load_run(folder)) == {}


class TestPrediction:
    def test_warm_up_quality_and_other_trials_are_left_out(self, many_run: Path) -> None:
        run = load_run(many_run)
        rows = predicted_dispatches(run)
        counted = run.dispatches[run.dispatches["request"] != "p0"]
        assert len(rows) == len(counted)
        errors = dispatch_errors(rows, run.devices)
        assert errors[0].name == "all devices"
        assert [row.name for row in errors[1:]] == run.devices
        assert sum(row.n for row in errors[1:]) == errors[0].n

    def test_errors_are_relative_to_what_was_measured(self) -> None:
        rows = pd.DataFrame(
            {"measured_ms": [10.0, 10.0, 10.0, 10.0], "predicted_ms": [12.0, 9.0, 11.0, 11.0]}
        )
        row = error_row("x", rows)
        assert row.median == pytest.approx(0.1)
        assert row.bias == pytest.approx(0.1)
        assert row.p90 == pytest.approx(np.percentile([0.2, 0.1, 0.1, 0.1], 90))

    def test_a_simulated_run_is_held_against_the_run_that_it_predicts(self, make_many: Maker) -> None:
        options = {**SMALL, "policies": ("top-2", "top-1"), "scenarios": ("even", "street")}
        measured = make_many("measured-0001", **options)
        folder = make_many(
            "sim-0001", beside=measured.parent, predicts="measured-0001", off=1.2, seed=8, **options
        )
        run = load_run(folder)
        predicted = predicted_trials(run)
        assert predicted is not None
        assert len(predicted.pairs) == 2 * 2 * 2
        assert 0 < error_row("all", predicted.pairs).bias < 0.3
        assert predicted_dispatches(run).empty
        page = render_report(run)
        assert "This simulated run predicts measured-0001: over 8 trials" in page
        assert "predicted-trials" in page

    def test_other_repeats_are_compared_by_their_means(self, make_many: Maker) -> None:
        options = {**SMALL, "policies": ("top-2", "top-1"), "scenarios": ("even",), "quality": False}
        measured = make_many("measured-0001", **(options | {"repeats": 3}))
        folder = make_many(
            "sim-0001", beside=measured.parent, predicts="measured-0001", **(options | {"repeats": 1})
        )
        predicted = predicted_trials(load_run(folder))
        assert predicted is not None
        assert list(predicted.pairs["repeat"]) == [-1, -1]

    def test_a_run_that_is_not_there_is_said(self, make_many: Maker) -> None:
        folder = make_many(
            **SMALL, policies=("top-2", "top-1"), scenarios=("even",), quality=False, predicts="gone-7"
        )
        page = render_report(load_run(folder))
        assert "The run gone-7 is not beside this one" in page

    def test_the_order_of_policies_is_counted_by_scenario(self) -> None:
        pairs = pd.DataFrame(
            {
                "policy": ["a", "b", "c"],
                "scenario": "s",
                "repeat": 0,
                "measured_ms": [1.0, 2.0, 3.0],
                "predicted_ms": [1.0, 3.0, 2.5],
            }
        )
        assert order_agreement(pairs) == (2, 3)


def test_the_front_holds_what_no_other_beats() -> None:
    def point(name: str, across: float, latency: float) -> Point:
        return Point(name, None, interval(across), interval(latency))

    points = [point("a", 0, 10), point("b", 1, 8), point("c", 2, 9), point("d", 3, 5), point("e", 1, 9)]
    assert [one.policy for one in front_of(points)] == ["a", "b", "d"]


def test_a_ratio_of_nothing_is_unknown() -> None:
    assert math.isnan(bootstrap_ratio([], []).value)
