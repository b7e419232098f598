"""The sentence at the top of the report, written from the data: it claims no more than its intervals do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from testbed.report.metrics import Comparison
from testbed.report.numbers import NO_SPREAD, change, number, percent_range, with_interval
from testbed.report.quality import Quality, by_scenario, quality_scenarios, rated, worst_change
from testbed.report.stats import Interval

__all__ = [
    "QUALITY_LIMIT",
    "best_of",
    "headline",
    "keeps_quality",
    "quality_clause",
    "quality_headline",
    "repeats_clause",
    "second_line",
]

QUALITY_LIMIT = 0.01
"""A policy keeps the quality where no scenario's interval of the change of perplexity reaches above this."""
GAP = "\N{NO-BREAK SPACE}"


def headline(
    comparisons: Sequence[Comparison],
    quality: Sequence[Quality],
    *,
    alone: tuple[str, Interval] | None = None,
    where: str = "",
    kept: Mapping[str, float] | None = None,
) -> str:
    """Return the sentence.

    Args:
        comparisons: Each policy against the reference; those over all scenarios win over those of one.
        quality: The quality of each policy.
        alone: Where there is nothing to compare: the one policy and its mean token latency in milliseconds.
        where: What it ran on, such as "on 4 emulated boards".
        kept: The share of the gate mass that each policy sent: what is said where quality was not measured.
    """
    tail = f", {where}" if where else ""
    over_all = _over_all(comparisons)
    if not over_all:
        if alone is None or alone[1].n == 0:
            return "No trial was completed, so there is nothing to report yet."
        value, interval = with_interval(alone[1], "ms")
        spread = (
            f" ({interval}, {repeats_clause(alone[1])})" if interval else f" ({repeats_clause(alone[1])})"
        )
        return f"{alone[0]} took {value} for a token on average{spread}{tail}; there is no other policy to compare."
    best = best_of(comparisons, quality)
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
    repeats = f"{repeats_clause(best.change)}{over}"
    spread = (
        f"(the same in {repeats})"
        if interval == NO_SPREAD
        else f"({_interval(interval, over_all)}, {repeats})"
    )
    if best.change.value < 0:
        cost = quality_clause(best.policy, quality, (kept or {}).get(best.policy))
        return f"{best.policy} cut the mean token latency by {size} {spread} {against}{cost}{tail}."
    return (
        f"{best.reference} had the lowest mean token latency{place}: the next, {best.policy}, took {size} longer "
        f"{spread}{tail}."
    )


def best_of(comparisons: Sequence[Comparison], quality: Sequence[Quality]) -> Comparison:
    """Return the comparison that the sentence speaks of.

    It is the fastest policy that keeps the quality, where one of those is faster than the reference; else the fastest.

    Args:
        comparisons: At least one.
        quality: The quality of each policy.
    """
    over_all = _over_all(comparisons)
    keeping = [c for c in over_all if keeps_quality(quality, c.policy) and _faster(c)]
    return min(keeping or over_all, key=lambda c: c.change.value)


def keeps_quality(quality: Sequence[Quality], policy: str) -> bool:
    """Return whether a policy's perplexity is shown to rise by no more than :data:`QUALITY_LIMIT` in any scenario."""
    change = worst_change(quality, policy)
    return change is not None and change.known and change.high <= QUALITY_LIMIT


