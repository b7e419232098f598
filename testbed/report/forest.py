"""The table of the first screen: each policy against the reference, in latency with a drawing, and in quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from testbed.report.figures_quality import POINTS_WITH_NAMES
from testbed.report.metrics import Comparison
from testbed.report.numbers import change, number
from testbed.report.quality import Quality, rated
from testbed.report.stats import Interval
from testbed.report.style import letter_of

__all__ = ["Forest", "ForestRow", "Group", "forest_of"]

FOREST_ROWS = 6


@dataclass(frozen=True)
class ForestRow:
    """One comparison, with the places of its marks in percent of the drawing's width.

    Attributes:
        policy: The policy.
        letter: Its letter in the figure beside; empty where that has names.
        reference: The policy that it is compared with.
        scenario: The scenario; "all scenarios" where they are taken together.
        reference_ms: The reference's mean token latency.
        policy_ms: The policy's.
        change: The change as text.
        interval: Its interval as text; empty where there is none.
        verdict: faster, slower or open.
        zero: Where no change is.
        dot: Where the change is.
        low: Where the interval begins.
        width: How long it is.
        whole: Whether this is the row of all scenarios together.
        n: The pairs of repeats behind it.
        best: Whether it is of the policy that the page's sentence names.
        cost: The change of quality as text.
        cost_interval: Its interval as text.
    """

    policy: str
    letter: str
    reference: str
    scenario: str
    reference_ms: str
    policy_ms: str
    change: str
    interval: str
    verdict: str
    zero: float
    dot: float
    low: float
    width: float
    whole: bool
    n: int
    best: bool = False
    cost: str = ""
    cost_interval: str = ""


@dataclass(frozen=True)
class Group:
    """The rows of one scenario, and the reference's mean in it."""

    scenario: str
    reference_ms: str
    rows: Sequence[ForestRow]


@dataclass(frozen=True)
class Forest:
    """The table.

    Attributes:
        shown: The rows that are seen at once.
        folded: The others, by scenario.
        compact: Whether the reference has a row of its own instead of a mention in each row.
        letter: The reference's letter.
        reference_ms: Its mean token latency; empty where rows have their own.
        cost_title: What the last column says; empty where nothing is known of the quality.
        reference_cost: The reference's own value of it.
    """

    shown: Sequence[ForestRow]
    folded: Sequence[Group]
    compact: bool
    letter: str = ""
    reference_ms: str = ""
    cost_title: str = ""
    reference_cost: str = ""


def forest_of(
    comparisons: Sequence[Comparison],
    quality: Sequence[Quality],
    dropped: Mapping[tuple[str, str | None], Interval],
    over_all: Mapping[str, Interval],
    policies: Sequence[str],
    best: str | None,
) -> Forest:
    """Return the table of the first screen; with many rows it keeps those of all scenarios together.

    Args:
        comparisons: What :func:`testbed.report.metrics.compare` gave.
        quality: What :func:`testbed.report.quality.quality_of` gave.
        dropped: What :func:`testbed.report.decisions.mass_dropped` gave: said where no quality was measured.
        over_all: The mean token latency of each policy over all scenarios.
        policies: The policies in the campaign's order.
        best: The policy that the page's sentence names, if it names one.
    """
    points = {(name, c.scenario) for c in comparisons if c.scenario for name in (c.policy, c.reference)}
    letters = len(points) > POINTS_WITH_NAMES
    long = len(comparisons) > FOREST_ROWS
    whole = [c for c in comparisons if c.scenario is None] if long else []
    tables = []
    for entries in (whole, [c for c in comparisons if c not in whole]):
        scale = _scale_of(entries)
        named = policies if letters else ()
        tables.append([_row(c, scale, _cost(c, quality, dropped), named, c.policy == best) for c in entries])
    shown, others = tables if whole else (tables[1], [])
    folded = [
        Group(name, own[0].reference_ms, own)
        for name in dict.fromkeys(row.scenario for row in others)
        if (own := [row for row in others if row.scenario == name])
    ]
    reference = policies[0] if policies else ""
    entry = rated(quality, reference, None)
    title = "perplexity" if quality else "gate mass dropped" if dropped else ""
    cost = number(entry.perplexity.value) if entry is not None else ""
    if not quality and (reference, None) in dropped:
        cost = change(dropped[reference, None])[0]
    scenarios = {row.scenario for row in shown}
    compact = long and len(scenarios) == 1
    return Forest(
        shown,
        folded,
        compact,
        letter_of(0) if letters else "",
        number(over_all[reference].value) if compact and reference in over_all else "",
        title,
        cost,
    )


@dataclass(frozen=True)
class _Scale:
    """A common scale around zero."""

    low: float
    high: float

    def place(self, value: float) -> float:
        return round(100 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low))), 2)


def _scale_of(comparisons: Sequence[Comparison]) -> _Scale:
    ends = [0.0]
    for entry in comparisons:
        ends.append(entry.change.value)
        # A huge interval must not flatten the others: it is cut at the edge, and its text says how long it is.
        ends += [
            max(-1.0, min(1.0, end)) for end in (entry.change.low, entry.change.high) if entry.change.known
        ]
    low, high = min(ends), max(ends)
    room = (high - low or 1.0) * 0.06
    return _Scale(low - room, high + room)


def _row(
    entry: Comparison, scale: _Scale, cost: tuple[str, str], policies: Sequence[str], best: bool
) -> ForestRow:
    value, interval = change(entry.change)
    known, place = entry.change.known, scale.place
    begin = place(entry.change.low) if known else place(entry.change.value)
    end = place(entry.change.high) if known else begin
    verdict = ("faster" if entry.change.value < 0 else "slower") if entry.change.excludes_zero else "open"
    return ForestRow(
        entry.policy,
        letter_of(policies.index(entry.policy)) if entry.policy in policies else "",
        entry.reference,
        entry.scenario or "all scenarios",
        number(entry.reference_ms),
        number(entry.policy_ms),
        value,
        interval,
        verdict,
        place(0.0),
        place(entry.change.value),
        begin,
        round(end - begin, 2),
        entry.scenario is None,
        entry.change.n,
        best,
        *cost,
    )


def _cost(
    entry: Comparison, quality: Sequence[Quality], dropped: Mapping[tuple[str, str | None], Interval]
) -> tuple[str, str]:
    own = rated(quality, entry.policy, entry.scenario)
    if own is not None and own.change is not None:
        return change(own.change)
    if not quality and (entry.policy, entry.scenario) in dropped:
        value, interval = change(dropped[entry.policy, entry.scenario])
        return value.removeprefix("+"), interval.replace("+", "")
    return "", ""
