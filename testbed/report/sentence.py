"""The one sentence at the top of the report, written from the data: it claims no more than its interval does."""

from __future__ import annotations

from collections.abc import Sequence

from testbed.report.metrics import Comparison, Quality
from testbed.report.numbers import change, percent_range, with_interval
from testbed.report.stats import Interval

__all__ = ["headline", "quality_clause", "repeats_clause"]


def headline(
    comparisons: Sequence[Comparison],
    quality: Sequence[Quality],
    *,
    alone: tuple[str, Interval] | None = None,
    where: str = "",
) -> str:
    """Return the sentence.

    Args:
        comparisons: Each policy against the reference; those over all scenarios win over those of one.
        quality: The perplexity of each policy.
        alone: Where there is nothing to compare: the one policy and its mean token latency in milliseconds.
        where: What it ran on, such as "on 4 emulated boards".
    """
    tail = f", {where}" if where else ""
    over_all = [c for c in comparisons if c.scenario is None] or list(comparisons)
    if not over_all:
        if alone is None or alone[1].n == 0:
            return "No trial was completed, so there is nothing to report yet."
        value, interval = with_interval(alone[1], "ms")
        spread = (
            f" ({interval}, {repeats_clause(alone[1])})" if interval else f" ({repeats_clause(alone[1])})"
        )
        return f"{alone[0]} took {value} for a token on average{spread}{tail}; there is no other policy to compare."
    best = min(over_all, key=lambda c: c.change.value)
    place = f" in the scenario {best.scenario}" if best.scenario is not None else ""
    against = f"against {best.reference}{place}"
    size, interval = percent_range(best.change)
    if not best.change.known:
        way = "lower" if best.change.value < 0 else "higher"
        return (
            f"In its one repeat, {best.policy}'s mean token latency was {size} {way} than {best.reference}'s{place}"
            f"{tail}; a single repeat gives no interval, so this shows no difference yet."
        )
    if not best.change.excludes_zero:
        value, interval = change(best.change)
        return (
            f"No difference was found in mean token latency between {best.policy} and {best.reference}{place}: "
            f"{value} ({_interval(interval, over_all)}, {repeats_clause(best.change)}){tail}."
        )
    scenarios = len({c.scenario for c in comparisons if c.scenario is not None})
    over = f" of {scenarios} scenarios" if best.scenario is None and scenarios else ""
    spread = f"({_interval(interval, over_all)}, {repeats_clause(best.change)}{over})"
    if best.change.value < 0:
        cost = quality_clause(best.policy, quality)
        return f"{best.policy} cut the mean token latency by {size} {spread} {against}{cost}{tail}."
    return (
        f"{best.reference} had the lowest mean token latency{place}: the next, {best.policy}, took {size} longer "
        f"{spread}{tail}."
    )


def quality_clause(policy: str, quality: Sequence[Quality]) -> str:
    """Return what the policy costs in perplexity, as the end of a sentence."""
    rated = next((entry for entry in quality if entry.policy == policy), None)
    if rated is None or rated.change is None:
        return "; its quality was not measured"
    value, _ = change(rated.change)
    if rated.change.known and not rated.change.excludes_zero:
        _, interval = change(rated.change)
        return f", with no difference found in perplexity ({interval})"
    return f", at {value} perplexity"


def repeats_clause(interval: Interval) -> str:
    """Return "5 repeats" or "1 repeat"."""
    return f"{interval.n} repeat" if interval.n == 1 else f"{interval.n} repeats"


def _interval(text: str, compared: Sequence[Comparison]) -> str:
    """Return "95 % interval 43 to 49 %", saying so where it was widened for several policies."""
    policies = len({c.policy for c in compared})
    widened = f", widened for {policies} comparisons," if policies > 1 else ""
    return f"95\N{NO-BREAK SPACE}% interval{widened} {text}"
