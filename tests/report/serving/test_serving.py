"""What the report makes of several requests at once, and of devices that were lost."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings

from testbed.errors import InputError
from testbed.records import RecordWriter, load_run, write_manifest
from testbed.records.iterations import overlapping, passes_of_tokens
from testbed.records.run import Run
from testbed.report import render_report, write_trace
from testbed.report.blocks import Alert, Note
from testbed.report.breakdown import PARTS, bottlenecks, timeline, token_parts
from testbed.report.checks import checks_of
from testbed.report.conditions import conditions_of
from testbed.report.losses import Absence, absences, loss_rows, loss_rules
from testbed.report.metrics import serving_rows
from testbed.report.prediction import predicted_dispatches
from testbed.report.sections_serving import losses_sections, metrics_section
from testbed.report.tables_serving import events_table
from testbed.report.throughput import cut_off, ladders, throughput_rows, trial_throughput
from testbed.simulate.observed import observe

Maker = Callable[..., Path]


@pytest.fixture(scope="session")
def run(served: Path) -> Run:
    return load_run(served)


def changed(run: Run, **tables: pd.DataFrame) -> Run:
    """The run with other tables; what follows from them is worked out anew."""
    return replace(run, **tables)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 99), prompts=st.integers(2, 6), tokens=st.integers(1, 5), losses=st.booleans())
def test_the_parts_sum_exactly_however_requests_share_the_passes(
    make_served: Maker, seed: int, prompts: int, tokens: int, losses: bool
) -> None:
    name = f"served-{seed}-{prompts}-{tokens}-{losses}"
    run = load_run(
        make_served(name, repeats=1 + losses, prompts=prompts, tokens=tokens, losses=losses, seed=seed)
    )
    parts = token_parts(run)
    assert len(parts) == len(run.tokens) - (run.tokens["request"] == "p0").sum()
    np.testing.assert_allclose(parts[list(PARTS)].sum(axis=1), parts["duration_ms"], atol=1e-6)
    assert (parts[list(PARTS)] >= -1e-6).all(axis=None)
    alone = parts["scenario"] == "one"
    assert (parts.loc[alone, "others_ms"] == 0).all()


def test_the_layers_of_a_token_and_of_the_others_are_all_that_lay_between(run: Run) -> None:
    """Each pass's layers are in the time of every request that was under way: found here pass by pass."""
    parts, dispatches = token_parts(run), run.numbered.dispatches
    layers = dispatches.groupby(["trial", "iteration", "layer"]).agg(
        begin=("t_send_s", "min"), end=("t_done_s", "max")
    )
    busy = layers.reset_index()
    for row in parts.sample(40, random_state=1).to_dict("records"):
        since = row["t_s"] - row["duration_ms"] / 1000
        mine = busy[
            (busy["trial"] == row["trial"])
            & (busy["begin"] > since - 1e-6)
            & (busy["end"] < row["t_s"] + 1e-6)
        ]
        total_ms = (mine["end"] - mine["begin"]).sum() * 1000
        assert row["duration_ms"] - row["bs_ms"] == pytest.approx(total_ms, abs=1e-6)


def test_a_first_token_has_every_piece_of_its_prompt(run: Run) -> None:
    tokens, dispatches = run.numbered
    prompts = run.requests.set_index(["trial", "request"])["prompt_tokens"]
    first = tokens[tokens["position"] == 0]
    pieces = passes_of_tokens(first, dispatches).groupby("place").size()
    for place, row in enumerate(first.to_dict("records")):
        assert pieces[place] == math.ceil(prompts[row["trial"], row["request"]] / 8)
    later = tokens[tokens["position"] > 0]
    assert len(passes_of_tokens(later, dispatches)) == len(later)


def test_a_run_without_numbered_passes_reads_as_one_with_them(make_served: Maker) -> None:
    """As runs of before have it: one request at a time, whose passes are told by request and token."""
    run = load_run(make_served("old", repeats=1, losses=False))
    names = run.trials.loc[run.trials["scenario"] == "one", "trial"]
    # One pass a prompt: pieces are told apart by their numbers only.
    tokens = run.tokens[run.tokens["trial"].isin(names) & (run.tokens["position"] > 0)]
    dispatches = run.dispatches[run.dispatches["trial"].isin(names) & (run.dispatches["step"] > 0)]
    new = changed(run, tokens=tokens, dispatches=dispatches)
    old = changed(
        run,
        tokens=tokens.assign(iteration=pd.NA).astype({"iteration": "Int64"}),
        dispatches=dispatches.assign(iteration=pd.NA).astype({"iteration": "Int64"}),
    )
    ours, theirs = token_parts(old), token_parts(new)
    pd.testing.assert_frame_equal(ours.drop(columns="iteration"), theirs.drop(columns="iteration"))
    pd.testing.assert_frame_equal(bottlenecks(old), bottlenecks(new))


