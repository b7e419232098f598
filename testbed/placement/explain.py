"""What a placement means: who holds how much, who is asked how often, and who is waited for.

Decoding is foreseen by drawing: tokens choose their experts at random by the routing frequency, independently of each
other and of the layer before, and the latency model says how long each device takes. Links count as endless, since a
placement is made before a scenario is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from payloads.wdmoe.holders import first_holders, serving_devices
from payloads.wdmoe.latency import LatencyModel
from payloads.wdmoe.routing import Selection, loads_of
from testbed.artifacts.manifest import Manifest
from testbed.placement.place import DeviceCapacity, Placement, expert_bytes
from testbed.placement.solve import serving_shares

__all__ = ["DeviceShare", "Explained", "explain"]

#: Tokens that are drawn for each layer; the mean of the slowest device's time is known to about a tenth of its spread.
TOKENS = 128


@dataclass(frozen=True)
class DeviceShare:
    """One device's part.

    Attributes:
        device: Its name.
        experts: Experts that it holds, over all layers.
        copies: How many of them other devices hold too.
        held_bytes: The memory that they need.
        room_bytes: The memory that there is for experts.
        why: What that follows from.
        speed: Its part of the fleet's speed, from 0 to 1.
        load: Its part of the router's choices, from 0 to 1, the mean over the layers.
        busiest_layers: In how many layers its load is the largest for its speed.
        compute_ms: What its dispatch takes in a layer that asks for it, as the latency model says, on endless links.
        slowest: In which part of the layers of a token it is the last to answer, from 0 to 1.
    """

    device: str
    experts: int
    copies: int
    held_bytes: int
    room_bytes: int
    why: str
    speed: float
    load: float
    busiest_layers: int
    compute_ms: float
    slowest: float


@dataclass(frozen=True)
class Explained:
    """A placement, explained.

    Attributes:
        devices: Each device's part.
        layer_ms: How long one token waits for the devices in one layer, the mean over layers and draws.
        bottleneck: The device that is waited for most often.
    """

    devices: tuple[DeviceShare, ...]
    layer_ms: float
    bottleneck: str

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def explain(
    manifest: Manifest,
    placement: Placement,
    capacities: Sequence[DeviceCapacity],
    dtype: str,
    model: LatencyModel,
    frequency: NDArray[np.float64] | None = None,
    seed: int = 0,
) -> Explained:
    """Explain a placement.

    Args:
        manifest: The model.
        placement: Its placement.
        capacities: What each device can hold and how fast it is.
        dtype: The element type that the experts are held in.
        model: The latency model of the fleet.
        frequency: (L, E), the share of a layer's choices that each expert gets; all alike where it is left out.
        seed: The draws follow from it.
    """
    names = [one.name for one in capacities]
    layers, experts = manifest.layers, manifest.experts_per_layer
    if frequency is None:
        frequency = np.full((layers, experts), 1 / experts)
    speed = np.array([one.speed for one in capacities])
    speed = speed / speed.sum()
    holds = np.array(
        [
            [[name in placement[layer][expert] for name in names] for expert in range(experts)]
            for layer in range(layers)
        ]
    )
    loads = np.array(
        [shares @ serving_shares(shares, held, speed) for shares, held in zip(frequency, holds, strict=True)]
    )
    seconds = _drawn_s(placement, manifest, model.limited(names), frequency, seed)
    asked = seconds > 0
    slowest = np.bincount(seconds.reshape(-1, len(names)).argmax(axis=1), minlength=len(names))
    held, copied = holds.sum(axis=(0, 1)), (holds & (holds.sum(axis=2, keepdims=True) > 1)).sum(axis=(0, 1))
    busiest = np.bincount((loads / speed).argmax(axis=1), minlength=len(names))
    one_bytes = expert_bytes(manifest, dtype)
    shares = tuple(
        DeviceShare(
            device=one.name,
            experts=int(held[d]),
            copies=int(copied[d]),
            held_bytes=int(held[d]) * one_bytes,
            room_bytes=one.memory_bytes,
            why=one.why,
            speed=float(speed[d]),
            load=float(loads[:, d].mean()),
            busiest_layers=int(busiest[d]),
            compute_ms=float(1e3 * seconds[..., d].sum() / max(1, asked[..., d].sum())),
            slowest=float(slowest[d] / slowest.sum()),
        )
        for d, one in enumerate(capacities)
    )
    return Explained(shares, float(1e3 * seconds.max(axis=-1).mean()), names[int(slowest.argmax())])


def _drawn_s(
    placement: Placement,
    manifest: Manifest,
    model: LatencyModel,
    frequency: NDArray[np.float64],
    seed: int,
) -> NDArray[np.float64]:
    """Return what each device takes in each layer for each of some tokens (L, TOKENS, D), 0 where it is not asked."""
    random = np.random.default_rng(seed)
    layers, experts, chosen = manifest.layers, manifest.experts_per_layer, manifest.experts_per_token
    rows = [[placement[layer][expert] for expert in range(experts)] for layer in range(layers)]
    first, several = first_holders(rows, model.devices)
    unlimited = np.full(len(model.devices), np.inf)
    costs = model.costs(unlimited, unlimited)
    seconds = np.zeros((layers, TOKENS, len(model.devices)))
    for layer in range(layers):
        # The k largest of log frequency + Gumbel noise are a draw of k without replacement.
        noise = np.log(frequency[layer]) + random.gumbel(size=(TOKENS, experts))
        index = np.argsort(-noise, axis=1)[:, :chosen]
        for token in range(TOKENS):
            one = index[token : token + 1]
            selection = Selection(one, np.ones_like(one, dtype=bool), np.ones(one.shape))
            serving = serving_devices(first[layer], several.get(layer, {}), one, costs)
            seconds[layer, token] = costs.dispatch_s(loads_of(selection, serving, len(model.devices)))
    return seconds
