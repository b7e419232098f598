from __future__ import annotations

import json
from pathlib import Path

import pytest

from testbed.records import load_run
from testbed.report import write_trace


def test_a_trace_has_every_dispatch_and_its_slices_nest(whole_run: Path, tmp_path: Path) -> None:
    run = load_run(whole_run)
    trace = json.loads(write_trace(run, tmp_path / "trace.json").read_text())
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert sum(event["name"].endswith(" downlink") for event in slices) == len(run.dispatches)
    assert sum(event["name"].startswith("token ") for event in slices) == len(run.tokens)
    total = sum(event["dur"] for event in slices if event["name"].endswith(" uplink"))
    expected = (run.dispatches["t_done_s"] - run.dispatches["t_replied_s"]).sum() * 1e6
    assert total == pytest.approx(expected, rel=0.01)
    names = {event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "process_name"}
    assert names == {"base station", "agx-orin", "orin-nx", "orin-nano", "xavier-nx"}
    assert any(event["ph"] == "C" and event["args"]["W"] > 1 for event in trace["traceEvents"])