def test_who_was_last_is_counted_for_each_token_of_a_pass(run: Run) -> None:
    shares = bottlenecks(run)
    assert np.allclose(shares.groupby(["policy", "scenario", "layer"])["share"].sum(), 1.0)
    later = token_parts(run).query("position > 0").groupby(["policy", "scenario"]).size()
    counted = shares.groupby(["policy", "scenario"])["tokens"].max()
    assert counted.to_dict() == later.to_dict()


def test_a_timeline_sets_the_passes_of_others_apart(run: Run) -> None:
    parts = token_parts(run)
    several = run.dispatches.loc[run.dispatches["batch"] > 1, ["trial", "iteration"]].drop_duplicates()
    line = timeline(run, parts.merge(several, on=["trial", "iteration"]), "drop", "four")
    assert line is not None
    assert line.batch > 1
    assert line.others
    own = line.dispatches["send_ms"].min()
    assert all(0 <= begin < end <= own for begin, end in line.others)


def test_throughput_is_the_tokens_over_the_window_of_the_measured_requests(run: Run) -> None:
    rates = trial_throughput(run).set_index("trial")
    for trial, own in run.requests[~run.requests["warmup"]].groupby("trial"):
        length_s = (own["t_start_s"] + own["e2el_ms"] / 1000).max() - own["t_start_s"].min()
        assert rates.loc[trial, "tokens_per_s"] == pytest.approx(own["output_tokens"].sum() / length_s)
    rows = {(row.policy, row.scenario): row for row in throughput_rows(run)}
    assert [row.concurrency for key, row in rows.items() if key[0] == "drop"] == [1, 2, 4]
    assert rows["drop", "four"].tokens_per_s.n == 2
    assert rows["drop", "four"].tokens_per_s.value > rows["drop", "one"].tokens_per_s.value


def test_scenarios_are_held_together_only_where_nothing_else_differs(run: Run) -> None:
    (ladder,) = ladders(run)
    assert (ladder.name, ladder.steps) == ("one", {1: "one", 2: "two", 4: "four"})
    campaign = run.manifest["campaign"].replace(
        "name: two, links: {}", "name: two, links: {a: {delay_ms: 1}}"
    )
    (ladder,) = ladders(replace(run, manifest=run.manifest | {"campaign": campaign}))
    assert ladder.steps == {1: "one", 4: "four"}


def test_what_was_cut_off_has_no_end_to_end_time(run: Run) -> None:
    requests = run.requests.copy()
    last = requests.index[-1]
    requests.loc[last, ["finish", "e2el_ms"]] = "deadline", 1e9
    cut = changed(run, requests=requests)
    assert cut_off(run) == {}
    assert cut_off(cut) == {"deadline": 1}
    times = [row for row in serving_rows(cut) if row.metric in ("e2el", "tpot")]
    assert max(row.mean.value for row in times) < 1e6
    whole = [row for row in serving_rows(run) if row.metric in ("e2el", "tpot")]
    assert sum(row.n for row in times) == sum(row.n for row in whole) - 2
    alert = metrics_section(cut).blocks[0]
    assert isinstance(alert, Alert)
    assert alert.text.startswith("1 measured request was not answered in full (1 deadline)")


def test_what_a_client_saw_stands_beside_the_base_stations_own_times(run: Run) -> None:
    seen = run.requests.assign(
        client_ttft_ms=run.requests["ttft_ms"] + 2, client_e2el_ms=run.requests["e2el_ms"] + 3
    )
    means = {
        (row.metric, row.policy, row.scenario): row.mean.value
        for row in serving_rows(changed(run, requests=seen))
    }
    for metric, more in (("ttft", 2), ("e2el", 3)):
        own = means[metric, "drop", "four"]
        assert means[f"client_{metric}", "drop", "four"] == pytest.approx(own + more)
    assert not any(row.metric.startswith("client") for row in serving_rows(run))


def test_what_tokens_lost_is_told_by_policy(run: Run) -> None:
    rows = {(row.policy, row.scenario): row for row in loss_rows(run)}
    assert len(rows) == 6
    for (policy, scenario), row in rows.items():
        assert (row.lost, row.late, row.back) == (1, 0, 1), scenario
        assert (row.dropped > 0, row.rerouted > 0) == (policy == "drop", policy == "replicas")
        assert (row.touched > 0) == (policy == "drop")
        assert row.wanted is not None
        assert row.wanted > row.dropped + row.rerouted
    assert loss_rules(run.manifest) == {
        "replicas": "another holder of the expert is asked, else the token goes without",
        "drop": "the token goes without",
    }


@pytest.mark.parametrize("then", ["", ", then: null", ", then: fail"])
def test_a_rule_without_a_second_way_is_that_the_trial_fails(then: str) -> None:
    text = f"policies:\n  - {{name: careful, on_loss: {{kind: replica{then}}}}}\n  - {{name: plain}}\n"
    assert loss_rules({"campaign": text}) == {
        "careful": "another holder of the expert is asked, else the trial fails",
        "plain": "",
    }


