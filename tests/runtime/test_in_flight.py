"""Trials with several prompts in flight: the same texts, complete records, and requests that end in time."""

from __future__ import annotations

import json

import pytest

from payloads.board.pace import Pace
from payloads.station.specs import SpecError
from payloads.wdmoe.bs.recording import RequestFailedError
from payloads.wdmoe.bs.spec import read_spec
from payloads.wdmoe.pace import ExpertShape

TEXT = "It is a truth universally acknowledged, that a single man in possession of a good fortune"


def nothing(*_):
    """Neither progress nor check."""


def trial(lab, station, name="t001", **changes):
    """Run a trial; return its result and its tables."""
    path = lab.write_spec(**changes)
    result = station.trial(read_spec(path), name, nothing, nothing)
    tables = {
        file.stem: [json.loads(line) for line in file.read_text().splitlines()]
        for file in (path.parent / name).glob("*.jsonl")
    }
    return result, tables


def test_a_trial_with_prompts_in_flight_has_the_texts_of_one_without(make_lab):
    lab = make_lab()
    station = lab.station()
    prompts = [{"id": f"p{n}", "text": TEXT[n * 7 : n * 7 + 20 + 9 * n]} for n in range(6)]
    trials = [
        {"trial": "t001", "policy": "top-2"},
        {"trial": "t002", "policy": "top-2", "concurrency": 3},
    ]
    same = {"prompts": prompts, "trials": trials, "max_new_tokens": 7}
    _, one = trial(lab, station, **same)
    result, several = trial(lab, station, "t002", **same, serving={"prefill_chunk_tokens": 4})
    texts = {row["request"]: row["text"] for row in one["requests"]}
    assert {row["request"]: row["text"] for row in several["requests"]} == texts
    assert all(row["finish"] in ("stop", "length") for row in several["requests"])
    counted = [row for row in several["requests"] if not row["warmup"]]
    assert result["output_tokens"] == sum(row["output_tokens"] for row in counted)
    assert 0 < result["output_tokens_per_s"] < 1e6
    # Every pass is a request's chunk or a step of several; all pairs of a pass belong to somebody's token.
    passes = {}
    for row in several["dispatches"]:
        assert (row["batch"] == 1) == (row["request"] is not None) == (row["step"] is not None)
        assert row["tokens"] <= 4 or row["batch"] > 4
        passes.setdefault(row["iteration"], []).append(row)
    assert sorted(passes) == list(range(len(passes)))
    assert {row["batch"] for row in several["dispatches"]} == {1, 2, 3}
    for row in several["tokens"]:
        prompt = next(
            r["prompt_tokens"] for r in counted + several["requests"] if r["request"] == row["request"]
        )
        assert row["wanted"] == 3 * 2 * (prompt if row["position"] == 0 else 1)
        assert row["lost"] == row["rerouted"] == 0
        assert 0 < row["bs_ms"] < row["duration_ms"]
        assert row["iteration"] in passes
    assert sum(row["wanted"] for row in several["tokens"]) == sum(
        r["assignments"] for r in several["dispatches"]
    )
    decode_steps = {row["iteration"] for row in several["tokens"] if row["position"]}
    assert all(
        sum(r["position"] > 0 and r["iteration"] == n for r in several["tokens"]) <= 3 for n in decode_steps
    )
    # What a policy decided is added up for all of them, and predicted.
    assert all(row["predicted_ms"] > 0 for row in several["dispatches"])
    tokens = sum(row["prompt_tokens"] + row["output_tokens"] - 1 for row in counted)
    assert sum(row["pairs"] for row in several["selection"]) == 3 * 2 * tokens


def test_bounds_of_a_batch_are_below_what_its_tokens_took(make_lab):
    budget = {"kind": "budget", "tau": 0.7}
    trials = [{"trial": "t001", "policy": "careful", "concurrency": 2}]
    lab = make_lab()
    _, tables = trial(lab, lab.station(), policies={"careful": budget}, trials=trials)
    assert tables["tokens"]
    assert all(row["bs_ms"] <= row["bound_ms"] for row in tables["tokens"])


def test_a_trial_ends_requests_at_their_deadline_and_goes_on(make_lab):
    lab = make_lab(pace=Pace(1e15, ExpertShape(48, 80, 4).parameters * 4 / 0.002))
    serving = {"request_deadline_s": 0.1}
    _, tables = trial(lab, lab.station(), max_new_tokens=400, serving=serving, warmup_prompts=0)
    assert [row["finish"] for row in tables["requests"]] == ["deadline", "deadline"]
    assert all(row["output_tokens"] < 400 and row["e2el_ms"] < 60_000 for row in tables["requests"])


def test_a_specification_says_how_requests_are_answered(make_lab):
    lab = make_lab()
    spec = read_spec(lab.write_spec())
    assert spec.trials["t001"].concurrency == 1
    assert spec.serving == (None, None, "engine")
    for wrong, problem in [
        ({"trials": [{"trial": "t", "policy": "top-2", "concurrency": 0}]}, "concurrency: expected a whole"),
        (
            {"serving": {"prefill_chunk_tokens": 0}},
            "prefill_chunk_tokens: expected a whole number of at least 1",
        ),
        ({"serving": {"request_deadline_s": 0}}, "request_deadline_s: expected seconds above 0, got 0"),
        ({"serving": {"through": "post"}}, "through: expected one of engine, api, got 'post'"),
    ]:
        with pytest.raises(SpecError, match=problem):
            read_spec(lab.write_spec(**wrong))


def test_a_request_that_cannot_be_answered_fails_its_trial(make_lab, monkeypatch):
    lab = make_lab()
    station = lab.station()
    monkeypatch.setattr("payloads.wdmoe.bs.engine.positions_limit", lambda _config: 9)
    with pytest.raises(RequestFailedError, match="request warmup-0-p1: this model"):
        trial(lab, station, serving={"prefill_chunk_tokens": 4})
