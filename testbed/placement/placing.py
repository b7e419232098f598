"""From files to an explained placement: what `testbed place` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from payloads.wdmoe.latency import DeviceSpeed, LatencyModel
from testbed.artifacts.manifest import Manifest, load_manifest
from testbed.placement.explain import Explained, explain
from testbed.placement.place import DeviceCapacity, Placement, expert_shape, parse_capacity, place_auto

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Placed", "by_campaign", "by_manifest"]

#: Operations a second that bind nothing: a device of the command line is known by its memory bandwidth only.
_ENDLESS_OPS_PER_S = 1e18


@dataclass(frozen=True)
class Placed:
    """A placement and what it follows from.

    Attributes:
        placement: The placement.
        manifest: The model.
        capacities: What each device can hold and how fast it is.
        dtype: The element type that the experts are held in.
        latency: The latency model.
        frequency: (L, E), how often each expert is asked for, where it is known.
        notes: What had to be assumed.
    """

    placement: Placement
    manifest: Manifest
    capacities: Sequence[DeviceCapacity]
    dtype: str
    latency: LatencyModel
    frequency: NDArray[np.float64] | None = None
    notes: tuple[str, ...] = ()

    @property
    def devices(self) -> list[str]:
        """The devices' names."""
        return [one.name for one in self.capacities]

    def explain(self) -> Explained:
        """Say what the placement means."""
        return explain(
            self.manifest, self.placement, self.capacities, self.dtype, self.latency, self.frequency
        )


def by_manifest(path: Path, devices: Sequence[str], dtype: str, copies: int) -> Placed:
    """Place a sharded model on devices of given memory and memory bandwidth.

    Args:
        path: The manifest's file.
        devices: Each device as ``NAME=MEMORY_GB:GB_PER_S``.
        dtype: The element type that the experts are held in.
        copies: How many devices hold each expert.

    Raises:
        InputError: The manifest or a device cannot be read, or the experts do not fit.
    """
    manifest, capacities = load_manifest(path), [parse_capacity(text) for text in devices]
    placement = place_auto(manifest, capacities, dtype, copies=copies)
    speeds = tuple(DeviceSpeed(_ENDLESS_OPS_PER_S, 1e9 * one.speed, None) for one in capacities)
    latency = LatencyModel(tuple(one.name for one in capacities), expert_shape(manifest, dtype), speeds)
    return Placed(placement, manifest, capacities, dtype, latency)


def by_campaign(file: Path, inventory: Path | None, limit: Sequence[str]) -> Placed:
    """Place a campaign's model on its lab, as `testbed run` would do now.

    Args:
        file: The campaign file.
        inventory: Another lab than the campaign's.
        limit: The devices that it is limited to; all where it is empty.

    Raises:
        InputError: A file is wrong, or the experts do not fit.
    """
    from testbed.artifacts.weights import require_weights
    from testbed.campaigns import placed
    from testbed.campaigns.prepare import probe_hosts
    from testbed.campaigns.session import PROBE_TIMEOUT_S
    from testbed.config.campaign import check_campaign, load_campaign
    from testbed.config.inventory import load_inventory
    from testbed.hosts.fleet import Fleet
    from testbed.placement.memory import capacities
    from testbed.simulate.assumed import latency_model

    campaign = load_campaign(file)
    lab = load_inventory(campaign.lab_file(inventory)).limited(limit)
    check_campaign(campaign, lab)
    require_weights(campaign.model)
    with Fleet(lab, connect_timeout_s=PROBE_TIMEOUT_S) as fleet:
        probed = probe_hosts(fleet, assume=True)
    manifest = placed.sharded(campaign.model, campaign.experts).manifest
    placement = placed.place(campaign, lab, manifest, probed.facts)
    notes = tuple(
        f"{why}; the memory of its board is assumed"
        for name, why in probed.why_assumed.items()
        if lab.hosts[name].is_device
    )
    return Placed(
        placement,
        manifest,
        capacities(lab, probed.facts),
        campaign.dtype,
        latency_model(campaign, lab, manifest),
        placed.frequency_of(campaign, manifest),
        notes,
    )
