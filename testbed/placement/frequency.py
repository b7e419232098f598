"""How often the router asks for each expert, from what an earlier run recorded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from testbed.artifacts.manifest import Manifest
from testbed.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["routing_frequency"]


def routing_frequency(folder: Path, manifest: Manifest) -> NDArray[np.float64]:
    """Return the share (L, E) of a layer's choices that each expert gets; rows sum to 1.

    One choice is added for each expert: what a short run never asked for, a longer one may.

    Args:
        folder: The folder of a run, or of a simulation, of the same model.
        manifest: The model.

    Raises:
        InputError: There is no such run, it was one of another model, or it did not record its routing.
    """
    import numpy as np

    from testbed.records import load_run

    run = load_run(folder)
    ran = str((run.manifest.get("model") or {}).get("name"))
    if ran != manifest.model:
        raise InputError(f"{folder}: routed {ran}, and the model is {manifest.model}")
    asked = run.routing
    if asked.empty:
        raise InputError(
            f"{folder}: has no routing in its records",
            hint="take a run with a trial that was completed since the table `routing` is recorded",
        )
    counts = np.ones((manifest.layers, manifest.experts_per_layer))
    inside = (asked["layer"] < counts.shape[0]) & (asked["expert"] < counts.shape[1])
    if not inside.all():
        raise InputError(f"{folder}: routed a model of another shape than {manifest.model}")
    np.add.at(counts, (asked["layer"].to_numpy(), asked["expert"].to_numpy()), asked["pairs"].to_numpy())
    shares: NDArray[np.float64] = counts / counts.sum(axis=1, keepdims=True)
    return shares
