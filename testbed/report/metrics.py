"""The serving metrics of a run, its quality, and how its policies compare.

Left out everywhere: requests marked as warm-up (the first of each trial, as many as the campaign says), and trials
that were not completed. A mean and its interval are over trials: each repeat counts once. Median and percentiles are
over all requests or tokens of those trials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from testbed.records.outline import outline_of
from testbed.records.run import Run
from testbed.report.stats import LEVEL, Interval, bootstrap_mean, bootstrap_ratio, paired_change, percentiles

__all__ = [
    "METRICS",
    "Comparison",
    "Quality",
    "Row",
    "compare",
    "measured_requests",
    "measured_tokens",
    "policies_of",
    "quality_of",
    "scenarios_of",
    "serving_rows",
    "trial_means",
]

METRICS = {
    "ttft": "time to first token",
    "tpot": "time per output token after the first, a request's mean",
    "itl": "time between one token and the next",
    "e2el": "time to the last token",
}


@dataclass(frozen=True)
class Row:
    """One serving metric of one policy in one scenario, in milliseconds.

    Attributes:
        metric: ttft, tpot, itl or e2el.
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
class Quality:
    """The perplexity of one policy on the held-out text.

    Attributes:
        policy: The policy's name.
        perplexity: With an interval over the windows of text.
        tokens: Tokens that were predicted.
        change: The relative change against the reference, paired by window; None for the reference itself.
    """

    policy: str
    perplexity: Interval
    tokens: int
    change: Interval | None


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


def policies_of(run: Run) -> list[str]:
    """Return the policies in the campaign's order; the first is the reference."""
    return _ordered(outline_of(run.manifest).policies, [*run.trials["policy"], *run.quality["policy"]])


def scenarios_of(run: Run) -> list[str]:
    """Return the scenarios in the campaign's order."""
    return _ordered(outline_of(run.manifest).scenarios, run.trials["scenario"])


def measured_requests(run: Run) -> pd.DataFrame:
    """Return the requests that count, with policy, scenario, repeat and ``tpot_ms``."""
    requests = run.requests[~run.requests["warmup"]]
    requests = requests.merge(
        run.completed[["trial", "policy", "scenario", "repeat"]], on="trial", how="inner"
    )
    later = requests["output_tokens"] - 1
    spread = (requests["e2el_ms"] - requests["ttft_ms"]) / later.where(later > 0)
    return requests.assign(tpot_ms=spread.astype("float64"))


def measured_tokens(run: Run) -> pd.DataFrame:
    """Return the tokens of the requests that count, with policy, scenario and repeat."""
    keys = measured_requests(run)[["trial", "request", "policy", "scenario", "repeat"]]
    return run.tokens.merge(keys, on=["trial", "request"], how="inner")


def trial_means(run: Run) -> pd.DataFrame:
    """Return one row a completed trial: policy, scenario, repeat and the means ``ttft_ms`` ... ``e2el_ms``."""
    keys = ["trial", "policy", "scenario", "repeat"]
    by_request = measured_requests(run).groupby(keys, sort=False)[["ttft_ms", "tpot_ms", "e2el_ms"]].mean()
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
    level = 1 - (1 - LEVEL) / (len(policies) - 1)
    means = trial_means(run)
    comparisons = []
    for policy in policies[1:]:
        together = [_paired(means, policies[0], policy, scenario) for scenario in scenarios]
        together = [pairs for pairs in together if not pairs.empty]
        if len(together) > 1 and len(together) == len(scenarios):
            over_all = pd.concat(together, keys=range(len(together))).groupby("repeat")
            complete = over_all.mean()[over_all.size() == len(scenarios)]
            comparisons += _comparison(complete, policies[0], policy, None, level)
        for scenario in scenarios:
            pairs = _paired(means, policies[0], policy, scenario)
            comparisons += _comparison(pairs, policies[0], policy, scenario, level)
    return comparisons


def quality_of(run: Run) -> list[Quality]:
    """Return each policy's perplexity; the intervals are over windows of text, paired between policies."""
    policies = [policy for policy in policies_of(run) if policy in set(run.quality["policy"])]
    if not policies:
        return []
    windows = {
        policy: run.quality[run.quality["policy"] == policy].set_index(["text", "window"])
        for policy in policies
    }
    reference = windows.get(policies_of(run)[0])
    rated = []
    for policy, own in windows.items():
        perplexity = _exp(bootstrap_ratio(own["nll_sum"], own["tokens"]))
        change = None
        if reference is not None and own is not reference:
            both = own.merge(reference, on=["text", "window"], suffixes=("", "_reference"))
            gain = bootstrap_ratio(both["nll_sum"] - both["nll_sum_reference"], both["tokens"])
            ratio = _exp(gain)
            change = Interval(ratio.value - 1, ratio.low - 1, ratio.high - 1, ratio.n)
        rated.append(Quality(policy, perplexity, int(own["tokens"].sum()), change))
    return rated


def _exp(interval: Interval) -> Interval:
    return Interval(
        math.exp(interval.value), math.exp(interval.low), math.exp(interval.high), interval.n, interval.level
    )


def _paired(means: pd.DataFrame, reference: str, policy: str, scenario: str) -> pd.DataFrame:
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


def _ordered(first: Sequence[str], seen: Any) -> list[str]:
    """Return the names that were seen: those of the campaign file in its order, then any others by name."""
    names = {str(name) for name in seen}
    return [name for name in first if name in names] + sorted(names - set(first))
