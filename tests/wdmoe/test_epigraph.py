"""One allocation for several layers: the sum of their latencies is least."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payloads.wdmoe.allocation.bandwidth import kept_share
from payloads.wdmoe.allocation.epigraph import epigraph
from payloads.wdmoe.allocation.interior import GAP, Epigraph, solve
from payloads.wdmoe.allocation.minmax import minmax
from tests.wdmoe.allocation import (
    TIGHT,
    WIDE,
    demand_of,
    latency_s,
    links_of,
    problems,
    random_shares,
    rule_of,
    slsqp,
    total_s,
)

DIRECTIONS = st.sampled_from(["same", "separate"])
ALL = {"kinds": ("linear", "shannon", "table"), "limits": (WIDE, TIGHT)}


@settings(max_examples=25)
@given(problems(layers=4, **ALL), DIRECTIONS)
def test_shares_are_shares_and_better_than_equal_ones(problem, directions):
    demands, links, floor = problem
    devices = links.states.shape[1]
    shares = epigraph(demands, links, (0.8, 0.5), directions, floor)
    bands = np.array([[0.8], [0.5]])
    assert (shares >= kept_share(floor, devices) * bands * (1 - 1e-9)).all()
    assert (shares.sum(axis=1) <= bands[:, 0] * (1 + 1e-9)).all()
    assert total_s(demands, links, shares) <= total_s(demands, links, bands / devices * np.ones((2, devices)))
    if directions == "same":
        assert shares[0] / 0.8 == pytest.approx(shares[1] / 0.5)


@settings(max_examples=25)
@given(problems(layers=3), DIRECTIONS, st.integers(0, 2**32 - 1))
def test_nothing_drawn_at_random_is_better(problem, directions, seed):
    demands, links, floor = problem
    generator = np.random.default_rng(seed)
    best = epigraph(demands, links, directions=directions, floor=floor)
    best_s = total_s(demands, links, best)
    for size in (1.0, 1.0, 0.1, 0.01):
        other = random_shares(generator, links.states.shape[1], floor, directions)
        assert total_s(demands, links, best + size * (other - best)) >= best_s * (1 - 3 * GAP)


@settings(max_examples=25)
@given(problems(**ALL), DIRECTIONS)
def test_one_layer_is_what_bisection_finds(problem, directions):
    demands, links, floor = problem
    alone = latency_s(demands[0], links, minmax(demands[0], links, directions=directions, floor=floor))
    found = total_s(demands, links, epigraph(demands, links, directions=directions, floor=floor))
    assert found <= alone * (1 + 3 * GAP)
    if directions == "same" or (links.rule.kind != "table" and links.rule.max_mbit > 1000):
        assert found >= alone * (1 - 1e-8)


@settings(max_examples=25)
@given(problems(most=5, layers=3), DIRECTIONS)
def test_a_general_solver_finds_nothing_better(problem, directions):
    demands, links, floor = problem
    best_s = total_s(demands, links, epigraph(demands, links, directions=directions, floor=floor))
    assert best_s <= total_s(demands, links, slsqp(demands, links, floor, directions)) * (1 + 3 * GAP)


@settings(max_examples=25)
@given(problems(layers=4), DIRECTIONS)
def test_in_a_hurry_it_is_nearly_as_good(problem, directions):
    demands, links, floor = problem
    best_s = total_s(demands, links, epigraph(demands, links, directions=directions, floor=floor))
    quick = epigraph(demands, links, directions=directions, floor=floor, quick=True)
    assert total_s(demands, links, quick) <= best_s * (1 + 1.1e-5)


@settings(max_examples=25)
@given(problems(layers=3, **ALL), DIRECTIONS)
def test_in_a_hurry_it_is_never_worse_than_the_shares_in_force(problem, directions):
    demands, links, floor = problem
    quick = epigraph(demands, links, directions=directions, floor=floor, quick=True)
    assert total_s(demands, links, quick) <= total_s(demands, links, links.shares) * (1 + 1e-9)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("devices", [3, 40])
def test_the_gap_bounds_how_far_it_is_from_the_least(same, devices):
    generator = np.random.default_rng(2)
    work = 10 ** generator.uniform(-4, -1, (2, 5, devices))
    problem = Epigraph(
        fixed_s=generator.uniform(0, 0.01, (5, devices)),
        work=work,
        sigma=None,
        loaded=np.ones((5, devices), bool),
        low=np.full((2, devices), 0.001),
        same=same,
    )

    def value(shares):
        return float((problem.fixed_s + (work / shares[:, None]).sum(axis=0)).max(axis=1).sum())

    exact, rough = solve(problem, 1e-8), solve(problem, 1e-2)
    assert exact.gap <= 1e-8
    assert value(exact.shares) <= value(rough.shares) * (1 + 1e-8)
    assert value(rough.shares) * (1 - rough.gap) <= value(exact.shares) * (1 + 1e-8)


def test_layers_that_send_nothing_do_not_count():
    generator = np.random.default_rng(4)
    links = links_of(generator, 5, rule_of("shannon"))
    demand = demand_of(generator, 5)
    nothing = type(demand)(*(each * 0 for each in demand[:3]), np.zeros(5, bool))
    assert epigraph([nothing], links) == pytest.approx(np.full((2, 5), 0.2))
    assert epigraph([nothing, demand], links) == pytest.approx(epigraph([demand], links))


@pytest.mark.parametrize("directions", ["same", "separate"])
def test_a_thousand_devices(directions):
    generator = np.random.default_rng(5)
    links = links_of(generator, 1024, rule_of("shannon"))
    demands = [demand_of(generator, 1024) for _ in range(2)]
    shares = epigraph(demands, links, directions=directions)
    assert total_s(demands, links, shares) < 0.8 * total_s(demands, links, links.shares)
