"""The model of a campaign of split experts as objects, and which devices hold which of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from testbed.artifacts.manifest import Manifest
from testbed.artifacts.shard import Sharded, shard_model
from testbed.artifacts.shard_progress import ShardProgress
from testbed.config.campaign import AutoPlacement, Campaign
from testbed.config.folders import cache_folder
from testbed.config.inventory import Inventory
from testbed.errors import InputError
from testbed.hosts.facts import Facts
from testbed.placement.memory import capacities
from testbed.placement.place import Placement, place_auto, place_explicit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["frequency_of", "place", "sharded"]


def sharded(model: Path, experts: Literal["int8"] | None = None) -> Sharded:
    """Return a model's objects, made in the cache where they are not there yet.

    Args:
        model: The model's folder.
        experts: How the experts' weights are held; as in the checkpoint where None.
    """
    place = hashlib.sha256(str(model.resolve()).encode()).hexdigest()[:12]  # two models may have one name
    held = f"-{experts}" if experts else ""
    folder = cache_folder() / "shards" / f"{model.name}-{place}{held}"
    with ShardProgress(model.name) as progress:
        return shard_model(model, folder, experts=experts, on_progress=progress, on_wait=progress.waits)


def place(
    campaign: Campaign, inventory: Inventory, manifest: Manifest, facts: Mapping[str, Facts]
) -> Placement:
    """Return which devices hold which expert.

    Raises:
        InputError: The model does not fit, or the campaign's own placement is wrong.
    """
    devices, settings = capacities(inventory, facts), campaign.placement
    if settings == "auto":
        settings = AutoPlacement(kind="auto")
    if not isinstance(settings, AutoPlacement):
        return place_explicit(manifest, settings, devices, campaign.dtype)
    return place_auto(
        manifest,
        devices,
        campaign.dtype,
        frequency=frequency_of(campaign, manifest),
        copies=settings.copies,
        hot_copies=settings.hot_copies,
    )


def frequency_of(campaign: Campaign, manifest: Manifest) -> NDArray[np.float64] | None:
    """Return how often each expert (L, E) is asked for, where the campaign's placement names a run that tells.

    Raises:
        InputError: There is no such run, or it tells nothing of this model.
    """
    settings = campaign.placement
    if not isinstance(settings, AutoPlacement) or settings.frequency is None:
        return None
    from testbed.placement.frequency import routing_frequency

    try:
        return routing_frequency(settings.frequency, manifest)
    except InputError as error:
        raise campaign.mistake((("placement", "frequency"), error.message), hint=error.hint) from error
