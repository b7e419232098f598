"""A panel's images as arrays, and resampled means of them.

What varies in a mean is which images were sent, over what noise and fades, and the seed that a model was trained with.
Noise and fades are drawn for each pair of images in each repeat, so a repeat has no effect of its own: the unit is the
pair with all its repeats, whose spread holds both (a bootstrap over clusters). Only where there is one pair are its
repeats the units; then the interval speaks of noise and fades, not of images. Trainings are resampled on their own.
Each effect on the mean is widened for how few of it there are (the factor of :mod:`testbed.report.stats`), and both are
added. Schemes meet the same images, noise and fades, so for these they are resampled together, and what they share
drops out of every difference; their trainings have nothing to do with each other. Of what there is one the interval
does not speak, and the page says so.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from testbed.report.broadcast.facts import Facts, Measure, Panel
from testbed.report.stats import LEVEL, Interval, student_quantile

__all__ = [
    "DRAWS",
    "Cube",
    "Samples",
    "can_vary",
    "contrasts",
    "cubes_of",
    "ends_of",
    "intervals_of",
    "panels_of",
    "resampled",
    "without_common",
]

DRAWS = 2000
SEED = 20240611


@dataclass(frozen=True)
class Cube:
    """One measure of one scheme in one panel.

    Attributes:
        scheme: The scheme.
        shares: User 1's shares, ascending.
        models: The models, one a training seed; one entry for a scheme without.
        repeats: The repeats.
        pairs: The pairs of images.
        values: (shares, users, models, repeats, pairs); no NaN.
        received: (shares, users): the share of the images that could be decoded.
    """

    scheme: str
    shares: tuple[float, ...]
    models: tuple[str, ...]
    repeats: tuple[int, ...]
    pairs: tuple[str, ...]
    values: NDArray[np.float64]
    received: NDArray[np.float64]

    @property
    def means(self) -> NDArray[np.float64]:
        """Return the means over models, repeats and pairs: (shares, users)."""
        means: NDArray[np.float64] = self.values.mean(axis=(2, 3, 4))
        return means


Samples = NDArray[np.float64]
"""Resampled means: (DRAWS, shares, users)."""


def cubes_of(facts: Facts, images: Mapping[str, pd.DataFrame], measure: Measure) -> dict[str, Cube]:
    """Return the cubes of the schemes of one panel, over the pairs and repeats that all of them have.

    A scheme without any repeat in common with those before it, or without the measure, is left out.

    Args:
        facts: What was compared.
        images: The images of one panel by scheme.
        measure: The measure.
    """
    made = {name: _cube(name, images[name], measure, facts.users) for name in facts.schemes if name in images}
    found = {name: cube for name, cube in made.items() if cube is not None}
    repeats, pairs = _common(found)
    return {
        name: _narrowed(cube, repeats, pairs)
        for name, cube in found.items()
        if set(repeats) <= set(cube.repeats) and set(pairs) <= set(cube.pairs)
    }


def panels_of(facts: Facts) -> dict[Panel, dict[str, pd.DataFrame]]:
    """Return the images of each panel by scheme."""
    keys = ["scenario", "set", "bandwidth_ratio", "scheme"]
    parts: dict[Panel, dict[str, pd.DataFrame]] = {panel: {} for panel in facts.panels}
    for (scenario, name, ratio, scheme), own in facts.images.groupby(keys, sort=False):
        parts[Panel(str(scenario), str(name), float(ratio))][str(scheme)] = own
    return parts


def resampled(cube: Cube) -> Samples:
    """Return resampled means of a cube; those of cubes of the same pairs and repeats belong together draw by draw."""
    values = cube.values
    samples = np.broadcast_to(cube.means, (DRAWS, *cube.means.shape)).copy()
    met = (4, "pairs") if len(cube.pairs) > 1 else (3, "repeats")
    for axis, name in (met, (2, f"models of {cube.scheme}")):
        others = tuple(place for place in (2, 3, 4) if place != axis)
        effects = values.mean(axis=others)  # (shares, users, n)
        samples += np.einsum("bn,sun->bsu", _deviations(effects.shape[2], name), effects, optimize=True)
    return samples


def without_common(cubes: Mapping[str, Cube], alike: Collection[str]) -> dict[str, Cube]:
    """Return the cubes less what like schemes share: how easy a pair is, and how the noise of a repeat fell on it.

    What is left are intervals for comparing schemes with each other (Loftus and Masson 1994, "Using confidence
    intervals in within-subject designs", Psychonomic Bulletin & Review 1(4)). Means do not change.

    Args:
        cubes: The cubes of one panel.
        alike: The schemes whose mean says how easy a pair is; all of them where none of these is there.
    """
    among = [cube for name, cube in cubes.items() if name in alike] or list(cubes.values())
    # What could not be decoded is a grey image, whose quality says nothing of how easy the sent one was.
    decoded = [cube.values[(cube.received >= 1).all(axis=1)] for cube in among]
    every = [values.mean(axis=(0, 2)) for values in decoded if len(values)]
    if not every:
        return dict(cubes)
    shared = np.stack(every).mean(axis=0)  # (users, repeats, pairs)
    common = shared - shared.mean(axis=(1, 2), keepdims=True)
    return {name: replace(cube, values=cube.values - common[None, :, None]) for name, cube in cubes.items()}


def ends_of(
    samples: NDArray[np.float64], level: float = LEVEL
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both ends of the interval of each resampled value.

    Args:
        samples: (DRAWS, ...).
        level: The share of intervals that hold the truth.

    Returns:
        Two arrays (...).
    """
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def intervals_of(cube: Cube, samples: Samples) -> list[tuple[Interval, ...]]:
    """Return the mean of each share and user with its interval; without one where nothing could vary.

    Args:
        cube: The values.
        samples: Resampled means of them.
    """
    n, means = len(cube.pairs) * len(cube.repeats), cube.means
    low, high = ends_of(samples) if can_vary(cube) else (np.full_like(means, np.nan),) * 2
    shares, users = means.shape
    return [
        tuple(
            Interval(float(means[s, u]), float(low[s, u]), float(high[s, u]), n, LEVEL) for u in range(users)
        )
        for s in range(shares)
    ]


def contrasts(one: Cube, other: Cube) -> list[Interval]:
    """Return, for each user, how much one scheme is above another in the mean over the shares that both have.

    Args:
        one: The scheme.
        other: Another of the same panel, or the same one in another scenario: then its trainings are paired too.
    """
    shares = [share for share in one.shares if share in other.shares]
    if not shares:
        return []
    mine, theirs = ([cube.shares.index(share) for share in shares] for cube in (one, other))
    means = (one.means[mine] - other.means[theirs]).mean(axis=0)
    samples = (resampled(one)[:, mine] - resampled(other)[:, theirs]).mean(axis=1)
    n = len(one.pairs) * len(one.repeats)
    low, high = ends_of(samples) if can_vary(one) or can_vary(other) else (np.full_like(means, np.nan),) * 2
    return [Interval(float(means[u]), float(low[u]), float(high[u]), n, LEVEL) for u in range(means.size)]


def can_vary(cube: Cube) -> bool:
    """Return whether a cube has two of anything, so that there is an interval."""
    return any(count > 1 for count in cube.values.shape[2:])


@lru_cache(maxsize=64)
def _deviations(n: int, name: str) -> NDArray[np.float64]:
    """Return how much more or less each of n units counts in each draw, widened: (DRAWS, n), rows sum to 0."""
    if n < 2:
        return np.zeros((DRAWS, n))
    seed = int.from_bytes(hashlib.sha256(f"{SEED} {name}".encode()).digest()[:8], "big")
    chosen = np.random.default_rng(seed).integers(0, n, size=(DRAWS, n))
    counts = np.apply_along_axis(np.bincount, 1, chosen, minlength=n)
    tail = (1 + LEVEL) / 2
    stretch = math.sqrt(n / (n - 1)) * student_quantile(tail, n - 1) / NormalDist().inv_cdf(tail)
    return stretch * (counts - 1) / n


def _cube(name: str, own: pd.DataFrame, measure: Measure, users: Sequence[int]) -> Cube | None:
    """Return the cube of one scheme, or None where no repeat has it whole."""
    levels, codes = [], []
    for axis in ("share", "user", "model", "repeat", "pair"):
        column = own[axis].fillna("") if axis == "model" else own[axis]
        level, code = np.unique(column.to_numpy(), return_inverse=True)
        levels.append(level.tolist())
        codes.append(code)
    array, received = (np.full([len(level) for level in levels], np.nan) for _ in range(2))
    array[tuple(codes)] = own[measure.column].to_numpy(dtype=float, na_value=np.nan)
    received[tuple(codes)] = own["received"].to_numpy(dtype=float)
    kept = np.isfinite(array).all(axis=(0, 1, 2, 4))  # repeats with every pair, share, user and model
    shares, found_users, models, repeats, pairs = levels
    if found_users != list(users) or not kept.any():
        return None
    return Cube(
        name,
        tuple(map(float, shares)),
        tuple(map(str, models)),
        tuple(int(repeat) for repeat, good in zip(repeats, kept, strict=True) if good),
        tuple(map(str, pairs)),
        array[:, :, :, kept],
        received[:, :, :, kept].mean(axis=(2, 3, 4)),
    )


def _common(cubes: Mapping[str, Cube]) -> tuple[list[int], list[str]]:
    """Return the repeats and pairs that all cubes have, those left out that have none in common with the others."""
    repeats: list[int] | None = None
    pairs: list[str] | None = None
    for cube in cubes.values():
        both = [r for r in repeats if r in cube.repeats] if repeats is not None else list(cube.repeats)
        alike = [p for p in pairs if p in cube.pairs] if pairs is not None else list(cube.pairs)
        if both and alike:
            repeats, pairs = both, alike
    return repeats or [], pairs or []


def _narrowed(cube: Cube, repeats: Sequence[int], pairs: Sequence[str]) -> Cube:
    at = [cube.repeats.index(repeat) for repeat in repeats]
    of = [cube.pairs.index(pair) for pair in pairs]
    values = cube.values[:, :, :, at][..., of]
    return replace(cube, repeats=tuple(repeats), pairs=tuple(pairs), values=values)
