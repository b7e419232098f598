"""A plan's parts: phases of steps, and what is done with their answers. Plain data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from testbed.campaigns.trials import Trial
from testbed.hosts.steps import Step

__all__ = ["CLOSING", "PREPARING", "Kind", "Phase", "phase_lines", "phases_json"]


class Kind(Enum):
    """What the runner does with the answers of a phase's steps."""

    DO = "do"
    LEASE = "lease"
    PROVISION = "provision"
    POWER = "power"
    RAILS = "rails"
    VERIFY = "verify"
    LINKS = "links"
    QUALITY = "quality"
    TRIAL = "trial"
    RESTORE = "restore"
    COLLECT = "collect"


CLOSING = (Kind.RESTORE, Kind.COLLECT)
"""What is done at the end, whatever came before."""

PREPARING = (Kind.LEASE, Kind.PROVISION)
"""What leaves nothing that would have to be closed."""


@dataclass(frozen=True)
class Phase:
    """Steps that may run side by side on different hosts.

    Attributes:
        name: A few words for people and the journal.
        steps: The steps, each host's in order.
        kind: What is done with the answers.
        trial: The trial that the phase belongs to.
        cuts: Places in the steps at which all hosts wait for each other; none where each goes at its own speed.
    """

    name: str
    steps: tuple[Step, ...]
    kind: Kind = Kind.DO
    trial: Trial | None = None
    cuts: tuple[int, ...] = ()

    def rounds(self) -> Iterator[tuple[int, tuple[Step, ...]]]:
        """Yield the place of each round's first step and its steps; a round begins when the one before is done."""
        places = [0, *self.cuts, len(self.steps)]
        for start, end in itertools.pairwise(places):
            if start < end:
                yield start, self.steps[start:end]


def phase_lines(phases: Sequence[Phase]) -> list[str]:
    """Return a plan for people: each phase's name, and its steps below it."""
    lines: list[str] = []
    for phase in phases:
        lines += ["", phase.name]
        lines += [f"  {step.line()}" for step in phase.steps]
    return lines


def phases_json(phases: Sequence[Phase]) -> list[dict[str, Any]]:
    """Return a plan as plain data."""
    return [{"name": phase.name, "steps": [step.line() for step in phase.steps]} for phase in phases]
