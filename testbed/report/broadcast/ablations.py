"""What each ablation loses: an ablated scheme against the whole one, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from testbed.report.broadcast.cubes import contrasts
from testbed.report.broadcast.facts import Facts, Measure, Panel
from testbed.report.broadcast.regions import Region
from testbed.report.stats import Interval

__all__ = ["Loss", "losses_of"]


@dataclass(frozen=True)
class Loss:
    """One ablation in one panel.

    Attributes:
        scheme: The ablated scheme.
        whole: The scheme that it is an ablation of.
        panel: Where.
        measure: Of what.
        changes: For each user, ablated less whole, in the mean over the swept shares; below 0 the ablated is worse.
        seeds: The training seeds of the ablated and of the whole one.
    """

    scheme: str
    whole: str
    panel: Panel
    measure: Measure
    changes: Sequence[Interval]
    seeds: tuple[int, int]


def losses_of(facts: Facts, regions: Sequence[Region]) -> list[Loss]:
    """Return every ablation in every panel, PSNR only.

    Args:
        facts: What was compared.
        regions: What :func:`testbed.report.broadcast.regions.regions_of` gave.
    """
    found = []
    for scheme in facts.schemes.values():
        for region in regions:
            if region.measure.column != "psnr_db" or not scheme.ablates:
                continue
            mine, whole = (region.cubes.get(name) for name in (scheme.name, scheme.ablates))
            if mine is None or whole is None:
                continue
            changes = contrasts(mine, whole)
            if changes:
                seeds = len(mine.models), len(whole.models)
                found.append(Loss(scheme.name, scheme.ablates, region.panel, region.measure, changes, seeds))
    return found
