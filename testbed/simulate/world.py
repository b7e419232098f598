"""All that the trials of a campaign follow from, as plain data: it can be handed to another process. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from payloads.linkd.channel import Channel
from payloads.wdmoe.costs import Costs
from payloads.wdmoe.holders import Several, serving_devices
from payloads.wdmoe.latency import LatencyModel
from testbed.simulate.routing import Traced

__all__ = ["Ask", "PolicySettings", "TrialPlan", "World"]


class Ask(NamedTuple):
    """One prompt of a trial.

    Attributes:
        request: The request's name in the records.
        warmup: Whether it is answered before the first one that counts.
        trace: The name of its routing in :attr:`World.traces`.
    """

    request: str
    warmup: bool
    trace: str


class TrialPlan(NamedTuple):
    """One trial.

    Attributes:
        name: Its name, as in the run.
        order: Its place in the order of running.
        policy: Its policy's name.
        scenario: Its scenario's name.
        repeat: The repeat, from 0.
        asks: Its prompts in order.
    """

    name: str
    order: int
    policy: str
    scenario: str
    repeat: int
    asks: tuple[Ask, ...]


class PolicySettings(NamedTuple):
    """The settings of a policy, as the base station is told them.

    Attributes:
        selection: Of its expert selection.
        bandwidth: Of its bandwidth allocation.
        activations: Element type of the rows on the wire; None for that of the computation.
    """

    selection: Mapping[str, Any]
    bandwidth: Mapping[str, Any]
    activations: str | None = None


@dataclass(frozen=True, eq=False)
class World:
    """What is simulated.

    Attributes:
        model: The latency model; its devices are every column.
        delays_ms: (D,) the one-way delay that each scenario gives the links beside their rates.
        device_of: (L, E), the device that serves each expert of each layer: the first of those that hold it.
        several: The holders of the experts that several devices hold.
        policies: The policies' settings, by name.
        links: The channel of each scenario and repeat; None where nothing shapes the links.
        traces: The routing, by name.
        trials: The trials in order.
        detail: Whether each dispatch and each change of a rate gets a row.
        bounds: Whether a policy with a budget gets a lower bound of each token's time.
    """

    model: LatencyModel
    delays_ms: Mapping[str, NDArray[np.float64]]
    device_of: NDArray[np.int64]
    several: Several
    policies: Mapping[str, PolicySettings]
    links: Mapping[tuple[str, int], Channel | None]
    traces: Mapping[str, Traced]
    trials: tuple[TrialPlan, ...]
    detail: bool = True
    bounds: bool = True

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices, in the order of every column."""
        return self.model.devices

    def serving(self, layer: int, index: NDArray[np.int64], costs: Costs) -> NDArray[np.int64]:
        """Return the device (E,) that serves each expert of a layer, for the experts (N, k) that are asked for."""
        several = self.several.get(layer)
        return (
            self.device_of[layer]
            if several is None
            else serving_devices(self.device_of[layer], several, index, costs)
        )
