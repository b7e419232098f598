from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

from testbed.records import RecordWriter, load_run, write_manifest
from testbed.report.figures_rates import CLOSER_LEAST_S, closer_window
from testbed.report.rates import (
    Steps,
    asked_steps,
    envelope,
    extremes,
    rate_summary,
    samples_of,
    varying_scenarios,
    weighted_quantiles,
)

Maker = Callable[..., Path]
lengths = st.lists(
    st.tuples(st.floats(min_value=0.01, max_value=5), st.floats(min_value=0.1, max_value=100)), min_size=1
)


def steps_of(parts: list[tuple[float, float]]) -> tuple[Steps, float]:
    """Steps of given lengths and rates from 3 s on, and where the last of them ends."""
    spans = np.array([length for length, _ in parts])
    starts = 3.0 + np.concatenate([[0.0], np.cumsum(spans[:-1])])
    return Steps(starts, np.array([rate for _, rate in parts])), float(starts[-1] + spans[-1])


@settings(max_examples=60, deadline=None)
@given(lengths, st.floats(0, 1), st.floats(0, 1))
def test_the_integral_of_a_rate_is_the_sum_of_its_pieces(
    parts: list[tuple[float, float]], one: float, other: float
) -> None:
    steps, end_s = steps_of(parts)
    begin_s, until_s = sorted(steps.t_s[0] + share * (end_s - steps.t_s[0]) for share in (one, other))
    expected = 0.0
    for start, (length, rate) in zip(steps.t_s, parts, strict=True):
        expected += rate * max(0.0, min(until_s, start + length) - max(begin_s, start))
    (found,) = steps.megabits(np.array([begin_s]), np.array([until_s]))
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_where_no_rate_was_asked_for_there_is_no_integral() -> None:
    steps = Steps(np.array([1.0, 2.0, 3.0]), np.array([8.0, np.nan, 4.0]))
    begins, ends = np.array([0.5, 1.2, 1.8, 2.2, 3.0]), np.array([1.5, 1.8, 2.2, 2.8, 5.0])
    found = steps.megabits(begins, ends)
    assert found[[1, 4]].tolist() == pytest.approx([0.6 * 8, 8.0])
    assert np.isnan(found[[0, 2, 3]]).all()
    assert np.isnan(steps.at(np.array([0.9]))).all()


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(1, 40))
def test_an_envelope_holds_every_step_and_keeps_the_mean(
    parts: list[tuple[float, float]], stretches: int
) -> None:
    steps, end_s = steps_of(parts)
    found = envelope(steps, float(steps.t_s[0]), end_s, stretches)
    assert found.low.min() == steps.mbit.min()
    assert found.high.max() == steps.mbit.max()
    assert (found.low <= found.mean * (1 + 1e-6) + 1e-6).all()
    assert (found.mean <= found.high * (1 + 1e-6) + 1e-6).all()
    whole = steps.megabits(steps.t_s[:1], np.array([end_s]))
    assert (found.mean * np.diff(found.t_s)).sum() == pytest.approx(whole[0], rel=1e-6)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(2, 50))
def test_thinned_values_keep_the_extremes(values: list[float], most: int) -> None:
    listed = np.array(values)
    kept = extremes(listed, most)
    assert kept.size <= max(most, 2)
    assert {listed.min(), listed.max()} <= set(listed[kept])
    assert (np.diff(kept) > 0).all()


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 9)), min_size=1, max_size=30))
def test_a_weighted_quantile_is_that_of_the_values_repeated(parts: list[tuple[float, int]]) -> None:
    values, weights = np.array([value for value, _ in parts]), np.array([weight for _, weight in parts])
    repeated = np.repeat(values, weights)
    for share in (0.05, 0.5, 0.95):
        expected = np.quantile(repeated, share, method="inverted_cdf")
        assert weighted_quantiles(values, weights.astype(float), (share,)) == [expected]