def second_line(comparisons: Sequence[Comparison], quality: Sequence[Quality]) -> str:
    """Return what the sentence leaves out where there are several policies: how many keep the quality, and the fastest.

    Args:
        comparisons: As for :func:`headline`.
        quality: The quality of each policy.
    """
    over_all = [c for c in _over_all(comparisons) if worst_change(quality, c.policy) is not None]
    if len(over_all) < 2:
        return ""
    reference, best = over_all[0].reference, best_of(comparisons, quality)
    keeping = [c for c in over_all if keeps_quality(quality, c.policy)]
    everywhere = " in every scenario" if len(quality_scenarios(quality)) > 1 else ""
    limit = f"{QUALITY_LIMIT:.0%}".replace("%", f"{GAP}%")
    verb = "keeps" if len(keeping) == 1 else "keep"
    counted = (
        f"{len(keeping)} of {len(over_all)} policies {verb} the perplexity within {limit} of "
        f"{reference}’s{everywhere}, interval included"
    )
    if best.policy not in {c.policy for c in keeping}:
        none = "none of them was found to be faster" if keeping else "so none is named for it"
        return f"{counted}; {none}."
    fastest = min(over_all, key=lambda c: c.change.value)
    if fastest.policy == best.policy:
        return f"{counted}; {best.policy} is the fastest of all."
    # With several policies this is a list, not a claim: each has its own interval in the table below.
    cost = quality_clause(fastest.policy, quality).removeprefix(",").removeprefix(";").strip()
    return f"{counted}. The fastest of all was {fastest.policy}: {change(fastest.change)[0]}, {cost}."


def quality_headline(quality: Sequence[Quality], where: str = "") -> str:
    """Return the sentence of a run in which only the quality was measured.

    Args:
        quality: The quality of each policy; at least one.
        where: What it ran on.
    """
    tail = f", {where}" if where else ""
    changed = [entry for entry in quality if entry.change is not None and entry.scenario is None]
    reference = next((entry for entry in quality if entry.change is None), quality[0])
    first = (
        f"{reference.policy} has a perplexity of {number(reference.perplexity.value)} on the held-out text"
    )
    if not changed:
        return f"{first}{tail}; latency was not measured in this run."
    least, most = (pick(changed, key=_by_change) for pick in (min, max))
    if len(changed) == 1:
        others = f"that of {least.policy} is {_with_interval(least)} against it"
    else:
        others = (
            f"those of the other {len(changed)} policies lie between {_with_interval(least)} against it "
            f"({least.policy}) and {_with_interval(most)} ({most.policy})"
        )
    return f"{first}; {others}{tail}. Latency was not measured in this run."


def quality_clause(policy: str, quality: Sequence[Quality], kept: float | None = None) -> str:
    """Return what the policy costs in perplexity, as the end of a sentence.

    Args:
        policy: The policy.
        quality: The quality of each policy.
        kept: The share of the gate mass that it sent, if known: it stands in where quality was not measured.
    """
    entry = rated(quality, policy, None)
    if entry is None or entry.change is None:
        unmeasured = "; its quality was not measured"
        if kept is None:
            return unmeasured
        return f"{unmeasured}, and it kept {number(100 * kept)}{GAP}% of the gate mass"
    changes = [own.change for own in by_scenario(quality, policy) if own.change is not None]
    if len(changes) > 1:
        texts = [change(own)[0] for own in sorted(changes, key=lambda own: own.value)]
        if texts[0] != texts[-1]:
            return f", at {texts[0].removesuffix(f'{GAP}%')} to {texts[-1]} perplexity by scenario"
    value, _ = change(entry.change)
    if entry.change.known and not entry.change.excludes_zero:
        _, interval = change(entry.change)
        return f", with no difference found in perplexity ({interval})"
    return f", at {value} perplexity"


def repeats_clause(interval: Interval) -> str:
    """Return "5 repeats" or "1 repeat"."""
    return f"{interval.n} repeat" if interval.n == 1 else f"{interval.n} repeats"


def _over_all(comparisons: Sequence[Comparison]) -> list[Comparison]:
    return [c for c in comparisons if c.scenario is None] or list(comparisons)


def _faster(comparison: Comparison) -> bool:
    return comparison.change.excludes_zero and comparison.change.value < 0


def _by_change(entry: Quality) -> float:
    return entry.change.value if entry.change is not None else 0.0


def _with_interval(entry: Quality) -> str:
    value, interval = change(entry.change) if entry.change is not None else ("", "")
    return f"{value} [{interval}]" if interval else value


def _interval(text: str, compared: Sequence[Comparison]) -> str:
    """Return "95 % interval 43 to 49 %", saying so where it holds for several policies together."""
    policies = len({c.policy for c in compared})
    widened = f" for {policies} comparisons" if policies > 1 else ""
    return f"95{GAP}% interval{widened} {text}"
