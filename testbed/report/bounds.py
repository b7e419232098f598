"""How far each policy is from the lower bound of its own budget, where the records have one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from testbed.records.run import Run
from testbed.report.metrics import measured_tokens, policies_of, scenarios_of
from testbed.report.stats import Interval, bootstrap_mean, paired_change

__all__ = ["Bound", "bounds_of"]


@dataclass(frozen=True)
class Bound:
    """The lower bound of one policy in one scenario; tokens after the first.

    Attributes:
        policy: The policy.
        scenario: The scenario; None for all together, each with equal weight.
        bound_ms: The mean bound of a token.
        policy_ms: The mean time of the same tokens.
        above: By how much the policy lies above it, relatively, paired by repeat.
    """

    policy: str
    scenario: str | None
    bound_ms: Interval
    policy_ms: Interval
    above: Interval


def bounds_of(run: Run) -> dict[tuple[str, str | None], Bound]:
    """Return the bounds by policy and scenario, and over all scenarios where there are several."""
    tokens = measured_tokens(run)
    tokens = tokens[(tokens["position"] > 0) & tokens["bound_ms"].notna()]
    if tokens.empty:
        return {}
    keys = ["policy", "scenario", "repeat"]
    means = tokens.groupby(keys, sort=False)[["duration_ms", "bound_ms"]].mean().reset_index()
    found: dict[tuple[str, str | None], Bound] = {}
    scenarios = scenarios_of(run)
    for policy in policies_of(run):
        own = means[means["policy"] == policy]
        grouped = own.groupby("repeat")[["duration_ms", "bound_ms"]]
        complete = grouped.mean()[grouped.size() == len(scenarios)]
        if len(scenarios) > 1 and len(complete):
            found[policy, None] = _bound(policy, None, complete)
        for scenario in scenarios:
            rows = own[own["scenario"] == scenario]
            if len(rows):
                found[policy, scenario] = _bound(policy, scenario, rows)
    return found


def _bound(policy: str, scenario: str | None, repeats: pd.DataFrame | Mapping[str, pd.Series]) -> Bound:
    bound, own = repeats["bound_ms"], repeats["duration_ms"]
    above = paired_change(bound, own)
    return Bound(policy, scenario, bootstrap_mean(bound), bootstrap_mean(own), above)
