"""What a policy's decisions cost: perplexity, divergence from the model's own prediction, agreement, right answers.

The unit of every interval is a window of held-out text, or a question; all policies read the same ones, so changes
against the reference are paired by them. A policy that looks at the links was read once in each scenario; "over all
scenarios" then adds up the scenarios within each window, each with equal weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from testbed.records.run import Run
from testbed.report.metrics import level_for, ordered, planned, policies_of
from testbed.report.stats import Interval, bootstrap_ratio, wilson

__all__ = [
    "Accuracy",
    "Quality",
    "accuracy_of",
    "by_scenario",
    "quality_of",
    "quality_scenarios",
    "rated",
    "worst_change",
]

_WINDOW = ["text", "window"]
_ITEM = ["set", "item"]


@dataclass(frozen=True)
class Quality:
    """The quality of one policy on the held-out text.

    Attributes:
        policy: The policy's name.
        perplexity: With an interval over the windows of text.
        tokens: Tokens that were predicted.
        change: The relative change of the perplexity against the reference; None for the reference itself.
        scenario: The scenario whose links the policy followed; None for all of them together, and for a policy that
            does not look at links.
        kl: Nats a token by which its prediction diverges from the undropped model's; None where it was not measured.
        agreement: The share of tokens for which it has the same most likely next token.
        kept: The share of the gate mass that was sent.
    """

    policy: str
    perplexity: Interval
    tokens: int
    change: Interval | None
    scenario: str | None = None
    kl: Interval | None = None
    agreement: Interval | None = None
    kept: Interval | None = None


@dataclass(frozen=True)
class Accuracy:
    """How many questions of a set a policy answers rightly.

    Attributes:
        policy: The policy's name.
        scenario: As in :class:`Quality`.
        questions: The name of the set.
        accuracy: The share of right answers, with Wilson's interval.
        change: The difference of the shares against the reference, paired by question; None for the reference.
        chance: The share that guessing would give.
    """

    policy: str
    scenario: str | None
    questions: str
    accuracy: Interval
    change: Interval | None
    chance: float


def quality_of(run: Run) -> list[Quality]:
    """Return each policy's quality: over all scenarios first, then by scenario where the policy was read in several.

    With several policies the intervals of the changes are wider, so that all hold together (Bonferroni).
    """
    policies = [policy for policy in policies_of(run) if policy in set(run.quality["policy"])]
    if not policies:
        return []
    level, first = level_for(len(policies)), policies_of(run)[0]
    reference = run.quality[run.quality["policy"] == first]
    rates = []
    for policy in policies:
        own = run.quality[run.quality["policy"] == policy]
        for scenario in _readings(run, own):
            base = None if policy == first else _reading(reference, scenario, _WINDOW)
            rates.append(_quality(policy, scenario, _reading(own, scenario, _WINDOW), base, level))
    return rates


def quality_scenarios(quality: Sequence[Quality]) -> list[str]:
    """Return the scenarios in which a policy was read on its own, in order."""
    return list(dict.fromkeys(entry.scenario for entry in quality if entry.scenario is not None))


def by_scenario(quality: Sequence[Quality], policy: str) -> list[Quality]:
    """Return a policy's entries of single scenarios; empty where it does not look at links."""
    return [entry for entry in quality if entry.policy == policy and entry.scenario is not None]


def rated(quality: Sequence[Quality], policy: str, scenario: str | None) -> Quality | None:
    """Return a policy's quality in a scenario.

    Args:
        quality: What :func:`quality_of` gave.
        policy: The policy.
        scenario: The scenario, or None for all together.

    Returns:
        None where it was not measured: a policy that looks at the links, in a scenario in which it was not read.
    """
    own = [entry for entry in quality if entry.policy == policy]
    exact = next((entry for entry in own if entry.scenario == scenario), None)
    if exact is None and len(own) == 1 and own[0].scenario is None:
        return own[0]
    return exact


def worst_change(quality: Sequence[Quality], policy: str) -> Interval | None:
    """Return the change of perplexity whose upper end is the highest of a policy's scenarios; None where unknown."""
    own = by_scenario(quality, policy) or [entry for entry in quality if entry.policy == policy]
    changes = [entry.change for entry in own if entry.change is not None]
    return max(changes, key=lambda change: change.high if change.known else math.inf, default=None)


