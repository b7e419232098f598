from __future__ import annotations

import math

import pytest

from testbed.report.metrics import Comparison
from testbed.report.quality import Quality
from testbed.report.sentence import headline
from testbed.report.stats import Interval

WHERE = "on 4 emulated boards"
PERPLEXITY = Interval(20.0, 18.0, 22.0, 16)


def compared(value: float, low: float, high: float, n: int = 5, **more: object) -> Comparison:
    given = {
        "policy": "joint",
        "reference": "top-2",
        "scenario": None,
        "policy_ms": 20.0,
        "reference_ms": 30.0,
    }
    return Comparison(**(given | more), change=Interval(value, low, high, n))  # type: ignore[arg-type]


def costs(value: float, low: float, high: float) -> list[Quality]:
    return [
        Quality("top-2", PERPLEXITY, 4000, None),
        Quality("joint", PERPLEXITY, 4000, Interval(value, low, high, 16)),
    ]


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-")


def test_a_winner_is_named_with_how_much_how_sure_and_at_what_cost() -> None:
    each = [compared(-0.4, -0.5, -0.3, scenario=name) for name in ("even", "weak")]
    text = plain(headline([compared(-0.461, -0.49, -0.43), *each], costs(0.0061, 0.005, 0.0072), where=WHERE))
    assert text == (
        "joint cut the mean token latency by 46 % (95 % interval 43 to 49 %, 5 repeats of 2 scenarios) against top-2, "
        "at +0.61 % perplexity, on 4 emulated boards."
    )


def test_an_interval_across_zero_finds_no_difference() -> None:
    text = plain(headline([compared(-0.04, -0.10, 0.02)], costs(0.01, 0.0, 0.02), where=WHERE))
    assert text.startswith("No difference was found in mean token latency between joint and top-2")
    assert "-10 to +2 %" in text
    assert "cut" not in text


def test_a_slower_policy_does_not_win() -> None:
    text = plain(headline([compared(0.2, 0.1, 0.3)], []))
    assert text == (
        "top-2 had the lowest mean token latency: the next, joint, took 20 % longer (95 % interval 10 to 30 %, "
        "5 repeats of 0 scenarios)."
    ).replace(" of 0 scenarios", "")


def test_one_repeat_shows_no_difference_yet() -> None:
    text = plain(headline([compared(-0.3, math.nan, math.nan, 1)], []))
    assert "30.0 % lower" in text
    assert "gives no interval" in text


def test_an_undecided_change_of_quality_is_not_called_a_cost() -> None:
    text = plain(headline([compared(-0.4, -0.5, -0.3)], costs(0.002, -0.01, 0.014)))
    assert "no difference found in perplexity (-1.0 to +1.4 %)" in text


def test_unmeasured_quality_is_said() -> None:
    assert "its quality was not measured" in headline([compared(-0.4, -0.5, -0.3)], [])


def test_one_scenario_is_named() -> None:
    text = headline([compared(-0.4, -0.5, -0.3, scenario="even")], [])
    assert "against top-2 in the scenario even" in text


def test_the_best_of_several_policies_is_named() -> None:
    others = [compared(-0.2, -0.3, -0.1, policy="b"), compared(-0.4, -0.5, -0.3, policy="c")]
    assert headline(others, []).startswith("c cut")


@pytest.mark.parametrize(
    ("alone", "start"),
    [
        (None, "No trial was completed"),
        (("top-2", Interval(41.2, 40.0, 42.4, 3)), "top-2 took 41.2 ms for a token on average"),
    ],
)
def test_without_two_policies_nothing_is_compared(alone: tuple[str, Interval] | None, start: str) -> None:
    assert plain(headline([], [], alone=alone)).startswith(start)
