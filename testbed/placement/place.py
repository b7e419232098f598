"""Placement: which device holds which expert. Pure; no file, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from payloads.wire.frames import DTYPE_BYTES
from testbed.artifacts.manifest import Manifest
from testbed.errors import InputError

__all__ = [
    "DeviceCapacity",
    "Placement",
    "parse_capacity",
    "place_auto",
    "place_explicit",
    "placement_json",
    "wanted_list",
]

#: For each layer, for each expert, the devices that hold it.
Placement = dict[int, dict[int, tuple[str, ...]]]


@dataclass(frozen=True)
class DeviceCapacity:
    """What a device can take.

    Attributes:
        name: The device.
        memory_bytes: Memory for experts.
        speed: Relative speed. Decoding is bound by memory, so bytes per second are the better measure.
    """

    name: str
    memory_bytes: int
    speed: float


def place_auto(manifest: Manifest, devices: Sequence[DeviceCapacity], dtype: str) -> Placement:
    """Place every expert on one device: in each layer in proportion to speed, bounded by memory.

    Shares are rounded by largest remainder. A device that has not the memory for its share in every layer
    gets an even share of what fits, and the others take over the rest. Devices get consecutive experts, in
    the order of ``devices``. The same input always gives the same placement.

    Args:
        manifest: The model.
        devices: The devices.
        dtype: The element type that the experts are held in.

    Raises:
        InputError: There is no device, a speed is not above zero, or the experts do not fit.
    """
    _check_devices(devices)
    if dtype not in DTYPE_BYTES:
        raise InputError(f"dtype: expected one of {', '.join(DTYPE_BYTES)}, got {dtype!r}")
    expert_bytes = manifest.expert_parameters * DTYPE_BYTES[dtype]
    room = [device.memory_bytes // expert_bytes for device in devices]
    fastest = max(device.speed for device in devices)
    speeds = [device.speed / fastest for device in devices]
    needed = manifest.layers * manifest.experts_per_layer
    if sum(room) < needed:
        fits = ", ".join(f"{device.name} {count}" for device, count in zip(devices, room, strict=True))
        raise InputError(
            f"{manifest.model} does not fit: {needed} experts of {expert_bytes:,} bytes in {dtype}, "
            f"but there is room for {sum(room)} ({fits})",
            hint="Add devices, give them more memory for experts, or choose a smaller dtype.",
        )
    placement: Placement = {}
    for layer in range(manifest.layers):
        caps = _layer_caps(room, manifest.layers - layer, manifest.experts_per_layer)
        counts = _apportion(manifest.experts_per_layer, speeds, caps)
        owners = [device.name for device, count in zip(devices, counts, strict=True) for _ in range(count)]
        placement[layer] = {expert: (owner,) for expert, owner in enumerate(owners)}
        room = [left - count for left, count in zip(room, counts, strict=True)]
    return placement


def place_explicit(
    manifest: Manifest,
    wanted: Mapping[Any, Mapping[Any, str | Sequence[str]]],
    devices: Sequence[DeviceCapacity],
    dtype: str,
) -> Placement:
    """Check a placement that was written by hand.

    Args:
        manifest: The model.
        wanted: Layer to expert to a device or several.
        devices: The devices.
        dtype: The element type that the experts are held in.

    Raises:
        InputError: An expert is nowhere, a name or a number is not known, or a device's memory is too small.
            Every mistake is listed.
    """
    names = {device.name for device in devices}
    problems: list[str] = []
    placement: Placement = {}
    given = {str(layer): {str(e): holders for e, holders in row.items()} for layer, row in wanted.items()}
    known = {str(expert) for expert in range(manifest.experts_per_layer)}
    problems += [
        f"layer {layer}: {manifest.model} has layers 0 to {manifest.layers - 1}"
        for layer in given
        if layer not in {str(number) for number in range(manifest.layers)}
    ]
    for layer in range(manifest.layers):
        row = given.get(str(layer), {})
        problems += [
            f"layer {layer}: there is no expert {expert}, only 0 to {manifest.experts_per_layer - 1}"
            for expert in row
            if expert not in known
        ]
        placement[layer] = {}
        for expert in range(manifest.experts_per_layer):
            holders = row.get(str(expert), ())
            holders = (holders,) if isinstance(holders, str) else tuple(dict.fromkeys(holders))
            if not holders:
                problems.append(f"layer {layer}, expert {expert}: placed on no device")
            problems += [
                f"layer {layer}, expert {expert}: unknown device {holder}; known: {', '.join(sorted(names))}"
                for holder in holders
                if holder not in names
            ]
            placement[layer][expert] = holders
    expert_bytes = manifest.expert_parameters * DTYPE_BYTES[dtype]
    for device in devices:
        count = sum(device.name in holders for row in placement.values() for holders in row.values())
        if count * expert_bytes > device.memory_bytes:
            problems.append(
                f"{device.name}: {count} experts need {count * expert_bytes:,} bytes in {dtype}, "
                f"there are {device.memory_bytes:,}"
            )
    if problems:
        raise InputError("the placement cannot be used:", problems=problems)
    return placement


def wanted_list(manifest: Manifest, placement: Placement, device: str, dtype: str) -> dict[str, Any]:
    """Return the wanted list of a device: what it pulls and its worker loads.

    Args:
        manifest: The model.
        placement: The placement.
        device: The device's name.
        dtype: The element type that the worker computes in.
    """
    experts = [
        {"layer": entry.layer, "expert": entry.expert, "object": entry.object, "bytes": entry.bytes}
        for entry in manifest.experts
        if device in placement[entry.layer][entry.expert]
    ]
    return {
        "model": manifest.model,
        "manifest": manifest.digest(),
        "family": manifest.family,
        "dtype": dtype,
        "hidden_size": manifest.hidden_size,
        "intermediate_size": manifest.intermediate_size,
        "activation": manifest.activation,
        "experts": experts,
    }


def parse_capacity(text: str) -> DeviceCapacity:
    """Read a device's capacity from ``NAME=MEMORY_GB:SPEED``.

    Raises:
        InputError: The text has another form.
    """
    name, equals, rest = text.partition("=")
    memory, colon, speed = rest.partition(":")
    try:
        capacity = DeviceCapacity(name, int(float(memory) * 1e9), float(speed))
    except (ValueError, OverflowError):
        capacity = None
    if not name or not equals or not colon or capacity is None or capacity.memory_bytes < 0:
        raise InputError(f"--device: expected NAME=MEMORY_GB:SPEED, such as orin-nano=4:68, got {text!r}")
    return capacity


def placement_json(placement: Placement) -> dict[str, dict[str, list[str]]]:
    """Return a placement as it stands in the base station's ``devices.json``."""
    return {
        str(layer): {str(expert): list(holders) for expert, holders in row.items()}
        for layer, row in placement.items()
    }


