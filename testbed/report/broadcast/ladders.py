"""Scenarios that differ in one thing only: the SNR of all users, the gap between them, or the error of the CSI."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from testbed.report.broadcast.cubes import contrasts
from testbed.report.broadcast.facts import Facts, Scenario
from testbed.report.broadcast.regions import Point, Region
from testbed.report.stats import Interval

__all__ = [
    "Ladder",
    "Rung",
    "by_met_snr",
    "changes_along",
    "changes_of",
    "error_ladders",
    "gap_ladders",
    "middle",
    "rungs_of",
    "snr_ladders",
]

MIDDLE = 0.5
LEAST_STEPS = 2
BIN_DB = 2.0
LEAST_IMAGES = 8
LEAST_FADES = 3


@dataclass(frozen=True)
class Ladder:
    """Scenarios in order of one setting, everything else being equal.

    Attributes:
        title: What is equal in all of them.
        steps: The setting's value, and the scenario that has it, ascending.
    """

    title: str
    steps: Mapping[float, str]


@dataclass(frozen=True)
class Rung:
    """One scheme at one step of a ladder: its point at the share nearest to one half, or its change over all shares."""

    at: float
    scenario: str
    point: Point


def snr_ladders(scenarios: Mapping[str, Scenario]) -> list[Ladder]:
    """Return ladders of user 1's SNR, the gap between the users, the fading and the error being equal."""
    return _ladders(
        scenarios,
        lambda s: (*_channel(s), *(round(s.snr_db[0] - other, 3) for other in s.snr_db[1:])),
        lambda s: s.snr_db[0],
        lambda s: f"gap {_gap(s):g} dB{_channel_text(s)}",
    )


def gap_ladders(scenarios: Mapping[str, Scenario]) -> list[Ladder]:
    """Return ladders of the gap between user 1 and the last user, the SNR of user 1 or their mean being equal."""
    return _of_gap(scenarios, lambda s: s.snr_db[0], "user 1 at {:g} dB") + _of_gap(
        scenarios, lambda s: sum(s.snr_db) / len(s.snr_db), "mean of the users {:g} dB"
    )


def error_ladders(scenarios: Mapping[str, Scenario]) -> list[Ladder]:
    """Return ladders of the error of the channel estimate, the SNRs and the fading being equal."""
    return _ladders(
        scenarios,
        lambda s: (s.fading, *s.snr_db),
        lambda s: s.csi_error,
        lambda s: f"{' and '.join(f'{value:g}' for value in s.snr_db)} dB, {_fading_text(s)}",
    )


def middle(points: Sequence[Point]) -> Point:
    """Return the point whose share is nearest to one half."""
    return min(points, key=lambda point: (abs(point.share - MIDDLE), point.share))


def rungs_of(ladder: Ladder, regions: Mapping[str, Region], scheme: str) -> list[Rung]:
    """Return a scheme's rungs on a ladder.

    Args:
        ladder: The ladder.
        regions: The regions of one set, ratio and measure by scenario.
        scheme: The scheme.
    """
    found = []
    for at, scenario in ladder.steps.items():
        points = regions[scenario].points.get(scheme) if scenario in regions else None
        if points:
            found.append(Rung(at, scenario, middle(points)))
    return found


def changes_of(ladder: Ladder, regions: Mapping[str, Region], scheme: str) -> list[Rung]:
    """Return how much more than on the first rung a scheme has on each, as points without a share; none for one rung.

    Args:
        ladder: The ladder.
        regions: The regions of one set, ratio and measure by scenario.
        scheme: The scheme.
    """
    changes = dict(changes_along(ladder, regions, scheme))
    found = []
    for at, scenario in ladder.steps.items() if changes else ():
        cube = regions[scenario].cubes.get(scheme) if scenario in regions else None
        if cube is None:
            continue
        none = [Interval(0.0, 0.0, 0.0, len(cube.pairs) * len(cube.repeats))] * cube.means.shape[1]
        values = tuple(changes.get(at, none))
        received = tuple(map(float, cube.received.mean(axis=0)))
        found.append(Rung(at, scenario, Point(math.nan, values, values, received)))
    return found


def changes_along(
    ladder: Ladder, regions: Mapping[str, Region], scheme: str
) -> list[tuple[float, list[Interval]]]:
    """Return what each user has more than on the first rung, pair by pair, in the mean over the swept shares.

    Args:
        ladder: The ladder.
        regions: The regions of one set, ratio and measure by scenario.
        scheme: The scheme.
    """
    cubes = {
        at: regions[scenario].cubes[scheme]
        for at, scenario in ladder.steps.items()
        if scenario in regions and scheme in regions[scenario].cubes
    }
    if len(cubes) < LEAST_STEPS or next(iter(cubes)) != next(iter(ladder.steps)):
        return []
    first, *later = cubes.items()
    alike = [
        (at, cube) for at, cube in later if (cube.pairs, cube.repeats) == (first[1].pairs, first[1].repeats)
    ]
    return [(at, contrasts(cube, first[1])) for at, cube in alike]


