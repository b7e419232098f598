"""What the base station is told about a run follows from the campaign file, and is read there as it was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from payloads.wdmoe.bs.spec import read_spec
from payloads.wdmoe.latency import DeviceSpeed, ExpertShape, LatencyModel
from testbed.campaigns.spec import load_prompts, run_spec
from testbed.campaigns.trials import trials_of
from testbed.config.campaign import Campaign, load_campaign
from testbed.errors import InputError

CAMPAIGN = """\
campaign: first
inventory: lab.yaml
model: tiny-mixtral
experts: int8
prompts:
  file: prompts.jsonl
  prefill_chunk_tokens: 32
  request_deadline_s: 60
  through: api
policies:
  - name: plain
    selection: {kind: top_k, k: 2}
  - name: careful
    selection: {kind: top_k, k: 2}
    on_loss: {kind: replica, then: wait, deadline_factor: 5, wait_s: 3}
    activations: int8
scenarios:
  - name: alone
    links: {default: {downlink_mbit: 8, uplink_mbit: 8}}
  - name: three
    links: {default: {downlink_mbit: 8, uplink_mbit: 8}}
    concurrency: 3
"""


def campaign_of(folder: Path, *, prompts: int) -> Campaign:
    lines = [json.dumps({"id": f"p{number}", "text": "so it was"}) for number in range(prompts)]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    (folder / "run.yaml").write_text(CAMPAIGN)
    return load_campaign(folder / "run.yaml")


def told(campaign: Campaign) -> dict[str, Any]:
    latency = LatencyModel(("left",), ExpertShape(8, 16, 2), (DeviceSpeed(1e9, None, 0.1),))
    return run_spec(campaign, "first-0001", "~/run", trials_of(campaign), latency, [])


def test_only_what_a_policy_says_is_told(tmp_path: Path) -> None:
    spec = told(campaign_of(tmp_path, prompts=3))
    assert spec["loss"] == {
        "careful": {"kind": "replica", "then": "wait", "deadline_factor": 5.0, "wait_s": 3.0}
    }
    assert spec["activations"] == {"careful": "int8"}
    assert spec["serving"] == {"prefill_chunk_tokens": 32, "request_deadline_s": 60.0, "through": "api"}
    assert {(one["scenario"], one["concurrency"]) for one in spec["trials"]} == {("alone", 1), ("three", 3)}


def test_the_base_station_reads_what_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(told(campaign_of(tmp_path, prompts=3))))
    spec = read_spec(tmp_path / "spec.json")
    assert {(one.policy, one.concurrency) for one in spec.trials.values()} == {
        ("plain", 1),
        ("plain", 3),
        ("careful", 1),
        ("careful", 3),
    }
    assert spec.loss_of("plain").kind == "fail"
    assert spec.loss_of("careful")[:3] == ("replica", "wait", 5.0)
    assert spec.loss_of("careful").wait_s == 3.0
    assert spec.activations == {"careful": "int8"}
    assert tuple(spec.serving) == (32, 60.0, "api")


def test_more_requests_at_once_than_prompts_are_refused_with_the_line(tmp_path: Path) -> None:
    campaign = campaign_of(tmp_path, prompts=2)
    with pytest.raises(InputError) as caught:
        load_prompts(campaign)
    problem = "scenarios[1].concurrency: 3 requests at once were asked for, and there are 2 prompts"
    assert str(caught.value) == f"{tmp_path / 'run.yaml'}:22: {problem}"