def test_a_closer_look_has_as_many_changes_as_can_be_told_apart() -> None:
    fast = Steps(np.arange(0, 60, 0.02), np.ones(3000))
    slow = Steps(np.array([0.0]), np.ones(1))
    window = closer_window({("a", "downlink"): fast, ("a", "uplink"): slow}, 10.0, 40.0, changes=200)
    assert window.begin_s == 10.0
    assert ((fast.t_s > window.begin_s) & (fast.t_s < window.end_s)).sum() in (199, 200)
    assert closer_window({("a", "downlink"): slow}, 10.0, 40.0).end_s == 40.0
    assert closer_window({("a", "downlink"): fast}, 10.0, 40.0, changes=5).end_s == 10 + CLOSER_LEAST_S


def test_an_interval_is_saturated_where_something_waited_at_both_its_ends(tmp_path: Path) -> None:
    write_manifest(tmp_path, {"run": "r", "started_unix": 0.0, "state": "completed"})
    about = {"device": "nano", "direction": "downlink"}
    RecordWriter(tmp_path).write("links", "set", [{"t_s": 0.0, "cause": "set", "asked_mbit": 8.0, **about}])
    looks = [(1.0, 5), (1.2, 7), (1.4, 0), (1.6, 3), (1.8, None), (2.0, 4), (3.0, 4), (3.2, 9)]
    rows = [
        {"t_s": t_s, "interval_s": 0.2, "frame_bytes": 200_000, "backlog_bytes": waits, **about}
        for t_s, waits in looks
    ]
    RecordWriter(tmp_path).write("throughput", "t001", rows)
    run = load_run(tmp_path)
    samples = samples_of(run, asked_steps(run))
    # The look at 3.0 s does not follow that at 2.0 s: what waited when its interval began is not known.
    assert samples[samples["saturated"]]["t_s"].tolist() == [1.2, 3.2]
    assert samples["mbit"].tolist() == pytest.approx([8.0] * 8)
    assert samples["asked_mbit"].tolist() == pytest.approx([8.0] * 8)


def test_the_rates_of_a_scenario_are_those_within_its_trials(moving_run: Path) -> None:
    run = load_run(moving_run)
    assert varying_scenarios(run) == ["weak-nano"]
    steps = asked_steps(run)
    summary = rate_summary(run, steps, samples_of(run, steps))
    assert len(summary) == 8
    row = summary.iloc[0]
    trials = run.completed[run.completed["scenario"] == "weak-nano"]
    asked = steps[row["device"], row["direction"]]
    fine_s = np.concatenate(
        [np.arange(t.t_start_s, t.t_end_s, 1e-4) for t in trials.itertuples()]  # type: ignore[attr-defined]
    )
    rates = asked.at(fine_s)
    assert row["mean_mbit"] == pytest.approx(rates.mean(), rel=1e-3)
    assert row["p5_mbit"] == pytest.approx(np.quantile(rates, 0.05), rel=0.02)
    assert row["p95_mbit"] == pytest.approx(np.quantile(rates, 0.95), rel=0.02)
    changes = run.links[run.links["cause"].isin(["block", "allocate"]) & (run.links["device"] == "agx-orin")]
    assert row["block"] + row["allocate"] == len(changes) / 2
    assert summary["ratio"].between(0.98, 1.02).all()


def test_what_is_delivered_beyond_the_asked_shows(make_moving: Maker) -> None:
    run = load_run(make_moving(surplus=1.2))
    steps = asked_steps(run)
    assert rate_summary(run, steps, samples_of(run, steps))["ratio"].between(1.17, 1.23).all()


def test_a_run_without_samples_has_rates_all_the_same(make_moving: Maker) -> None:
    folder = make_moving()
    for part in (folder / "tables" / "throughput").glob("*.parquet"):
        part.unlink()
    run = load_run(folder)
    steps = asked_steps(run)
    samples = samples_of(run, steps)
    assert samples.empty
    summary = rate_summary(run, steps, samples)
    assert (summary["mean_mbit"] > 0).all()
    assert summary["ratio"].isna().all()
    assert isinstance(summary, pd.DataFrame)
