"""Rows travel in an element type of their own, and arrive as near as that type allows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from payloads.station.specs import SpecError
from payloads.wdmoe.bs.spec import read_spec
from payloads.wdmoe.wire_rows import decode_rows, encode_rows, wire_dtype
from payloads.wire.frames import DTYPE_BYTES, HEADER_BYTES, RESULT_HEAD_BYTES, row_bytes

PROMPT = torch.tensor([list(range(5, 45))])
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), DTYPES, st.floats(-12, 4), st.integers(0, 2**31))
def test_int8_rows_are_off_by_half_a_step_of_their_own_scale(count, width, dtype, exponent, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = (torch.randn(count, width, generator=generator) * 10.0**exponent).to(dtype)
    data = encode_rows(rows, "int8")
    assert data.shape == (count, row_bytes("int8", width))
    got = decode_rows(data, "int8", torch.float32)
    step = rows.float().abs().amax(dim=1, keepdim=True) / 127
    assert ((got - rows.float()).abs() <= step * 0.5001 + torch.finfo(torch.float32).tiny).all()


@given(DTYPES, st.sampled_from(sorted(DTYPE_BYTES)), st.integers(0, 2**31))
def test_other_rows_are_rounded_once(dtype, wire, seed):
    rows = torch.randn(3, 7, generator=torch.Generator().manual_seed(seed)).to(dtype)
    data = encode_rows(rows, wire)
    assert data.shape == (3, row_bytes(wire, 7))
    assert torch.equal(decode_rows(data, wire, dtype), rows.to(getattr(torch, wire)).to(dtype))


def test_rows_of_zeros_stay_zeros_and_what_is_no_number_is_not_hidden():
    rows = torch.tensor([[0.0, 0.0], [1.0, float("nan")], [float("inf"), 1.0]])
    got = decode_rows(encode_rows(rows, "int8"), "int8", torch.float32)
    assert torch.equal(got[0], rows[0])
    assert not got[1:].isfinite().all(dim=1).any()


@pytest.fixture
def lab(make_lab):
    return make_lab(dtype="bfloat16")


def test_wider_rows_change_nothing_and_int8_rows_little(lab, checkpoints):
    station = lab.station()
    station.ping()
    dispatcher = station._dispatcher
    local = AutoModelForCausalLM.from_pretrained(checkpoints["published"], dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        expected = local(input_ids=PROMPT).logits
    for activations, most in (("float32", 0.0), ("int8", 0.25)):
        dispatcher.activations = activations
        dispatcher.booking.rows.clear()
        with torch.inference_mode():
            got = station.model(input_ids=PROMPT).logits
        assert got.dtype == expected.dtype
        off = (got - expected).float().pow(2).mean().sqrt() / expected.float().pow(2).mean().sqrt()
        assert (off == 0) if most == 0 else (0 < off < most)
        row = row_bytes(activations, 48)
        for sent in dispatcher.booking.rows:
            assert sent.bytes_back == HEADER_BYTES + RESULT_HEAD_BYTES + sent.assignments * row


def test_a_policy_says_what_its_rows_travel_as(lab):
    """In a trial as in the decisions, and only there."""
    station = lab.station()
    path = lab.write_spec(activations={"top-2": "int8"}, warmup_prompts=0)
    spec = read_spec(path)
    sizes = {}
    for trial, policy in (("t001", "top-2"), ("t002", "top-1")):
        station.trial(spec, trial, lambda *_: None, lambda: None)
        rows = (path.parent / trial / "dispatches.jsonl").read_text().splitlines()
        sizes[policy] = {
            (row["bytes_back"] - HEADER_BYTES - RESULT_HEAD_BYTES) / row["assignments"]
            for row in map(json.loads, rows)
        }
    assert sizes == {"top-2": {52.0}, "top-1": {96.0}}
    assert station._dispatcher.activations is None


def test_the_latency_model_knows_the_rows(lab):
    model = read_spec(lab.write_spec()).latency
    narrow = model.with_activations("int8")
    assert (model.row_bytes, narrow.row_bytes) == (48 * 2, 48 + 4)
    assert type(narrow).from_json(narrow.as_json()) == narrow
    rates = np.full(3, 1.0)
    assert narrow.costs(rates, rates).up_s[0] / model.costs(rates, rates).up_s[0] == pytest.approx(52 / 96)


def test_unknown_rows_are_refused(lab):
    with pytest.raises(SpecError, match=r"activations of top-2: one of .*int8.* was expected, not 'int4'"):
        read_spec(lab.write_spec(activations={"top-2": "int4"}))
    assert wire_dtype(None, torch.bfloat16) == "bfloat16"
