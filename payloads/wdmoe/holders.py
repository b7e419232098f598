"""Which device serves an expert that several devices hold. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Mapping, Sequence, Tuple

if TYPE_CHECKING:
    from numpy import int64
    from numpy.typing import NDArray

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
    first: NDArray[int64], several: Mapping[int, Tuple[int, ...]], index: NDArray[Any]
) -> NDArray[int64]:
    """Return the device (E,) that serves each expert: of several the one with the least to do so far.

    An expert's tokens stay together.

    Args:
        first: (E,), the first holder of each expert of the layer.
        several: The holders of those that several devices hold.
        index: (N, k), the experts that are asked for.
    """
    import numpy as np

    serving = first.copy()
    load: Dict[int, int] = {}
    counts = np.bincount(index.reshape(-1), minlength=len(first))
    for expert in np.flatnonzero(counts).tolist():
        holders = several.get(expert, (int(first[expert]),))
        device = min(holders, key=lambda holder: load.get(holder, 0))
        serving[expert] = device
        load[device] = load.get(device, 0) + int(counts[expert])
    return serving
