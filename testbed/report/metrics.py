"""The serving metrics of a run, and how its policies compare.

Left out everywhere: requests marked as warm-up (the first of each trial, as many as the campaign says), and trials
that were not completed. A mean and its interval are over trials: each repeat counts once. Median and percentiles are
over all requests or tokens of those trials.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from testbed.records.outline import Outline, outline_of
from testbed.records.outline import planned_trials as trials_planned
from testbed.records.run import Run
from testbed.report.stats import LEVEL, Interval, bootstrap_mean, paired_change, percentiles

__all__ = [
    "METRICS",
    "Comparison",
    "Row",
    "compare",
    "contrast",
    "level_for",
    "means_over_all",
    "measured_requests",
    "measured_tokens",
    "ordered",
    "paired_means",
    "planned",
    "planned_trials",
    "policies_of",
    "scenarios_of",
    "serving_rows",
    "trial_means",
]

METRICS = {
    "ttft": "time to first token",
    "tpot": "time per output token after the first, a request's mean",
    "itl": "time between one token and the next",
    "e2el": "time to the last token",
    "client_ttft": "time to first token, as the client of the HTTP interface saw it",
    "client_e2el": "time to the last token, likewise",
}

WHOLE = ("stop", "length")
"""How a request ends that was answered in full."""


@dataclass(frozen=True)
class Row:
    """One serving metric of one policy in one scenario, in milliseconds.

    Attributes:
        metric: One of :data:`METRICS`; those of clients only where there were any.
        policy: The policy's name.
        scenario: The scenario's name.
        n: Requests or tokens behind the percentiles.
        mean: The mean over trials, with its interval.
        median: The median.
        p95: The 95th percentile.
        p99: The 99th percentile.
    """

    metric: str
    policy: str
    scenario: str
    n: int
    mean: Interval
    median: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Comparison:
    """How one policy's mean token latency (itl) differs from the reference's.

    Attributes:
        policy: The policy.
        reference: The reference.
        scenario: The scenario, or None for all together, each scenario with equal weight.
        policy_ms: The policy's mean in milliseconds.
        reference_ms: The reference's mean over the same repeats.
        change: The relative change from pairs of equal repeats.
    """

    policy: str
    reference: str
    scenario: str | None
    policy_ms: float
    reference_ms: float
    change: Interval


def planned(run: Run) -> Outline:
    """Return the plan behind a run; the page asks for it again and again, and its file is read once."""
    return _outline(str(run.manifest.get("campaign") or ""))


def planned_trials(run: Run) -> int | None:
    """Return how many trials the run was to have."""
    return trials_planned(run.manifest, planned(run))


@lru_cache(maxsize=4)
def _outline(campaign: str) -> Outline:
    return outline_of({"campaign": campaign})


def policies_of(run: Run) -> list[str]:
    """Return the policies in the campaign's order; the first is the reference."""
    seen = [*run.trials["policy"], *run.quality["policy"], *run.choices["policy"]]
    return ordered(planned(run).policies, seen)


def scenarios_of(run: Run) -> list[str]:
    """Return the scenarios in the campaign's order."""
    return ordered(planned(run).scenarios, run.trials["scenario"])


def measured_requests(run: Run) -> pd.DataFrame:
    """Return the requests that count, with policy, scenario, repeat, ``whole`` and ``tpot_ms``.

    One that was cut off (``finish`` is neither stop nor length) is not whole: it has no ``e2el_ms`` and no ``tpot_ms``,
    since its end says nothing of how long an answer takes.
    """
    requests = run.requests[~run.requests["warmup"]]
    requests = requests.merge(
        run.completed[["trial", "policy", "scenario", "repeat"]], on="trial", how="inner"
    )
    whole = requests["finish"].isna() | requests["finish"].isin(WHOLE)
    later = requests["output_tokens"] - 1
    ends = {column: requests[column].where(whole) for column in ("e2el_ms", "client_e2el_ms")}
    spread = (ends["e2el_ms"] - requests["ttft_ms"]) / later.where(later > 0)
    return requests.assign(whole=whole, **ends, tpot_ms=spread.astype("float64"))


