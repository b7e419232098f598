"""Routing that is drawn, and routing that is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from testbed.errors import InputError
from testbed.simulate.routing import (
    Drawn,
    Traced,
    best_experts,
    draw_routing,
    drawn_settings,
    read_traces,
    write_traces,
)


def draw(settings: Drawn = Drawn(), seed: int = 1, **lengths: tuple[int, int]) -> dict[str, Traced]:  # noqa: B008
    return draw_routing(
        settings, layers=3, experts=8, experts_per_token=2, lengths=lengths or {"q": (400, 3)}, seed=seed
    )


def test_what_is_drawn_is_what_a_router_gives() -> None:
    trace = draw()["q"]
    assert trace.index.shape == trace.weights.shape == (3, 402, 2)
    assert trace.scores.sum(axis=2) == pytest.approx(1, abs=1e-5)
    assert trace.weights.sum(axis=2) == pytest.approx(1, abs=1e-5)
    first, second = np.moveaxis(np.take_along_axis(trace.scores, trace.index, axis=2), 2, 0)
    assert (first >= second).all()
    assert (second >= np.sort(trace.scores, axis=2)[:, :, -2]).all()
    assert (trace.index[:, :, 0] != trace.index[:, :, 1]).all()


def test_steps_are_the_prompt_and_then_one_token_each() -> None:
    trace = draw()["q"]
    assert [len(trace.routing(0, step).index) for step in range(trace.steps)] == [400, 1, 1]
    assert (trace.routing(2, 2).scores == trace.scores[2, 401:]).all()


def test_draws_follow_from_the_seed_and_the_request_alone() -> None:
    alone, together = draw(a=(20, 2)), draw(b=(20, 2), a=(20, 2))
    assert (alone["a"].scores == together["a"].scores).all()
    assert (together["a"].scores != together["b"].scores).any()
    assert (draw(seed=2, a=(20, 2))["a"].scores != alone["a"].scores).any()


def test_skew_makes_experts_popular() -> None:
    def uneven(skew: float) -> float:
        index = draw(Drawn(skew=skew))["q"].index[0]
        return float(np.bincount(index.ravel(), minlength=8).std())

    assert uneven(0.0) < uneven(0.5) < uneven(2.0)


def test_correlation_makes_neighbours_want_the_same() -> None:
    def same(correlation: float) -> float:
        index = draw(Drawn(correlation=correlation, skew=0.0))["q"].index[0, :, 0]
        return float((index[1:] == index[:-1]).mean())

    assert same(0.0) < 0.25 < same(0.9)


def test_all_experts_can_be_chosen() -> None:
    scores = np.array([[0.2, 0.5, 0.3]], np.float32)
    assert best_experts(scores, 3).tolist() == [[1, 2, 0]]
    assert best_experts(scores, 1).tolist() == [[1]]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"drawn_routing": []}, "an object was expected"),
        (
            {"drawn_routing": {"skewed": 1}},
            "unknown key 'skewed'; there are: concentration, correlation, skew",
        ),
        ({"drawn_routing": {"skew": "much"}}, "skew: a number was expected, not 'much'"),
        ({"drawn_routing": {"correlation": 1}}, "from 0 to below 1"),
        ({"drawn_routing": {"concentration": -1}}, "from 0 to 100"),
    ],
)
def test_a_mistake_in_a_shape_is_named(config: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        drawn_settings(config)


def test_traces_come_back_as_they_were(tmp_path: Path) -> None:
    traces = draw(a=(20, 2), b=(3, 1))
    write_traces(tmp_path / "deep" / "traces.npz", traces)
    back = read_traces(tmp_path / "deep" / "traces.npz")
    assert back is not None
    assert list(back) == ["a", "b"]
    for name, trace in traces.items():
        for part in ("index", "weights", "scores", "tokens"):
            assert np.array_equal(getattr(trace, part), getattr(back[name], part))
        assert back[name].prompt_tokens == trace.prompt_tokens


def test_a_cache_that_is_not_whole_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "traces.npz"
    assert read_traces(path) is None
    write_traces(path, draw(a=(20, 2)))
    path.write_bytes(path.read_bytes()[:500])
    assert read_traces(path) is None
    with path.open("wb") as file:
        np.savez(file, about=np.array({"format": 1}, dtype=object))  # a pickle: never read
    assert read_traces(path) is None
