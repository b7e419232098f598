"""The trials of a campaign and their order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Trial", "interleave"]


@dataclass(frozen=True)
class Trial:
    """One policy in one scenario with one repeat.

    Attributes:
        name: ``t001`` and so on, in the order of running.
        policy: The policy's name.
        scenario: The scenario's name.
        repeat: The repeat, from 0.
    """

    name: str
    policy: str
    scenario: str
    repeat: int


def interleave(policies: Sequence[str], scenarios: Sequence[str], repeats: int, seed: int) -> list[Trial]:
    """Return all trials, each repeat a block in a random order of its own, so that drift hits all alike.

    Args:
        policies: The policies' names.
        scenarios: The scenarios' names.
        repeats: How often each pair is run.
        seed: The order follows from it.
    """
    generator = random.Random(seed)
    trials: list[Trial] = []
    for repeat in range(repeats):
        block = [(policy, scenario) for policy in policies for scenario in scenarios]
        generator.shuffle(block)
        for policy, scenario in block:
            trials.append(Trial(f"t{len(trials) + 1:03d}", policy, scenario, repeat))
    return trials
