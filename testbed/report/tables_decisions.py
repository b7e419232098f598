"""The tables of the policies: their quality, what they dropped, ablations, lower bounds and the model's errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from testbed.report.ablation import ROLES, AblationRow
from testbed.report.bounds import Bound
from testbed.report.decisions import STAGES, DropRow
from testbed.report.metrics import Comparison
from testbed.report.numbers import NO_VALUE, change, number, plain, with_interval
from testbed.report.prediction import ErrorRow
from testbed.report.quality import Accuracy, Quality
from testbed.report.stats import Interval
from testbed.report.tables import Cell, DataTable, Header, count_cell, interval_cell, ms_cell

__all__ = [
    "ablation_table",
    "accuracy_table",
    "bounds_table",
    "drop_table",
    "error_table",
    "quality_table",
]

ALL = "all scenarios"
ANY = "any"
"""What stands for the scenario of a policy that does not look at links."""


def quality_table(quality: Sequence[Quality]) -> DataTable:
    """Return the quality of each policy, by scenario where it looks at the links."""
    headers = [
        Header("policy"),
        Header("scenario", title=f"{ANY}: the policy does not look at links"),
        Header("perplexity", True),
        Header("95 % interval", True, "over windows of text"),
        Header("change", True, "against the reference, paired by window"),
        Header("interval of the change", True, "widened where there are several policies"),
        Header("KL (nat/token)", True, "how far the prediction diverges from the undropped model's"),
        Header("95 % interval", True, "over windows of text"),
        Header("agreement (%)", True, "tokens with the undropped model's most likely next token"),
        Header("95 % interval", True, "over windows of text"),
        Header("mass kept (%)", True, "the share of the gate mass that was sent"),
        Header("n", True, "windows of text; tokens in them on hovering"),
    ]
    body = []
    several = {entry.policy for entry in quality if entry.scenario is not None}
    for entry in quality:
        scenario = entry.scenario or (ALL if entry.policy in several else ANY)
        body.append(
            [
                Cell(entry.policy),
                Cell(scenario, style="" if entry.scenario else "weak"),
                *_estimate(entry.perplexity, strong=True),
                *_change(entry.change),
                *_estimate(entry.kl),
                *_estimate(_percent(entry.agreement)),
                _estimate(_percent(entry.kept))[0],
                Cell(str(entry.perplexity.n), float(entry.perplexity.n), title=f"{entry.tokens:,} tokens"),
            ]
        )
    return DataTable("quality", "Held-out text", headers, body, grouped=True)


def accuracy_table(accuracy: Sequence[Accuracy]) -> DataTable:
    """Return the right answers to multiple-choice questions, by policy and set."""
    headers = [
        Header("set"),
        Header("policy"),
        Header("scenario", title=f"{ANY}: the policy does not look at links"),
        Header("right (%)", True),
        Header("95 % interval (%)", True, "Wilson's, over questions"),
        Header("change (points)", True, "against the reference, paired by question"),
        Header("interval of the change", True, "widened where there are several policies"),
        Header("guessing (%)", True),
        Header("questions", True),
    ]
    body = []
    several = {entry.policy for entry in accuracy if entry.scenario is not None}
    for entry in accuracy:
        points = entry.change.scaled(100) if entry.change else None
        body.append(
            [
                Cell(entry.questions),
                Cell(entry.policy),
                Cell(
                    entry.scenario or (ALL if entry.policy in several else ANY),
                    style="" if entry.scenario else "weak",
                ),
                *_estimate(_percent(entry.accuracy), strong=True),
                *(_estimate(points) if points else _reference()),
                ms_cell(100 * entry.chance),
                count_cell(entry.accuracy.n),
            ]
        )
    return DataTable(
        "accuracy", "Multiple choice, by the likelihood of each answer", headers, body, grouped=True
    )


def drop_table(rows: Sequence[DropRow]) -> DataTable:
    """Return what each policy dropped."""
    headers = [
        Header("policy"),
        Header("scenario"),
        Header("stage"),
        Header("pairs wanted", True, "pairs of a token and an expert that the router asked for"),
        Header("dropped (%)", True, "of these"),
        Header("95 % interval (%)", True, "over trials"),
        Header("replaced (%)", True, "of these, by another expert"),
        Header("gate mass dropped (%)", True),
        Header("95 % interval (%)", True, "over trials"),
        Header("trials", True),
    ]
    body = [
        [
            Cell(row.policy),
            Cell(row.scenario),
            Cell(STAGES[row.stage]),
            count_cell(row.wanted),
            *_estimate(_percent(row.dropped), strong=True),
            _estimate(_percent(row.moved))[0],
            *_estimate(_percent(row.mass)),
            count_cell(row.dropped.n),
        ]
        for row in rows
    ]
    return DataTable("drop-table", "What was dropped", headers, body, grouped=True)


def ablation_table(
    rows: Sequence[AblationRow],
    quality: Mapping[tuple[str, str | None], Interval],
    *,
    by_scenario: bool = False,
) -> DataTable:
    """Return what each part of a joint policy does.

    Args:
        rows: What :func:`testbed.report.ablation.ablation_rows` gave.
        quality: The change of perplexity by policy and scenario, where it was measured.
        by_scenario: Whether this is the table of single scenarios beside another one.
    """
    headers = [
        Header("joint policy"),
        Header("scenario"),
        Header("part"),
        Header("policy"),
        Header("mean (ms)", True, "mean time between tokens over the pairs of repeats"),
        Header("against the reference", True, "relative change of the mean token latency, paired by repeat"),
        Header("95 % interval", True),
        Header("joint against it", True, "the joint policy against this part alone, paired by repeat"),
        Header("95 % interval", True),
        Header("perplexity", True, "change against the reference"),
        Header("n", True, "pairs of repeats"),
    ]
    body = []
    for row in rows:
        scenario = row.against_reference.scenario
        cost = quality.get((row.policy, scenario))
        body.append(
            [
                Cell(row.ablation.joint),
                Cell(scenario or ALL),
                Cell(ROLES[row.role], style="strong" if row.role == "joint" else ""),
                Cell(row.policy),
                ms_cell(row.against_reference.policy_ms),
                *_compared(row.against_reference),
                *(_compared(row.against_joint) if row.against_joint else (_none(), _none())),
                Cell(change(cost)[0], cost.value) if cost else _none(),
                count_cell(row.against_reference.change.n),
            ]
        )
    name, caption = _apart("ablation", "Selection and bandwidth, alone and together", by_scenario)
    return DataTable(name, caption, headers, body, grouped=True)


def bounds_table(bounds: Sequence[Bound], *, by_scenario: bool = False) -> DataTable:
    """Return how far each policy is from its lower bound; below it, the model that gave the bound is off.

    Args:
        bounds: The bounds.
        by_scenario: Whether this is the table of single scenarios beside another one.
    """
    headers = [
        Header("policy"),
        Header("scenario"),
        Header("mean (ms)", True, "mean time between tokens"),
        Header(
            "lower bound (ms)", True, "no selection within the budget could be faster, by the latency model"
        ),
        Header("above the bound", True, "paired by repeat"),
        Header("95 % interval", True, "over repeats"),
        Header("n", True, "repeats"),
    ]
    body = [
        [
            Cell(bound.policy),
            Cell(bound.scenario or ALL),
            _estimate(bound.policy_ms)[0],
            _estimate(bound.bound_ms)[0],
            *_change(bound.above),
            count_cell(bound.above.n),
        ]
        for bound in bounds
    ]
    off = [place for place, bound in enumerate(bounds) if bound.above.value < 0]
    name, caption = _apart("bounds", "Distance to the lower bound", by_scenario)
    return DataTable(name, caption, headers, body, grouped=True, off=off)


def error_table(
    rows: Sequence[ErrorRow], colours: Mapping[str, str], *, name: str, caption: str, of: str
) -> DataTable:
    """Return how far predictions were off.

    Args:
        rows: The errors.
        colours: The colour of each device, for a swatch.
        name: The id in the page.
        caption: What it shows.
        of: What a row is of.
    """
    headers = [
        Header(of),
        Header("n", True),
        Header("median error (%)", True, "the median of |predicted − measured| / measured"),
        Header("p90 error (%)", True),
        Header("bias (%)", True, "the median of the error with its sign: above 0 the model is too slow"),
    ]
    body = [
        [
            Cell(row.name, colour=colours.get(row.name, "")),
            count_cell(row.n),
            Cell(_digits(row.median), 100 * row.median, "strong"),
            Cell(_digits(row.p90), 100 * row.p90),
            Cell(_signed_digits(row.bias), 100 * row.bias),
        ]
        for row in rows
    ]
    return DataTable(name, caption, headers, body)


def _apart(name: str, caption: str, by_scenario: bool) -> tuple[str, str]:
    """Return the name and the caption of a table, or of that of single scenarios beside it."""
    return (f"{name}-scenarios", f"{caption}, by scenario") if by_scenario else (name, caption)


def _digits(share: float) -> str:
    return number(100 * share, 2 if share < 1 else 3)


def _signed_digits(share: float) -> str:
    """Return a share in percent with its sign: two digits, and none below a tenth of a percent."""
    decimals = 1 if abs(share) < 0.0995 else 0
    text = plain(100 * share, decimals)
    return f"+{text}" if round(100 * share, decimals) > 0 else text


def _percent(share: Interval | None) -> Interval | None:
    return share.scaled(100) if share is not None else None


def _estimate(interval: Interval | None, *, strong: bool = False) -> tuple[Cell, Cell]:
    """Return an estimate and its interval as two cells; dashes where it was not measured."""
    if interval is None or not math.isfinite(interval.value):
        return _none(), _none()
    value, text = with_interval(interval)
    return Cell(value, interval.value, "strong" if strong else ""), interval_cell(interval, text)


def _change(interval: Interval | None) -> tuple[Cell, Cell]:
    if interval is None:
        return _reference()
    value, text = change(interval)
    return Cell(value, interval.value), interval_cell(interval, text)


def _compared(comparison: Comparison) -> tuple[Cell, Cell]:
    value, text = change(comparison.change)
    open_ = comparison.change.known and not comparison.change.excludes_zero
    title = "no difference found" if open_ else ""
    return (
        Cell(value, comparison.change.value, "weak" if open_ else "", title=title),
        interval_cell(comparison.change, text),
    )


def _reference() -> tuple[Cell, Cell]:
    return Cell("reference"), _none()


def _none() -> Cell:
    return Cell(NO_VALUE, style="interval")