def _check_devices(devices: Sequence[DeviceCapacity]) -> None:
    if not devices:
        raise InputError("there is no device to place experts on")
    slow = [device.name for device in devices if not 0 < device.speed < float("inf")]
    if slow:
        raise InputError(f"the speed of {', '.join(slow)} is not a number above 0")


def _layer_caps(room: Sequence[int], layers: int, experts: int) -> list[int]:
    """Return how many experts each device may get in this layer, so that the later ones still fit."""
    caps = [left // layers for left in room]
    # Rounding down can leave too little; those with the most left over give one more.
    by_rest = sorted(range(len(room)), key=lambda i: (-(room[i] % layers), i))
    for i in by_rest[: max(0, experts - sum(caps))]:
        caps[i] += 1
    return caps


def _apportion(total: int, speeds: Sequence[float], caps: Sequence[int]) -> list[int]:
    """Share ``total`` in proportion to ``speeds`` by largest remainder, none above its cap."""
    counts = [0] * len(speeds)
    free = set(range(len(speeds)))
    left = total
    while True:
        weight = sum(speeds[i] for i in sorted(free))
        over = {i for i in free if left * speeds[i] / weight > caps[i]}
        if not over:
            break
        for i in over:
            counts[i] = caps[i]
            left -= caps[i]
        free -= over
    quotas = {i: left * speeds[i] / weight for i in sorted(free)}
    for i, quota in quotas.items():
        counts[i] = int(quota)
    rest = left - sum(int(quota) for quota in quotas.values())
    order = sorted(quotas, key=lambda i: (-(quotas[i] - int(quotas[i])), -speeds[i], i))
    for i in [i for i in order if counts[i] < caps[i]][:rest]:
        counts[i] += 1
    return counts
