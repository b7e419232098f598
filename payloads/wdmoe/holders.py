"""Which device serves an expert that several devices hold. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Sequence, Tuple

if TYPE_CHECKING:
    from numpy import int64
    from numpy.typing import NDArray

    from payloads.wdmoe.costs import Costs

__all__ = ["Several", "first_holders", "serving_devices"]

#: Layer -> expert -> the columns of the devices that hold it, where they are several.
Several = Mapping[int, Mapping[int, Tuple[int, ...]]]


def first_holders(
    placement: Sequence[Sequence[Sequence[str]]], devices: Sequence[str]
) -> Tuple[NDArray[int64], Several]:
    """Return who serves each expert, and where there is a choice.

    Args:
        placement: For each layer and each expert, the devices that hold it.
        devices: The devices' names, in the order of the columns.

    Returns:
        (L, E), the first holder of each expert; and the experts with several.
    """
    import numpy as np

    column = {name: number for number, name in enumerate(devices)}
    first = np.array([[column[names[0]] for names in layer] for layer in placement])
    several: Dict[int, Dict[int, Tuple[int, ...]]] = {}
    for number, layer in enumerate(placement):
        held = {e: tuple(column[name] for name in names) for e, names in enumerate(layer) if len(names) > 1}
        if held:
            several[number] = held
    return first, several


def serving_devices(
    first: NDArray[int64],
    several: Mapping[int, Tuple[int, ...]],
    index: NDArray[Any],
    costs: Optional[Costs] = None,
) -> NDArray[int64]:
    """Return the device (E,) that serves each expert: of several the one that would be done first.

    Experts with one holder are what a device has to do anyway; the others are dealt out from the most wanted one on.
    An expert's tokens stay together.

    Args:
        first: (E,), the first holder of each expert of the layer.
        several: The holders of those that several devices hold.
        index: (N, k), the experts that are asked for.
        costs: What sending takes; where nobody knows, all devices count alike.
    """
    import numpy as np

    serving = first.copy()
    counts = np.bincount(index.reshape(-1), minlength=len(first))
    free = [expert for expert in several if counts[expert]]
    if not free:
        return serving
    devices = 1 + max(int(first.max()), *(holder for expert in free for holder in several[expert]))
    done_s = np.zeros(devices)

    def added_s(device: int, tokens: int) -> float:
        if costs is None:
            return float(tokens)
        return costs.tokens_s(device, tokens) + (0.0 if done_s[device] else float(costs.fixed_s[device]))

    for expert in np.flatnonzero(counts).tolist():
        if expert not in several:
            done_s[first[expert]] += added_s(int(first[expert]), int(counts[expert]))
    for expert in sorted(free, key=lambda one: (-counts[one], one)):
        tokens = int(counts[expert])
        device = min(several[expert], key=lambda holder: done_s[holder] + added_s(holder, tokens))
        done_s[device] += added_s(device, tokens)
        serving[expert] = device
    return serving