def measured_tokens(run: Run, tokens: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return the tokens of the requests that count, with policy, scenario and repeat.

    Args:
        run: The run.
        tokens: The run's tokens with more columns, in place of the table.
    """
    keys = measured_requests(run)[["trial", "request", "policy", "scenario", "repeat"]]
    return (run.tokens if tokens is None else tokens).merge(keys, on=["trial", "request"], how="inner")


def trial_means(run: Run) -> pd.DataFrame:
    """Return one row a completed trial: policy, scenario, repeat and the mean of each of :data:`METRICS`."""
    keys = ["trial", "policy", "scenario", "repeat"]
    of_requests = [f"{metric}_ms" for metric in METRICS if metric != "itl"]
    by_request = measured_requests(run).groupby(keys, sort=False)[of_requests].mean()
    tokens = measured_tokens(run)
    later = tokens[tokens["position"] > 0].groupby(keys, sort=False)["duration_ms"].mean().rename("itl_ms")
    return by_request.join(later, how="left").reset_index()


def serving_rows(run: Run) -> list[Row]:
    """Return the serving metrics by metric, policy and scenario, in the campaign's order."""
    requests, tokens, means = measured_requests(run), measured_tokens(run), trial_means(run)
    later = tokens[tokens["position"] > 0].rename(columns={"duration_ms": "itl_ms"})
    rows = []
    for metric in METRICS:
        frame = later if metric == "itl" else requests
        for policy in policies_of(run):
            for scenario in scenarios_of(run):
                values = _pick(frame, policy, scenario)[f"{metric}_ms"].dropna()
                if values.empty:
                    continue
                mean = bootstrap_mean(_pick(means, policy, scenario)[f"{metric}_ms"])
                rows.append(Row(metric, policy, scenario, len(values), mean, *percentiles(values)))
    return rows


def compare(run: Run) -> list[Comparison]:
    """Return how each policy compares with the reference: over all scenarios first, then one by one.

    With several policies the intervals are wider, so that all of those of one scenario hold together (Bonferroni).
    Only repeats that both policies completed are pairs; over all scenarios, only those completed in each of them.
    """
    policies, scenarios = policies_of(run), scenarios_of(run)
    if len(policies) < 2:
        return []
    level = level_for(len(policies))
    means = trial_means(run)
    return [
        entry for policy in policies[1:] for entry in contrast(means, scenarios, policies[0], policy, level)
    ]


def contrast(
    means: pd.DataFrame, scenarios: Sequence[str], reference: str, policy: str, level: float = LEVEL
) -> list[Comparison]:
    """Return how one policy differs from another: over all scenarios first, where there are several, then one by one.

    Args:
        means: What :func:`trial_means` gave.
        scenarios: The scenarios.
        reference: The policy that is compared with.
        policy: The policy.
        level: The share of intervals that hold the truth.
    """
    pairs = {scenario: paired_means(means, reference, policy, scenario) for scenario in scenarios}
    comparisons = []
    if len(pairs) > 1 and not any(own.empty for own in pairs.values()):
        over_all = pd.concat(pairs.values(), keys=range(len(pairs))).groupby("repeat")
        complete = over_all.mean()[over_all.size() == len(pairs)]
        comparisons += _comparison(complete, reference, policy, None, level)
    for scenario, own in pairs.items():
        comparisons += _comparison(own, reference, policy, scenario, level)
    return comparisons


def means_over_all(
    means: pd.DataFrame, policies: Sequence[str], scenarios: Sequence[str]
) -> dict[str, Interval]:
    """Return each policy's mean token latency over all scenarios, each with equal weight, in ms.

    Args:
        means: What :func:`trial_means` gave.
        policies: The policies.
        scenarios: The scenarios.

    Returns:
        Only policies that completed at least one repeat in every scenario; the unit of the intervals is the repeat.
    """
    found = {}
    for policy in policies:
        own = means[(means["policy"] == policy) & means["scenario"].isin(list(scenarios))]
        grouped = own.dropna(subset=["itl_ms"]).groupby("repeat")["itl_ms"]
        complete = grouped.mean()[grouped.size() == len(scenarios)]
        if len(complete):
            found[policy] = bootstrap_mean(complete)
    return found


def level_for(policies: int) -> float:
    """Return the level of each interval such that those of all policies but the reference hold together."""
    return 1 - (1 - LEVEL) / max(1, policies - 1)


def paired_means(means: pd.DataFrame, reference: str, policy: str, scenario: str) -> pd.DataFrame:
    """Return pairs of trial means, one row a repeat: columns ``reference`` and ``policy``."""
    ours = _pick(means, policy, scenario).set_index("repeat")["itl_ms"].rename("policy")
    base = _pick(means, reference, scenario).set_index("repeat")["itl_ms"].rename("reference")
    return pd.concat([base, ours], axis=1, join="inner").dropna().sort_index()


def _comparison(
    pairs: pd.DataFrame, reference: str, policy: str, scenario: str | None, level: float
) -> list[Comparison]:
    if pairs.empty:
        return []
    change = paired_change(pairs["reference"], pairs["policy"], level=level)
    means = float(np.mean(pairs["policy"])), float(np.mean(pairs["reference"]))
    return [Comparison(policy, reference, scenario, *means, change)]


def _pick(frame: pd.DataFrame, policy: str, scenario: str) -> pd.DataFrame:
    return frame[(frame["policy"] == policy) & (frame["scenario"] == scenario)]


def ordered(first: Sequence[str], seen: Any) -> list[str]:
    """Return the names that were seen: those of the campaign file in its order, then any others by name."""
    names = {str(name) for name in seen}
    return [name for name in first if name in names] + sorted(names - set(first))
