"""Pictures for tests: smooth shapes with edges and some texture, as photographs have them, from a seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["picture"]


def picture(side: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return a picture (side, side, 3)."""
    rng = np.random.default_rng([side, seed])
    down, across = np.mgrid[0:side, 0:side] / side
    planes = []
    for _ in range(3):
        slope, wave = rng.normal(size=2), rng.uniform(1, 5, size=3)
        plane = 110 + 50 * (slope[0] * down + slope[1] * across) / 2
        plane += 25 * np.sin(2 * np.pi * (wave[0] * down + wave[1] * across) + wave[2])
        centre, radius = rng.uniform(0.2, 0.8, size=2), rng.uniform(0.1, 0.3)
        plane += 50 * (np.hypot(down - centre[0], across - centre[1]) < radius)
        planes.append(plane + rng.normal(0, 3, size=(side, side)))
    return np.clip(np.stack(planes, axis=-1), 0, 255).astype(np.uint8)
