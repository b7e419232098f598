"""The trials of a campaign and their order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from testbed.config.campaign_base import CampaignBase

__all__ = ["Trial", "interleave", "trials_of"]


@dataclass(frozen=True)
class Trial:
    """One policy in one scenario with one repeat; where images are broadcast, a scheme is the policy.

    Attributes:
        name: ``t001`` and so on, in the order of running; ``serve-001`` where a campaign is served.
        policy: The policy's name.
        scenario: The scenario's name.
        repeat: The repeat, from 0.
        concurrency: How many requests are answered at once.
    """

    name: str
    policy: str
    scenario: str
    repeat: int
    concurrency: int = 1

    @property
    def order(self) -> int:
        """Its place in the order of running: the number at the end of its name."""
        return int(self.name[len(self.name.rstrip("0123456789")) :])


def trials_of(campaign: CampaignBase) -> list[Trial]:
    """Return the trials of a campaign, in the order of running."""
    scenarios = [scenario.name for scenario in campaign.scenarios]
    trials: list[Trial] = []
    for group in campaign.compared:
        trials += interleave(group, scenarios, campaign.repeats, campaign.seed, first=len(trials) + 1)
    at_once = {one.name: getattr(one, "concurrency", 1) for one in campaign.scenarios}
    return [replace(one, concurrency=at_once[one.scenario]) for one in trials]


def interleave(
    policies: Sequence[str], scenarios: Sequence[str], repeats: int, seed: int, first: int = 1
) -> list[Trial]:
    """Return all trials, each repeat a block in a random order of its own, so that drift hits all alike.

    Args:
        policies: The policies' names.
        scenarios: The scenarios' names.
        repeats: How often each pair is run.
        seed: The order follows from it.
        first: The number of the first trial.
    """
    generator = random.Random(seed)
    trials: list[Trial] = []
    for repeat in range(repeats):
        block = [(policy, scenario) for policy in policies for scenario in scenarios]
        generator.shuffle(block)
        for policy, scenario in block:
            trials.append(Trial(f"t{len(trials) + first:03d}", policy, scenario, repeat))
    return trials
