"""What the router asks for in one layer, and what is made of it. Plain arrays, no effects.

Sizes: N tokens, k experts chosen for each by the router, E experts in the layer, D devices. Devices are numbered in
the order of the latency model's names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Optional

if TYPE_CHECKING:
    from numpy import bool_, floating, int64
    from numpy.typing import NDArray

    from payloads.wdmoe.allocation.band import Band
    from payloads.wdmoe.latency import Costs

__all__ = ["LayerView", "Loads", "Routing", "Selection", "loads_of"]


class Routing(NamedTuple):
    """The router's choice for the tokens of one layer.

    Attributes:
        index: (N, k), the experts that it chose, the best first; in the order they come where a router does not sort
            them, as DeepSeek's.
        weights: (N, k), the weights of their answers, not negative. Not every model has them sum to 1.
        scores: (N, E), what it thinks of every expert: not negative, each row sums to 1.
    """

    index: NDArray[int64]  # type: ignore[assignment]  # the name of a method of tuples
    weights: NDArray[floating[Any]]
    scores: NDArray[floating[Any]]


class Selection(NamedTuple):
    """What is sent out for one layer.

    Attributes:
        index: (N, k), experts; where a pair was replaced it differs from the router's.
        keep: (N, k), which of these pairs are sent out; every token keeps at least one.
        weights: (N, k), the weights of the answers; 0 where a pair is dropped.
    """

    index: NDArray[int64]  # type: ignore[assignment]  # the name of a method of tuples
    keep: NDArray[bool_]
    weights: NDArray[floating[Any]]


class LayerView(NamedTuple):
    """All that an expert selection may look at.

    Attributes:
        layer: The layer.
        step: The token step, 0 for the prompt.
        routing: The router's choice.
        device_of: (E,), the device that serves each expert of this layer.
        costs: What sending to each device takes at the rates in force; at the scenario's shares where the policy
            shares the band for each layer.
        best_s: Called with :class:`Loads`, what the layer takes in seconds when the band is shared for these loads;
            ``None`` where the policy does not share the band for each layer.
    """

    layer: int
    step: int
    routing: Routing
    device_of: NDArray[int64]
    costs: Costs
    best_s: Optional[Band] = None


class Loads(NamedTuple):
    """What a selection asks of the devices in one layer.

    Attributes:
        tokens: (D,), rows of hidden state sent: a token travels once, even for several experts of a device.
        pairs: (D,), pairs of a token and an expert, which is as many rows as come back.
        experts: (D,), different experts asked for.
        counts: (E,), tokens of each expert.
        device_of: (E,), the device that serves each expert.
    """

    tokens: NDArray[int64]
    pairs: NDArray[int64]
    experts: NDArray[int64]
    counts: NDArray[int64]
    device_of: NDArray[int64]


def loads_of(selection: Selection, device_of: NDArray[int64], devices: int) -> Loads:
    """Return what a selection asks of the devices.

    Args:
        selection: The selection.
        device_of: (E,), the device that serves each expert.
        devices: D, the number of devices.
    """
    import numpy as np

    keep, chosen = selection.keep, selection.keep.shape[1]
    counts = np.bincount(selection.index[keep], minlength=len(device_of))
    pairs = np.bincount(device_of, weights=counts, minlength=devices).astype(np.int64)
    used = np.bincount(device_of, weights=counts > 0, minlength=devices).astype(np.int64)
    if len(keep) == 1:
        return Loads((pairs > 0).astype(np.int64), pairs, used, counts, device_of)
    # A token travels once: what goes to a device that it goes to already is no row more.
    serving = device_of[selection.index]
    tokens = pairs.copy()
    for late in range(1, chosen):
        again = np.zeros(len(keep), dtype=bool)
        for early in range(late):
            again |= keep[:, early] & (serving[:, early] == serving[:, late])
        tokens -= np.bincount(serving[again & keep[:, late], late], minlength=devices)
    return Loads(tokens, pairs, used, counts, device_of)
