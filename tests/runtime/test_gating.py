"""Expert selection."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from payloads.wdmoe import gating
from payloads.wdmoe.gating import POLICY_KINDS, PolicyKind, check_selection, select


@st.composite
def routed(draw):
    """The router's choice: descending weights that sum to about one."""
    tokens, chosen = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    raw = draw(arrays(np.float32, (tokens, chosen), elements=st.floats(1 / 1024, 1, width=32)))
    weights = -np.sort(-raw, axis=1)
    index = np.stack([np.array(draw(st.permutations(range(8)))[:chosen]) for _ in range(tokens)])
    return index, weights / weights.sum(axis=1, keepdims=True)


@given(routed(), st.integers(1, 6), st.booleans())
def test_top_k_keeps_the_largest_and_their_mass(case, k, renormalise):
    index, weights = case
    keep, kept = select({"kind": "top_k", "k": k, "renormalise": renormalise}, index, weights)
    chosen = weights.shape[1]
    assert (keep.sum(axis=1) == min(k, chosen)).all()
    assert (kept[~keep] == 0).all()
    assert kept.dtype == weights.dtype
    if k >= chosen:
        assert (kept == weights).all()
    for row, mask in zip(weights, keep, strict=True):
        assert not (~mask).any() or row[mask].min() >= row[~mask].max()
    if renormalise:
        np.testing.assert_allclose(kept.sum(axis=1), weights.sum(axis=1), rtol=1e-5)
    else:
        assert (kept[keep] == weights[keep]).all()


def test_a_token_never_loses_its_last_expert_and_others_keep_their_bits(monkeypatch):
    def drop(settings, index, weights):
        keep = np.ones(index.shape, bool)
        keep[0] = False
        return keep

    monkeypatch.setitem(POLICY_KINDS, "drop", PolicyKind(drop, {}, lambda *_: True, "a test"))
    weights = np.array([[0.3, 0.7], [0.1, 0.9]], np.float32)
    keep, kept = select({"kind": "drop"}, np.array([[1, 2], [3, 4]]), weights)
    assert keep.tolist() == [[False, True], [True, True]]
    assert kept[0].tolist() == [0.0, pytest.approx(1.0)]
    assert (kept[1] == weights[1]).all()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"kind": "best"}, "kind: expected one of top_k, got 'best'"),
        ({}, "kind: expected one of top_k, got None"),
        ({"kind": "top_k"}, "k: expected a whole number of at least 1, got None"),
        ({"kind": "top_k", "k": 0}, "k: expected a whole number of at least 1, got 0"),
        ({"kind": "top_k", "k": True}, "k: expected a whole number of at least 1, got True"),
        ({"kind": "top_k", "k": 1, "renormalise": 1}, "renormalise: expected true or false, got 1"),
        ({"kind": "top_k", "k": 1, "K": 1}, "K: unknown setting of the kind top_k"),
    ],
)
def test_wrong_settings_are_named(settings, problem):
    assert check_selection(settings) == [problem]


def test_checking_a_policy_needs_neither_torch_nor_numpy():
    code = (
        "import sys; from payloads.wdmoe.gating import check_selection; import testbed.artifacts.placement\n"
        "assert not check_selection({'kind': 'top_k', 'k': 2})\n"
        "assert not {'torch', 'numpy', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert gating.POLICY_KINDS["top_k"].source
