from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from testbed.records import RecordWriter, load_run, write_manifest
from testbed.records.run import Run
from testbed.report.breakdown import PARTS, bottlenecks, mean_parts, timeline, token_parts

spans = st.tuples(*[st.floats(min_value=0, max_value=50) for _ in range(4)])
layers = st.lists(st.lists(spans, min_size=1, max_size=4), min_size=1, max_size=4)


def make(folder: Path, token: list[list[tuple[float, ...]]], *, own_ms: float = 1.0, **change: Any) -> Run:
    """One measured token after the first: for each layer and device (delay, downlink, on device, uplink) in ms."""
    write_manifest(folder, {"run": "r", "started_unix": 0.0, "state": "completed"})
    now, dispatches = 5.0, []
    for layer, devices in enumerate(token):
        now += own_ms / 1000
        ends = []
        for number, (delay, down, work, up) in enumerate(devices):
            send = now + (delay if number else 0) / 1000
            received, replied = send + down / 1000, send + (down + work) / 1000
            done = replied + up / 1000
            ends.append(done)
            dispatches.append(
                {
                    "layer": layer,
                    "device": f"d{number}",
                    "t_send_s": send,
                    "t_received_s": received,
                    "t_started_s": received,
                    "t_computed_s": replied,
                    "t_replied_s": replied,
                    "t_done_s": done,
                }
                | change
            )
        now = max(ends)
    now += own_ms / 1000
    counts = dict.fromkeys(("tokens", "assignments", "dropped", "bytes_out", "bytes_back"), 1)
    key = {"trial": "t001", "request": "p1"}
    RecordWriter(folder).write_trial(
        {"trial": "t001", "order": 0, "policy": "a", "scenario": "s", "repeat": 0, "state": "completed"}
        | {"t_start_s": 5.0, "t_end_s": now},
        {
            "requests": [
                key
                | {"warmup": False, "prompt_tokens": 3, "output_tokens": 2, "t_start_s": 4.0}
                | {"ttft_ms": 1000.0, "e2el_ms": 1000.0 + (now - 5.0) * 1000}
            ],
            "tokens": [
                key | {"position": 1, "token": 7, "t_s": now, "duration_ms": (now - 5.0) * 1000},
            ],
            "dispatches": [key | counts | {"step": 1} | row for row in dispatches],
        },
    )
    return load_run(folder)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(token=layers)
def test_the_parts_sum_exactly_to_the_time_of_the_token(
    tmp_path_factory: pytest.TempPathFactory, token: list[list[tuple[float, ...]]]
) -> None:
    run = make(tmp_path_factory.mktemp("run"), token, own_ms=2.0)
    (row,) = token_parts(run).to_dict("records")
    assert sum(row[part] for part in PARTS) == pytest.approx(row["duration_ms"], abs=1e-6)
    assert row["bs_ms"] == pytest.approx(2.0 * (len(token) + 1), abs=1e-6)
    assert min(row[part] for part in PARTS) >= -1e-6


def test_the_parts_are_those_of_the_definition(tmp_path: Path) -> None:
    (row,) = token_parts(make(tmp_path, [[(0, 1, 4, 2), (0, 3, 10, 4)]])).to_dict("records")
    assert row["downlink_ms"] == pytest.approx(2)
    assert row["compute_ms"] == pytest.approx(7)
    assert row["uplink_ms"] == pytest.approx(3)
    assert row["waiting_ms"] == pytest.approx(17 - (7 + 17) / 2)
    assert row["bs_ms"] == pytest.approx(2)


def test_a_token_without_all_time_stamps_is_left_out(tmp_path: Path) -> None:
    run = make(tmp_path, [[(0, 1, 4, 2)]], t_received_s=None)
    assert token_parts(run).empty
    assert mean_parts(token_parts(run), first=False).empty


def test_the_bottleneck_is_the_device_that_answers_last(tmp_path: Path) -> None:
    shares = bottlenecks(make(tmp_path, [[(0, 1, 4, 2), (0, 3, 10, 4)], [(0, 9, 9, 9), (0, 1, 1, 1)]]))
    assert list(zip(shares["layer"], shares["device"], shares["share"], strict=True)) == [
        (0, "d1", 1.0),
        (1, "d0", 1.0),
    ]


def test_all_tokens_of_a_run_keep_the_identity(whole_run: Path) -> None:
    run = load_run(whole_run)
    parts = token_parts(run)
    measured = run.tokens.merge(run.requests[~run.requests["warmup"]][["trial", "request"]])
    assert len(parts) == len(measured)
    np.testing.assert_allclose(parts[list(PARTS)].sum(axis=1), parts["duration_ms"], atol=1e-6)
    shares = bottlenecks(run).groupby(["policy", "scenario", "layer"])["share"].sum()
    np.testing.assert_allclose(shares, 1.0)


def test_the_timeline_is_of_the_median_token_and_lies_within_it(whole_run: Path) -> None:
    run = load_run(whole_run)
    parts = token_parts(run)
    line = timeline(run, parts, "top-2", "even")
    assert line is not None
    chosen = parts[(parts["policy"] == "top-2") & (parts["scenario"] == "even") & (parts["position"] > 0)]
    below = (chosen["duration_ms"] <= line.duration_ms).mean()
    assert 0.45 <= below <= 0.55
    assert line.dispatches["send_ms"].min() >= 0
    assert line.dispatches["done_ms"].max() <= line.duration_ms + 1e-6
    assert timeline(run, parts, "top-2", "no such scenario") is None
