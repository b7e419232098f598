from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from testbed.records import load_run
from testbed.report.checks import checks_of
from testbed.report.metrics import compare, measured_tokens, serving_rows, trial_means
from testbed.report.quality import quality_of

Maker = Callable[..., Path]


def test_warm_up_and_failed_trials_are_left_out(make_run: Maker) -> None:
    run = load_run(make_run(repeats=2, prompts=2, tokens=4, fail=3))
    tokens = measured_tokens(run)
    assert "t003" not in set(tokens["trial"])
    assert "p0" not in set(tokens["request"])
    assert len(trial_means(run)) == 7


def test_each_trial_counts_once_in_a_mean(whole_run: Path) -> None:
    run = load_run(whole_run)
    rows = {(row.metric, row.policy, row.scenario): row for row in serving_rows(run)}
    assert len(rows) == 4 * 2 * 2
    means = trial_means(run)
    own = means[(means["policy"] == "top-1") & (means["scenario"] == "even")]
    row = rows["itl", "top-1", "even"]
    assert row.mean.n == 3
    assert row.mean.value == pytest.approx(own["itl_ms"].mean())
    assert row.n == 3 * 3 * 7
    assert row.median <= row.p95 <= row.p99


def test_tpot_is_the_time_after_the_first_token_over_the_other_tokens(whole_run: Path) -> None:
    run = load_run(whole_run)
    request = run.requests[~run.requests["warmup"]].iloc[0]
    means = trial_means(run).set_index("trial")
    own = run.requests[(run.requests["trial"] == request["trial"]) & ~run.requests["warmup"]]
    expected = ((own["e2el_ms"] - own["ttft_ms"]) / (own["output_tokens"] - 1)).mean()
    assert means.loc[request["trial"], "tpot_ms"] == pytest.approx(expected)


def test_the_first_policy_of_the_campaign_is_the_reference(whole_run: Path) -> None:
    comparisons = compare(load_run(whole_run))
    assert [c.scenario for c in comparisons] == [None, "even", "weak-nano"]
    assert {(c.policy, c.reference) for c in comparisons} == {("top-1", "top-2")}
    assert all(c.change.value < 0 and c.change.excludes_zero for c in comparisons)


def test_policies_that_do_the_same_are_not_told_apart(make_run: Maker) -> None:
    run = load_run(make_run(effect=0.0, repeats=4, prompts=2, tokens=4, noise=0.05))
    over_all = next(c for c in compare(run) if c.scenario is None)
    assert not over_all.change.excludes_zero


def test_only_repeats_that_both_completed_are_pairs(make_run: Maker) -> None:
    run = load_run(make_run(repeats=3, prompts=2, tokens=4, stop_after=10))
    assert all(c.change.n <= 3 for c in compare(run))
    over_all = next(c for c in compare(run) if c.scenario is None)
    assert over_all.change.n == 2


def test_perplexity_is_compared_window_by_window(whole_run: Path) -> None:
    reference, other = quality_of(load_run(whole_run))
    assert reference.change is None
    assert other.change is not None
    assert other.change.excludes_zero
    # The windows differ by far more than the policies do; only pairing shows the difference.
    assert other.perplexity.low < reference.perplexity.value < other.perplexity.high


def states(run_folder: Path) -> dict[str, str]:
    run = load_run(run_folder)
    return {check.title: check.state for check in checks_of(run, run.energy())}


def test_a_sound_run_is_trusted(whole_run: Path) -> None:
    assert "bad" not in states(whole_run).values()


def test_what_is_wrong_is_marked(make_run: Maker) -> None:
    folder = make_run(repeats=1, prompts=1, tokens=3, fail=2, state="failed")
    (folder / "tables" / "power" / "xavier-nx.parquet").unlink()
    for part in (folder / "tables" / "links").glob("*-probe.parquet"):
        part.unlink()
    found = states(folder)
    assert found["trials completed"] == "bad"
    assert found["links"] == "bad"
    assert found["boards with full power"] == "bad"
    assert found["clock error"] == "good"


def test_lost_dispatches_are_noticed(make_run: Maker) -> None:
    folder = make_run(repeats=1, prompts=1, tokens=3)
    run = load_run(folder)
    cut = run.dispatches[~((run.dispatches["step"] == 1) & (run.dispatches["layer"] == 2))]
    object.__setattr__(run, "dispatches", cut)
    check = next(check for check in checks_of(run, run.energy()) if check.title == "tokens with full records")
    assert check.state == "bad"
    assert check.value == "8 of 12"
