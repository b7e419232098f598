"""Which token is taken, and what is said of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from payloads.wdmoe.bs.asks import Sampling
from payloads.wdmoe.bs.sampling import Sampler, score


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(-8, 8), min_size=2, max_size=12),
    st.floats(0.0, 3.0),
    st.floats(0.05, 1.0),
    st.integers(0, 2**31),
)
def test_drawn_tokens_are_among_the_most_likely_and_depend_on_the_seed_alone(row, temperature, top_p, seed):
    logits = torch.tensor(row)
    drawn = [Sampler(Sampling(temperature, top_p, seed)) for _ in range(2)]
    tokens = [[one.draw(logits) for _ in range(5)] for one in drawn]
    assert tokens[0] == tokens[1]
    chances = torch.softmax(logits.double() / max(temperature, 1e-5), -1)
    for token in tokens[0]:
        assert float(chances[chances > chances[token]].sum()) < top_p + 1e-5
    assert Sampler(Sampling(0.0, top_p, seed)).draw(logits) == int(logits.argmax())
    scored = score(logits, tokens[0][0], 3)
    assert scored.logprob == pytest.approx(float(torch.log_softmax(logits, -1)[tokens[0][0]]), abs=1e-6)
    assert [chance for _, chance in scored.top] == sorted((c for _, c in scored.top), reverse=True)
    assert len(scored.top) == min(3, len(row))
