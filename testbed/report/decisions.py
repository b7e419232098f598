"""What the policies made of the router's choices, from the table ``selection``.

``wanted`` is what the router asked for at a device: the pairs sent there that did not move in, and those dropped.
A share of gate mass is that of the dropped in what was sent or dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import pandas as pd

from testbed.records.run import Run
from testbed.report.metrics import policies_of, scenarios_of
from testbed.report.stats import Interval, bootstrap_ratio

__all__ = ["MEASURES", "STAGES", "DropRow", "drop_rows", "dropped_shares", "idle_policies", "mass_dropped"]

STAGES: Mapping[str, str] = MappingProxyType({"decode": "later tokens", "prompt": "prompts"})
"""The stages of the table ``selection``, and what the page calls them."""
MEASURES: Mapping[str, str] = MappingProxyType({"mass": "gate mass", "pairs": "pairs"})
"""What a dropped share is of, and what the page calls it."""
_COUNTS = ["pairs", "dropped", "moved_in", "mass", "dropped_mass"]


@dataclass(frozen=True)
class DropRow:
    """What one policy dropped in one scenario and stage, with intervals over trials.

    Attributes:
        policy: The policy.
        scenario: The scenario.
        stage: decode or prompt.
        wanted: Pairs of a token and an expert that the router asked for.
        dropped: The share of them that their device did not get.
        moved: The share of them that another expert took the place of; NaN-free, 0 where nothing moved.
        mass: The share of the gate mass that was dropped.
    """

    policy: str
    scenario: str
    stage: str
    wanted: int
    dropped: Interval
    moved: Interval
    mass: Interval


def dropped_shares(run: Run) -> pd.DataFrame:
    """Return what was dropped by policy, scenario, stage, layer and device, over all completed trials.

    Args:
        run: The run.

    Returns:
        ``policy, scenario, stage, layer, device, wanted, mass_wanted, mass_dropped, pairs_dropped`` and the shares
        ``mass`` and ``pairs``, NaN where the router asked for nothing.
    """
    keys = ["policy", "scenario", "stage", "layer", "device"]
    summed = _of_trials(run).groupby(keys, sort=False)[_COUNTS].sum().reset_index()
    wanted = summed["pairs"] - summed["moved_in"] + summed["dropped"]
    mass_wanted = summed["mass"] + summed["dropped_mass"]
    return summed[keys].assign(
        wanted=wanted,
        mass_wanted=mass_wanted,
        pairs_dropped=summed["dropped"],
        mass_dropped=summed["dropped_mass"],
        pairs=summed["dropped"] / wanted.where(wanted > 0),
        mass=summed["dropped_mass"] / mass_wanted.where(mass_wanted > 0),
    )


def drop_rows(run: Run) -> list[DropRow]:
    """Return what each policy dropped, by scenario and stage, in the campaign's order; each trial is a unit."""
    grouped = _of_trials(run).groupby(["policy", "scenario", "stage"], sort=False)
    by_name = {key: own.groupby("trial", sort=False)[_COUNTS].sum() for key, own in grouped}
    rows = []
    for policy in policies_of(run):
        for scenario in scenarios_of(run):
            for stage in STAGES:
                own = by_name.get((policy, scenario, stage))
                if own is None:
                    continue
                wanted = own["pairs"] - own["moved_in"] + own["dropped"]
                shares = [
                    _clipped(bootstrap_ratio(own[part], whole))
                    for part, whole in (
                        ("dropped", wanted),
                        ("moved_in", wanted),
                        ("dropped_mass", own["mass"] + own["dropped_mass"]),
                    )
                ]
                rows.append(DropRow(policy, scenario, stage, int(wanted.sum()), *shares))
    return rows


def mass_dropped(run: Run) -> dict[tuple[str, str | None], Interval]:
    """Return the share of the gate mass that each policy dropped while it generated, by scenario and over all (None).

    The unit of the intervals is the repeat; over all scenarios each token has equal weight.
    """
    trials = _of_trials(run)
    trials = trials[trials["stage"] == "decode"]
    found: dict[tuple[str, str | None], Interval] = {}
    for policy in policies_of(run):
        own = trials[trials["policy"] == policy]
        for scenario in (None, *scenarios_of(run)):
            rows = own if scenario is None else own[own["scenario"] == scenario]
            repeats = rows.groupby("repeat")[_COUNTS].sum()
            whole = repeats["mass"] + repeats["dropped_mass"]
            if whole.sum() > 0:
                found[policy, scenario] = _clipped(bootstrap_ratio(repeats["dropped_mass"], whole))
    return found


def idle_policies(shares: pd.DataFrame) -> list[str]:
    """Return the policies that dropped nothing at all.

    Args:
        shares: What :func:`dropped_shares` gave.
    """
    dropped = shares.groupby("policy", sort=False)["pairs_dropped"].sum()
    return [str(name) for name, count in dropped.items() if count == 0]


def _of_trials(run: Run) -> pd.DataFrame:
    """Return the table with policy and scenario, of completed trials only."""
    keys = run.completed[["trial", "policy", "scenario", "repeat"]]
    return run.selection.merge(keys, on="trial", how="inner")


def _clipped(share: Interval) -> Interval:
    return Interval(share.value, max(0.0, share.low), min(1.0, share.high), share.n, share.level)
