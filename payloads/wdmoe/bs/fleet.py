"""Which devices hold which experts, and whether one of them really does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Optional, Tuple

from payloads.station.devices import DevicesError, DeviceSpec, read_devices, reading

__all__ = ["FleetSpec", "mismatch", "read_fleet"]


class FleetSpec(NamedTuple):
    """The devices and the placement.

    Attributes:
        devices: The devices.
        placement: For each layer, for each expert, the names of the devices that hold it.
    """

    devices: Tuple[DeviceSpec, ...]
    placement: Tuple[Tuple[Tuple[str, ...], ...], ...]


def read_fleet(path: Path, layers: int, experts: int) -> FleetSpec:
    """Read the devices file of a model with so many layers and experts in each.

    Raises:
        DevicesError: It cannot be read, an expert is placed nowhere, or a device is not known.
    """
    with reading(path):
        value = json.loads(path.read_text())
        devices = read_devices(value)
        placement = tuple(
            tuple(_holders(value["placement"], layer, expert) for expert in range(experts))
            for layer in range(layers)
        )
    known = {device.name for device in devices}
    named = {name for layer in placement for holders in layer for name in holders}
    if named - known:
        raise DevicesError(
            f"{path}: the placement names an unknown device: {', '.join(sorted(named - known))}"
        )
    return FleetSpec(devices, placement)


def _holders(placement: Mapping[str, Any], layer: int, expert: int) -> Tuple[str, ...]:
    try:
        names = placement[str(layer)][str(expert)]
    except KeyError:
        raise KeyError(f"the placement of layer {layer} expert {expert}") from None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"layer {layer} expert {expert}: expected a list of device names, got {names!r}")
    return tuple(names)


def mismatch(
    fleet: FleetSpec, manifest: str, dtype: str, name: str, description: Mapping[str, Any]
) -> Optional[str]:
    """Return what is wrong with a device that is to hold the experts placed on it; ``None`` where nothing is.

    Args:
        fleet: The devices and the placement.
        manifest: The sha256 of the model's manifest.
        dtype: The run's element type.
        name: The device.
        description: What its worker says of itself.
    """
    if description.get("manifest") != manifest:
        return "holds the experts of another model"
    if description.get("dtype") != dtype:
        return f"computes in {description.get('dtype')}, not in {dtype}"
    try:
        held = {(int(layer), int(expert)) for layer, expert in description["experts"]}
        int(description["parameters"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return "does not say properly what it holds"
    for layer, experts in enumerate(fleet.placement):
        for expert, holders in enumerate(experts):
            if name in holders and (layer, expert) not in held:
                return f"does not hold layer {layer} expert {expert}, which is placed on it"
    return None
