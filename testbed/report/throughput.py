"""How many tokens a second come out: by policy and scenario, and against the number of requests answered at once.

A trial's window is that of its measured requests, from the start of the first to the end of the last; its throughput is
the tokens generated in it over its length. The last requests of a trial have fewer beside them, which is part of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from testbed.records.energy import trial_windows
from testbed.records.outline import campaign_of
from testbed.records.run import Run
from testbed.report.metrics import measured_requests, policies_of, scenarios_of
from testbed.report.stats import Interval, bootstrap_mean

__all__ = ["Ladder", "Throughput", "cut_off", "ladders", "throughput_rows", "trial_throughput"]


@dataclass(frozen=True)
class Throughput:
    """The throughput of one policy in one scenario.

    Attributes:
        policy: The policy.
        scenario: The scenario.
        concurrency: How many requests were answered at once at most; None where nobody said.
        tokens_per_s: Generated tokens a second, over trials.
        requests: The requests of its trials.
        whole: How many of them were answered in full.
    """

    policy: str
    scenario: str
    concurrency: int | None
    tokens_per_s: Interval
    requests: int
    whole: int


@dataclass(frozen=True)
class Ladder:
    """Scenarios that differ in nothing but the number of requests answered at once.

    Attributes:
        name: The first of them.
        steps: The scenario of each number, ascending.
    """

    name: str
    steps: Mapping[int, str]


def trial_throughput(run: Run) -> pd.DataFrame:
    """Return one row a completed trial: ``trial, policy, scenario, repeat, concurrency, tokens_per_s``."""
    windows = trial_windows(run).merge(run.trials[["trial", "concurrency"]], on="trial", how="left")
    length_s = windows["t_end_s"] - windows["t_start_s"]
    rate = windows["output_tokens"] / length_s.where(length_s > 0)
    columns = ["trial", "policy", "scenario", "repeat", "concurrency"]
    return windows[columns].assign(tokens_per_s=rate.astype("float64"))


def throughput_rows(run: Run) -> list[Throughput]:
    """Return the throughput by policy and scenario, in the campaign's order."""
    trials = trial_throughput(run)
    requests = measured_requests(run).groupby(["policy", "scenario"])["whole"].agg(["size", "sum"])
    rows = []
    for policy in policies_of(run):
        for scenario in scenarios_of(run):
            own = trials[(trials["policy"] == policy) & (trials["scenario"] == scenario)]
            if own.empty:
                continue
            count, whole = requests.loc[(policy, scenario)]
            at_once = own["concurrency"].dropna()
            concurrency = int(at_once.max()) if len(at_once) else None
            rate = bootstrap_mean(own["tokens_per_s"])
            rows.append(Throughput(policy, scenario, concurrency, rate, int(count), int(whole)))
    return rows


def cut_off(run: Run) -> dict[str, int]:
    """Return how many measured requests were not answered in full, by how they ended."""
    requests = measured_requests(run)
    ends = requests.loc[~requests["whole"], "finish"].value_counts()
    return {str(name): int(count) for name, count in ends.items()}


def ladders(run: Run) -> list[Ladder]:
    """Return the scenarios that are alike but for their ``concurrency``, where there are several of a kind."""
    listed = campaign_of(run.manifest).get("scenarios")
    seen = set(scenarios_of(run))
    found: dict[str, dict[int, str]] = {}
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, dict) and entry.get("name") in seen:
            number: Any = entry.get("concurrency", 1)
            rest = {key: value for key, value in entry.items() if key not in ("name", "concurrency")}
            found.setdefault(json.dumps(rest, sort_keys=True, default=str), {}).setdefault(
                int(number), str(entry["name"])
            )
    return [
        Ladder(next(iter(steps.values())), dict(sorted(steps.items())))
        for steps in found.values()
        if len(steps) > 1
    ]