def accuracy_of(run: Run) -> list[Accuracy]:
    """Return the right answers of each policy, by set of questions; over all scenarios first, as quality."""
    answered = run.choices.assign(right=(run.choices["chosen"] == run.choices["answer"]).astype(float))
    policies = [policy for policy in policies_of(run) if policy in set(answered["policy"])]
    if not policies:
        return []
    level, first, found = level_for(len(policies)), policies_of(run)[0], []
    for questions, asked in answered.groupby("set", sort=False):
        reference = asked[asked["policy"] == first]
        for policy in policies:
            own = asked[asked["policy"] == policy]
            for scenario in _readings(run, own):
                chosen = _reading(own, scenario, _ITEM)
                base = None if policy == first else _reading(reference, scenario, _ITEM)
                chance = float((1 / own["choices"]).mean())
                found.append(_accuracy(policy, scenario, str(questions), chosen, base, chance, level))
    return found


def _accuracy(
    policy: str,
    scenario: str | None,
    questions: str,
    own: pd.DataFrame,
    reference: pd.DataFrame | None,
    chance: float,
    level: float,
) -> Accuracy:
    right = own["right"] / own["readings"]
    change = None
    if reference is not None and len(reference):
        both = _beside(own, reference)
        gained = both["right"] / both["readings"] - both["right_reference"] / both["readings_reference"]
        change = bootstrap_ratio(gained, np.ones(len(gained)), level=level)
    return Accuracy(policy, scenario, questions, wilson(float(right.sum()), len(right)), change, chance)


def _readings(run: Run, own: pd.DataFrame) -> list[str | None]:
    """Return how a policy was read: once (None), or over all (None) and in each of several scenarios."""
    if own.empty:
        return []
    named = ordered(planned(run).scenarios, own["scenario"].dropna())
    return [None, *named]


def _reading(rows: pd.DataFrame, scenario: str | None, unit: list[str]) -> pd.DataFrame:
    """Return a policy's sums by window or question, and from how many readings each is.

    Args:
        rows: The policy's rows.
        scenario: One scenario; rows without a scenario hold in every one. None: all scenarios together, only the
            windows that were read in each of them.
        unit: What is resampled.
    """
    if scenario is not None and rows["scenario"].notna().any():
        rows = rows[rows["scenario"] == scenario]
    rows = rows.assign(readings=1)
    if "mass_kept" in rows:
        rows = rows.assign(mass_sum=rows["mass_kept"] * rows["tokens"])
    sums = [name for name in _SUMMED if name in rows]
    # An unknown value stays unknown: a sum that skipped it would be of fewer tokens than it is divided by.
    numbers = rows[sums].astype("float64")
    added = numbers.groupby([rows[name] for name in unit], sort=False).sum(min_count=1)
    unknown = numbers.isna().groupby([rows[name] for name in unit], sort=False).any()
    added = added.mask(unknown)
    return added[added["readings"] == added["readings"].max()]


_SUMMED = ("readings", "tokens", "nll_sum", "kl_sum", "agree", "mass_sum", "right")


def _quality(
    policy: str, scenario: str | None, own: pd.DataFrame, reference: pd.DataFrame | None, level: float
) -> Quality:
    change = None
    if reference is not None and len(reference):
        both = _beside(own, reference)
        # The reference may have been read once, and this policy once in each scenario: both are of one reading.
        base = both["nll_sum_reference"] / both["tokens_reference"] * both["tokens"]
        ratio = _exp(bootstrap_ratio(both["nll_sum"] - base, both["tokens"], level=level))
        change = Interval(ratio.value - 1, ratio.low - 1, ratio.high - 1, ratio.n, level)
    tokens = int(own["tokens"].sum() / own["readings"].max()) if len(own) else 0
    return Quality(
        policy,
        _exp(bootstrap_ratio(own["nll_sum"], own["tokens"])),
        tokens,
        change,
        scenario,
        _share(own, "kl_sum", math.inf),
        _share(own, "agree", 1.0),
        _share(own, "mass_sum", 1.0),
    )


def _beside(own: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Return the windows or questions that both read, the reference's columns with an ending of their own."""
    return own.merge(reference, left_index=True, right_index=True, suffixes=("", "_reference"))


def _share(own: pd.DataFrame, column: str, most: float) -> Interval | None:
    """Return a sum over the tokens, between 0 and the most it can be; None where a window lacks it."""
    if own.empty or own[column].isna().any():
        return None
    found = bootstrap_ratio(own[column], own["tokens"])
    return Interval(found.value, max(0.0, found.low), min(most, found.high), found.n, found.level)


def _exp(interval: Interval) -> Interval:
    return Interval(
        math.exp(interval.value), math.exp(interval.low), math.exp(interval.high), interval.n, interval.level
    )
