from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from testbed.report import stats
from testbed.report.numbers import MINUS, NO_SPREAD, change, decimals_of, number, percent_range, with_interval
from testbed.report.stats import (
    Interval,
    bootstrap_mean,
    bootstrap_ratio,
    paired_change,
    percentiles,
    student_quantile,
)

GAP = "\N{NO-BREAK SPACE}"
positive = st.floats(min_value=0.01, max_value=1e4)


@pytest.mark.parametrize("repeats", [2, 3, 5, 8])
def test_intervals_of_few_repeats_hold_the_truth_as_often_as_they_say(
    repeats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain percentile bootstrap would hold it in about 50 % of the cases with two, and 75 % with three."""
    monkeypatch.setattr(stats, "RESAMPLES", 800)
    generator = np.random.default_rng(3)
    trials = 400
    hits = 0
    for seed in range(trials):
        interval = bootstrap_mean(generator.normal(100, 5, repeats), seed=seed)
        hits += interval.low <= 100 <= interval.high
    assert 0.90 <= hits / trials <= 0.99


def test_pairing_takes_out_what_repeats_share() -> None:
    generator = np.random.default_rng(5)
    drift = generator.normal(100, 20, 6)
    reference, other = drift, drift * 0.9 + generator.normal(0, 0.1, 6)
    paired = paired_change(reference, other)
    unpaired = paired_change(reference, other[::-1])
    assert paired.excludes_zero
    assert not unpaired.excludes_zero
    assert paired.value == pytest.approx(-0.1, abs=0.01)


def test_one_repeat_gives_an_estimate_and_no_interval() -> None:
    interval = paired_change([10.0], [5.0])
    assert interval.value == -0.5
    assert not interval.known
    assert not interval.excludes_zero


def test_no_repeats_give_nothing() -> None:
    assert math.isnan(bootstrap_mean([]).value)
    assert bootstrap_mean([math.nan]).n == 0


def test_equal_repeats_are_certain() -> None:
    interval = bootstrap_mean([4.0, 4.0, 4.0])
    assert (interval.value, interval.low, interval.high) == (4.0, 4.0, 4.0)


def test_the_same_data_give_the_same_interval() -> None:
    assert bootstrap_mean([1.0, 2.0, 4.0]) == bootstrap_mean([1.0, 2.0, 4.0])


def test_a_higher_level_is_a_longer_interval() -> None:
    values = [1.0, 2.0, 4.0, 3.0, 2.5]
    assert bootstrap_mean(values, level=0.99).half_width > bootstrap_mean(values).half_width


def test_a_ratio_weighs_its_units_by_their_denominators() -> None:
    assert bootstrap_ratio([10.0, 40.0], [10.0, 10.0]).value == 2.5
    assert bootstrap_ratio([10.0, 40.0], [10.0, 90.0]).value == 0.5


@settings(max_examples=40, deadline=None)
@given(st.lists(positive, min_size=2, max_size=8))
def test_an_interval_holds_its_estimate_and_stays_positive(values: list[float]) -> None:
    interval = bootstrap_mean(values)
    assert 0 <= interval.low <= interval.value * (1 + 1e-12)
    assert interval.high >= interval.value * (1 - 1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=6))
def test_swapping_two_policies_inverts_the_change(pairs: list[tuple[float, float]]) -> None:
    first, second = (list(side) for side in zip(*pairs, strict=True))
    forward, back = paired_change(first, second), paired_change(second, first)
    assert (1 + forward.value) * (1 + back.value) == pytest.approx(1)


def test_values_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="not pairs"):
        paired_change([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="positive"):
        paired_change([1.0, 0.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("probability", "degrees", "quantile"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.3027), (0.975, 4, 2.7764), (0.95, 9, 1.8331), (0.975, 200, 1.9719)],
)
def test_quantiles_are_those_of_the_printed_tables(probability: float, degrees: int, quantile: float) -> None:
    assert student_quantile(probability, degrees) == pytest.approx(quantile, abs=1e-4)


def test_percentiles_of_nothing_are_missing() -> None:
    assert percentiles([1.0, 2.0, 3.0], (50,)) == (2.0,)
    assert all(math.isnan(value) for value in percentiles([]))


@pytest.mark.parametrize(
    ("interval", "texts"),
    [
        (Interval(38.4231, 37.91, 38.94, 5), (f"38.4{GAP}ms", f"37.9 to 38.9{GAP}ms")),
        (Interval(38.4231, 38.20, 38.64, 5), (f"38.4{GAP}ms", f"38.2 to 38.6{GAP}ms")),
        (Interval(1234.5, 1110.0, 1359.0, 5), (f"1230{GAP}ms", f"1110 to 1360{GAP}ms")),
        (Interval(38.4231, math.nan, math.nan, 1), (f"38.4{GAP}ms", "")),
        (Interval(4.0, 4.0, 4.0, 3), (f"4.00{GAP}ms", NO_SPREAD)),
        # Repeats of a simulation that differ by next to nothing: no seven digits follow from that.
        (Interval(3.39874123, 3.39874121, 3.39874125, 2), (f"3.399{GAP}ms", NO_SPREAD)),
        (Interval(12345.67, 12345.66, 12345.68, 5), (f"12346{GAP}ms", NO_SPREAD)),
        # A change near nought is as exact as its interval is narrow.
        (Interval(0.0001, -0.21, 0.2, 5), (f"0.0{GAP}ms", f"{MINUS}0.2 to 0.2{GAP}ms")),
    ],
)
def test_a_number_has_as_many_digits_as_its_interval_supports(
    interval: Interval, texts: tuple[str, str]
) -> None:
    assert with_interval(interval, "ms") == texts


def test_changes_have_their_sign_and_sizes_have_none() -> None:
    fall = Interval(-0.4613, -0.49, -0.43, 5)
    assert change(fall) == (f"{MINUS}46{GAP}%", f"{MINUS}49 to {MINUS}43{GAP}%")
    assert percent_range(fall) == (f"46{GAP}%", f"43 to 49{GAP}%")
    assert change(Interval(-0.247, -0.42, 0.18, 3))[0] == f"{MINUS}25{GAP}%"
    assert change(Interval(0.0061, 0.0049, 0.0072, 5))[0] == f"+0.61{GAP}%"


@given(st.floats(min_value=-1e9, max_value=1e9))
def test_three_digits_are_within_half_a_percent(value: float) -> None:
    text = number(value).replace(MINUS, "-")
    assert float(text) == pytest.approx(value, rel=0.0051, abs=1e-12)
    assert decimals_of(Interval(value, math.nan, math.nan, 1)) >= -7