def test_a_device_is_away_until_it_is_taken_back() -> None:
    rows = [
        (1.0, "a", "lost"),
        (1.5, "a", "deadline"),
        (2.0, "b", "deadline"),
        (2.5, None, "failed"),
        (3.0, "a", "readmitted"),
        (3.5, "a", "readmitted"),
    ]
    events = pd.DataFrame(rows, columns=["t_s", "device", "event"])
    assert absences(events, 4.0) == [Absence("a", 1.0, 3.0), Absence("b", 2.0, 4.0)]
    assert absences(events.iloc[:0], 4.0) == []


def test_the_page_names_losses_throughput_and_conditions(run: Run, make_served: Maker) -> None:
    page = render_report(run)
    for part in (
        "Lost and returning devices",
        "losses-table",
        "events-table",
        "throughput-table",
        "ladder-itl-0",
    ):
        assert part in page
    assert conditions_of(run) == [
        ("experts", "int8"),
        ("activations", "int8 (drop); as computed (replicas)"),
        ("requests at once", "1, 2, 4"),
        ("prompts read by", "8 tokens"),
    ]
    assert "activations: int8 (drop); as computed (replicas)" in page
    checks = {check.title: check for check in checks_of(run, run.energy())}
    assert checks["data plane"].value == "TLS 1.3"
    assert checks["losses of a device"].value == "6"
    assert checks["tokens with full records"].state == "good"
    quiet = load_run(make_served("quiet", repeats=1, losses=False))
    (section,) = losses_sections(quiet, {})
    assert section.blocks[-1] == Note("No device was lost or late in this run.")


def test_a_page_has_the_first_of_very_many_events(run: Run) -> None:
    table = events_table(run, {}, most=3)
    assert len(table.rows) == 3
    assert table.caption == f"The first 3 of {len(run.events)} events"
    assert len(events_table(run, {}, most=len(run.events)).rows) == len(run.events)


def test_a_run_that_says_nothing_of_losses_has_no_such_section(whole_run: Path) -> None:
    assert losses_sections(load_run(whole_run), {}) == []


def test_requests_at_once_lie_side_by_side_in_the_trace(run: Run, tmp_path: Path) -> None:
    events = json.loads(write_trace(run, tmp_path / "trace.json").read_text())["traceEvents"]
    station = [event for event in events if event["ph"] == "X" and event["pid"] == 1]
    lanes: dict[int, list[dict[str, Any]]] = {}
    for event in station:
        lanes.setdefault(event["tid"], []).append(event)
    assert len(lanes) == 1 + 2 * 4
    for own in lanes.values():
        own.sort(key=lambda event: event["ts"])
        for before, after in pairwise(own):
            assert after["ts"] >= before["ts"] + before["dur"] - 1
    marks = [event for event in events if event["ph"] == "i"]
    assert len(marks) == len(run.events)
    assert {mark["name"] for mark in marks} == {"lost", "rerouted", "dropped", "readmitted"}


def test_a_pass_of_several_requests_is_predicted_once(run: Run) -> None:
    predicted = run.dispatches.assign(predicted_ms=1.0)
    rows = predicted_dispatches(changed(run, dispatches=predicted))
    assert len(rows) == (run.dispatches["request"] != "p0").sum()  # all but the warm-ups, each once
    assert set(rows["stage"]) == {"prompt", "decode"}


def test_only_trials_of_one_request_at_a_time_tell_about_the_model(run: Run) -> None:
    assert overlapping(run) == set(run.trials.loc[run.trials["scenario"] != "one", "trial"])
    alone = run.trials.loc[run.trials["scenario"] == "one", "trial"].tolist()
    troubled = changed(run, events=run.events.head(len(alone)).assign(trial=alone))
    with pytest.raises(
        InputError, match="8 trials answered several requests at once; 4 trials lost a device"
    ):
        observe(troubled)


def test_a_pass_of_several_requests_has_neither_request_nor_token(tmp_path: Path) -> None:
    """Through the writer and back: null stays null, and a run of before the numbers is whole."""
    write_manifest(tmp_path, {"run": "r", "started_unix": 0.0, "state": "completed"})
    row = {"trial": "t001", "layer": 0, "device": "a", "tokens": 2, "assignments": 2, "dropped": 0}
    row |= {"bytes_out": 1, "bytes_back": 1, "t_send_s": 1.0, "t_done_s": 2.0}
    writer = RecordWriter(tmp_path)
    writer.write("dispatches", "t001", [row | {"iteration": 3, "batch": 2}])
    writer.write("dispatches", "t002", [row | {"trial": "t002", "request": "p1", "step": 0}])
    read = load_run(tmp_path).dispatches
    assert read["request"].isna().tolist() == [True, False]
    assert read["step"].isna().tolist() == [True, False]
    assert read["iteration"].isna().tolist() == [False, True]
