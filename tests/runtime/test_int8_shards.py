"""Splitting with experts as 8 bits: within half a scale of what they were, whatever the chunks and the layout."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from testbed.artifacts import making
from testbed.artifacts.manifest import load_manifest
from testbed.artifacts.quantise import LEVELS, NotFiniteError, as_float32, quantise_rows
from testbed.artifacts.shard import shard_model
from testbed.errors import InputError


@pytest.mark.parametrize("layout", ["published", "fused"])
def test_experts_as_8_bits(checkpoints, shards, tmp_path, monkeypatch, layout):
    done = shard_model(checkpoints[layout], tmp_path / "whole", experts="int8", name="small")
    assert done.manifest.weights == "int8"
    assert done.manifest.dtype == "float16"
    # Neither the size of the chunks nor the number of workers nor the layout is seen in the objects.
    monkeypatch.setattr(making, "CHUNK_BYTES", 1000)
    other = "fused" if layout == "published" else "published"
    small = shard_model(checkpoints[other], tmp_path / "small", experts="int8", name="small", workers=3)
    assert small.manifest.experts == done.manifest.experts
    plain = load_manifest(shards[layout] / "manifest.json")
    assert done.manifest.base_station == plain.base_station
    for one, other_one in zip(done.manifest.experts, plain.experts, strict=True):
        held = load_file(tmp_path / "whole" / "objects" / one.object)
        exact = load_file(shards[layout] / "objects" / other_one.object)
        assert one.bytes == (tmp_path / "whole" / "objects" / one.object).stat().st_size
        for name in ("gate_up", "down"):
            weights, scales = held[f"{name}_proj"], held[f"{name}_scale"]
            wanted = exact[f"{name}_proj"].float()
            assert weights.dtype == torch.int8
            assert scales.dtype == torch.float32
            assert torch.equal(scales, wanted.abs().amax(1) / LEVELS)
            error = (weights.float() * scales[:, None] - wanted).abs()
            assert (error <= 0.5001 * scales[:, None]).all()
            assert (weights.abs().amax(1) == LEVELS).all()


def test_weights_that_are_no_numbers_are_refused_as_8_bits(checkpoints, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(checkpoints["published"], model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.block_sparse_moe.experts.3.w3.weight"][5, 7] = float("nan")
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(InputError, match="not a finite number, so it cannot be made 8 bits"):
        shard_model(model, tmp_path / "out", experts="int8")
    with pytest.raises(InputError, match="expected int8, got 'int4'"):
        shard_model(model, tmp_path / "out", experts="int4")


DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@given(
    st.sampled_from(sorted(DTYPES)), st.integers(1, 6), st.integers(1, 9), st.integers(-150, 120), st.data()
)
@settings(max_examples=40, deadline=None)
def test_quantised_rows_are_within_half_a_scale(dtype, rows, columns, exponent, data):
    numbers = st.floats(-2, 2, width=32)
    drawn = data.draw(st.lists(numbers, min_size=rows * columns, max_size=rows * columns), label="mantissas")
    scale = 2.0 ** max(exponent, -130)
    weights = (torch.tensor(drawn).reshape(rows, columns).double() * scale).to(DTYPES[dtype])
    weights = weights.clamp(torch.finfo(weights.dtype).min, torch.finfo(weights.dtype).max)
    raw = weights.view(torch.uint8).numpy().tobytes()
    wide = as_float32(raw, dtype).reshape(rows, columns)
    assert np.array_equal(wide, weights.float().numpy())
    small, scales = quantise_rows(wide.copy())
    assert small.dtype == np.int8
    assert np.abs(small.astype(int)).max(initial=0) <= LEVELS
    error = np.abs(small.astype(np.float64) * scales[:, None].astype(np.float64) - wide)
    # Half a scale, what float32 rounds of the division, and what a subnormal scale is too coarse for.
    allowed = scales[:, None].astype(np.float64) * 0.5001 + 128 * 2.0**-149
    assert (error <= allowed).all()


def test_infinite_weights_are_no_rows():
    for bad in (np.inf, -np.inf, np.nan):
        with pytest.raises(NotFiniteError):
            quantise_rows(np.array([[1.0, bad]], np.float32))
