"""Margins, verdicts and intervals of performance regions."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.records import load_run
from testbed.report.broadcast import cubes as module
from testbed.report.broadcast.ablations import losses_of
from testbed.report.broadcast.cubes import Cube, can_vary, intervals_of, resampled, without_common
from testbed.report.broadcast.facts import Facts, Panel, facts_of
from testbed.report.broadcast.regions import Region, margins, regions_of
from testbed.report.broadcast.tables import ablated_table
from tests.report.broadcast.conftest import SCHEMES

Maker = Callable[..., Path]
LEVELS = st.floats(10, 40).map(lambda value: round(value, 3))
POINTS = st.tuples(LEVELS, LEVELS)


def swept_by_hand(point: tuple[float, float], swept: list[tuple[float, float]]) -> float:
    """Return the margin by trying many points of every line between two swept ones."""
    part = np.linspace(0, 1, 801)
    best = math.inf
    for one in swept:
        for other in swept:
            lacks = [point[axis] - one[axis] - part * (other[axis] - one[axis]) for axis in (0, 1)]
            best = min(best, float(np.maximum(*lacks).min()))
    return best


@settings(max_examples=25, deadline=None)
@given(point=POINTS, swept=st.lists(POINTS, min_size=1, max_size=4))
def test_a_margin_is_what_a_search_over_the_region_finds(
    point: tuple[float, float], swept: list[tuple[float, float]]
) -> None:
    found = float(margins(np.array(point), np.array(swept)))
    assert found == pytest.approx(swept_by_hand(point, swept), abs=0.04)


@settings(max_examples=50, deadline=None)
@given(swept=st.lists(POINTS, min_size=1, max_size=5), shift=st.floats(-5, 5))
def test_a_region_moved_by_so_much_is_outside_by_at_most_so_much(
    swept: list[tuple[float, float]], shift: float
) -> None:
    region = np.array(swept)
    own = margins(region, region[None])
    assert (own <= 1e-9).all()  # no point of a region is outside it
    assert margins(region + shift, region[None]) == pytest.approx(own + shift, abs=1e-6)


def test_two_shares_that_take_turns_are_part_of_the_region() -> None:
    swept = np.array([[20.0, 30.0], [24.0, 24.0], [30.0, 20.0]])
    # Between the outer two lies (25, 25): the point in the middle does not hold the region back.
    assert float(margins(np.array([24.5, 24.5]), swept)) == pytest.approx(-0.5)
    assert float(margins(np.array([25.5, 25.5]), swept)) == pytest.approx(0.5)


@pytest.fixture(scope="module")
def usual(make_broadcast: Maker) -> tuple[Facts, list[Region]]:
    facts = facts_of(load_run(make_broadcast()))
    return facts, regions_of(facts)


def test_what_is_better_everywhere_is_outside_and_what_is_not_is_said(
    usual: tuple[Facts, list[Region]],
) -> None:
    facts, regions = usual
    region = next(r for r in regions if r.panel.scenario == "10-1")
    by_baseline: dict[str, list[str]] = {}
    for standing in region.standings:
        by_baseline.setdefault(standing.baseline, []).append(standing.verdict)
    assert by_baseline["time division"] == ["outside"] * 5
    # The best of superposition for user 2 is less than what the first point gives it: nothing is known beyond.
    assert by_baseline["superposition"][0] == "past"
    assert by_baseline["superposition"][2:] == ["outside"] * 3
    assert "inside" in by_baseline["jpeg2000 (superposition)"]
    assert set(region.points) == set(facts.schemes)
    margin = next(s.margin for s in region.standings if s.baseline == "time division" and s.share == 0.5)
    assert margin.low < 0.6 < margin.high


def test_no_difference_is_open_and_a_worse_one_inside(make_broadcast: Maker) -> None:
    two: dict[str, Any] = {"schemes": SCHEMES[:2], "shares": (0.2, 0.5, 0.8)}
    same = facts_of(load_run(make_broadcast(better=0.0, **two)))
    verdicts = [s.verdict for r in regions_of(same) for s in r.standings if s.baseline == "time division"]
    assert verdicts.count("outside") <= 2
    assert "open" in verdicts
    worse = facts_of(load_run(make_broadcast(better=-1.0, **two)))
    verdicts = [s.verdict for r in regions_of(worse) for s in r.standings if s.baseline == "time division"]
    assert set(verdicts) <= {"inside", "past"}


def test_one_pair_and_one_repeat_give_no_interval(make_broadcast: Maker) -> None:
    facts = facts_of(load_run(make_broadcast(pairs=1, repeats=1, shares=(0.5,))))
    regions = regions_of(facts)
    assert not any(s.margin.known for r in regions for s in r.standings)
    assert {s.verdict for r in regions for s in r.standings} <= {"open", "past"}


def test_an_ablation_loses_what_it_was_made_to_lose(usual: tuple[Facts, list[Region]]) -> None:
    losses = losses_of(*usual)
    assert {loss.scheme for loss in losses} == {"no CSI"}
    assert all(loss.whole == "fusion" for loss in losses)
    assert len(losses) == 2
    for change in (change for loss in losses for change in loss.changes):
        assert change.low < -0.4 < change.high


def test_the_whole_scheme_lies_outside_the_region_of_what_it_was_made_better_than(
    usual: tuple[Facts, list[Region]],
) -> None:
    facts, regions = usual
    for region in (region for region in regions if region.measure.column == "psnr_db"):
        assert [standing.share for standing in region.without] == list(region.cubes["fusion"].shares)
        assert {standing.baseline for standing in region.without} == {"no CSI"}
        assert all(standing.margin.value > 0.2 for standing in region.without)
    table = ablated_table(facts, regions)
    assert [row[2].text for row in table.rows] == ["no CSI"]
    assert all("margins" in (cell.csv or "") for cell in table.rows[0][3:])


def test_a_repeat_that_a_scheme_lacks_is_left_out_for_all(make_broadcast: Maker) -> None:
    facts = facts_of(load_run(make_broadcast(fail=1, pairs=2, shares=(0.5,), schemes=SCHEMES[:2])))
    regions = {r.panel.scenario: r for r in regions_of(facts) if r.measure.column == "psnr_db"}
    assert {cube.repeats for cube in regions["10-1"].cubes.values()} == {(1, 2)}
    assert {cube.repeats for cube in regions["10-10"].cubes.values()} == {(0, 1, 2)}


def test_sets_without_ms_ssim_have_none(make_broadcast: Maker) -> None:
    run = make_broadcast(
        sets={"natural-128": 128, "natural-32": 32}, pairs=1, repeats=1, shares=(0.5,), schemes=SCHEMES[:2]
    )
    regions = regions_of(facts_of(load_run(run)))
    assert {(r.measure.title, r.panel.set) for r in regions} == {
        ("PSNR", "natural-128"),
        ("PSNR", "natural-32"),
        ("SSIM", "natural-128"),
        ("SSIM", "natural-32"),
        ("MS-SSIM", "natural-128"),
    }


def cube(values: np.ndarray, name: str = "scheme") -> Cube:
    shares, users, models, repeats, pairs = values.shape
    return Cube(
        name,
        tuple(np.linspace(0.2, 0.8, shares)),
        tuple(f"m{number}" for number in range(models)),
        tuple(range(repeats)),
        tuple(f"p{number}" for number in range(pairs)),
        values,
        np.ones((shares, users)),
    )


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    # Fades are as different as images are, and drawn anew for each pair and repeat, as those of a campaign.
    random = np.random.default_rng(5)
    held, widths = 0, []
    for _ in range(300):
        images, fades = random.normal(0, 2, (1, 1, 1, 1, 8)), random.normal(0, 2, (1, 1, 1, 2, 8))
        one = cube(images + fades)
        interval = intervals_of(one, resampled(one))[0][0]
        held += interval.low <= 0 <= interval.high
        widths.append(interval.half_width)
    assert 0.92 <= held / 300 <= 0.98
    # Student's interval of eight pairs, whose means spread by sqrt(2**2 + 2**2 / 2).
    assert np.mean(widths) == pytest.approx(2.36 * math.sqrt(6 / 8), rel=0.1)


def test_of_one_pair_the_repeats_are_the_units() -> None:
    fades = np.array([20.0, 22.0, 24.0]).reshape(1, 1, 1, 3, 1)
    interval = intervals_of(cube(fades), resampled(cube(fades)))[0][0]
    assert interval.low < 20 < 24 < interval.high


def test_what_schemes_share_drops_out_of_comparisons_only() -> None:
    random = np.random.default_rng(6)
    hard = random.normal(0, 3, (1, 1, 1, 1, 8))
    cubes = {
        name: cube(hard + better + random.normal(0, 0.05, (2, 2, 1, 3, 8)), name)
        for name, better in (("a", 25.0), ("b", 26.0))
    }
    close = without_common(cubes, ["a", "b"])
    for name, one in cubes.items():
        assert close[name].means == pytest.approx(one.means)
        wide = intervals_of(one, resampled(one))[0][0]
        narrow = intervals_of(close[name], resampled(close[name]))[0][0]
        assert narrow.half_width < 0.1 * wide.half_width


def test_trainings_of_two_schemes_are_not_paired() -> None:
    random = np.random.default_rng(7)
    trained = random.normal(0, 1, (1, 1, 3, 1, 1)) + np.zeros((1, 1, 3, 2, 4))
    one, other = cube(trained, "one"), cube(trained + 1, "other")
    change = module.contrasts(one, other)[0]
    assert change.value == pytest.approx(-1)
    assert change.half_width > 1  # paired, it would be 0
    assert can_vary(one)


def test_panels_are_in_the_order_of_the_campaign(make_broadcast: Maker) -> None:
    facts = facts_of(
        load_run(
            make_broadcast(ratios=(1 / 12, 1 / 6), repeats=1, pairs=1, shares=(0.5,), schemes=SCHEMES[:1])
        )
    )
    assert facts.panels[0] == Panel("10-1", "natural-128", 1 / 6)
    assert [panel.scenario for panel in facts.panels] == ["10-1", "10-1", "10-10", "10-10"]
    assert isinstance(facts.images, pd.DataFrame)
    assert facts.devices == {1: "orin-nx", 2: "orin-nano"}