def by_met_snr(facts: Facts, scenario: str, images: pd.DataFrame) -> pd.DataFrame:
    """Return the PSNR of a fading scenario by the SNR that an image met: its mean SNR and what the fading made of it.

    Each step has other images. How much easier an image is than others of its user, by the learned schemes where
    nothing fades, is taken off what was decoded, or a step would be as good as its images are easy.

    Args:
        facts: What was compared.
        scenario: The scenario.
        images: The images of one set and ratio of it.

    Returns:
        ``scheme, user, snr_db`` (the middle of a bin of 2 dB), ``psnr_db`` (the mean), ``received`` (the share) and
        ``n``; bins of fewer than eight images, or of fewer than three fades, are left out.
    """
    own = images[images["scenario"] == scenario]
    met = (own["snr_db"] + own["gain_db"]).astype(float)
    at = (np.floor(met / BIN_DB) + 0.5) * BIN_DB
    got = own["received"].astype(float)
    rows = own.assign(at=at, got=got, psnr_db=own["psnr_db"] - got * _easier_db(facts, images, own))
    grouped = rows.groupby(["scheme", "user", "at"], sort=True)
    table = grouped.agg(
        psnr_db=("psnr_db", "mean"),
        received=("got", "mean"),
        n=("got", "size"),
        fades=("noise_seed", "nunique"),
    ).reset_index()
    enough = (table["n"] >= LEAST_IMAGES) & (table["fades"] >= LEAST_FADES)
    kept = table[enough & table["scheme"].isin(list(facts.schemes))].drop(columns="fades")
    return kept.rename(columns={"at": "snr_db"}).reset_index(drop=True)


def _easier_db(facts: Facts, images: pd.DataFrame, own: pd.DataFrame) -> pd.Series[float]:
    """Return how much easier each image of ``own`` is than the mean of its user; 0 where nothing tells of it."""
    still = [name for name, known in facts.scenarios.items() if known.fading == "none"]
    alike = [scheme.name for scheme in facts.schemes.values() if scheme.learned and not scheme.ablates]
    told = images[images["scenario"].isin(still) & images["scheme"].isin(alike)]
    means = told.groupby(["user", "pair"])["psnr_db"].mean()
    easier = (means - means.groupby("user").transform("mean")).rename("easier_db")
    found = own[["user", "pair"]].join(easier, on=["user", "pair"])["easier_db"].fillna(0.0)
    return found.astype("float64")


def _ladders(
    scenarios: Mapping[str, Scenario],
    alike: Callable[[Scenario], object],
    at: Callable[[Scenario], float],
    title: Callable[[Scenario], str],
) -> list[Ladder]:
    groups: dict[object, list[Scenario]] = {}
    for scenario in scenarios.values():
        if len(scenario.snr_db) >= 2:
            groups.setdefault(alike(scenario), []).append(scenario)
    found = []
    for group in groups.values():
        steps: dict[float, str] = {}
        for scenario in sorted(group, key=at):
            steps.setdefault(at(scenario), scenario.name)
        if len(steps) >= LEAST_STEPS:
            found.append(Ladder(title(group[0]), steps))
    return sorted(found, key=lambda ladder: -len(ladder.steps))


def _of_gap(scenarios: Mapping[str, Scenario], equal: Callable[[Scenario], float], name: str) -> list[Ladder]:
    return _ladders(
        scenarios,
        lambda s: (*_channel(s), round(equal(s), 3)),
        _gap,
        lambda s: name.format(equal(s)) + _channel_text(s),
    )


def _gap(scenario: Scenario) -> float:
    return round(scenario.snr_db[0] - scenario.snr_db[-1], 3)


def _channel(scenario: Scenario) -> tuple[str, float]:
    return scenario.fading, scenario.csi_error


def _fading_text(scenario: Scenario) -> str:
    return "no fading" if scenario.fading == "none" else f"{scenario.fading} fading"


def _channel_text(scenario: Scenario) -> str:
    texts = [] if scenario.fading == "none" else [f"{scenario.fading} fading"]
    texts += [f"CSI error {scenario.csi_error:g}"] if scenario.csi_error else []
    return f", {', '.join(texts)}" if texts else ""
