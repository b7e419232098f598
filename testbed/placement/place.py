"""Placement: which device holds which expert. Pure; no file, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from payloads.wdmoe.pace import WEIGHT_BYTES, ExpertShape
from payloads.wire.frames import DTYPE_BYTES
from testbed.artifacts.manifest import Manifest
from testbed.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = [
    "DeviceCapacity",
    "Placement",
    "expert_bytes",
    "expert_shape",
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
        why: What the memory follows from, in words; empty where it was given.
    """

    name: str
    memory_bytes: int
    speed: float
    why: str = ""


def place_auto(
    manifest: Manifest,
    devices: Sequence[DeviceCapacity],
    dtype: str,
    *,
    frequency: Floats | None = None,
    copies: int = 1,
    hot_copies: int = 0,
) -> Placement:
    """Place every expert by memory, speed and how often it is asked for; see :mod:`testbed.placement.solve`.

    Args:
        manifest: The model.
        devices: The devices.
        dtype: The element type that the experts are held in.
        frequency: (L, E), the share of a layer's choices that each expert gets; all alike where it is left out.
        copies: How many devices hold each expert.
        hot_copies: How many further copies there are in each layer at most, of what loads the most loaded device.

    Raises:
        InputError: There is no device, two have one name, a speed is not above zero, or the experts do not fit.
    """
    import numpy as np

    from testbed.placement.solve import Demand, NoRoomError, solve

    _check_devices(devices)
    if copies > len(devices):
        raise InputError(
            f"{copies} copies of each expert need {copies} devices, and there are {len(devices)}"
        )
    one_bytes = expert_bytes(manifest, dtype)
    room = [device.memory_bytes // one_bytes for device in devices]
    layers, experts = manifest.layers, manifest.experts_per_layer
    if frequency is None:
        frequency = np.full((layers, experts), 1 / experts)
    try:
        placed = solve(Demand(frequency, copies, hot_copies), room, [device.speed for device in devices])
    except NoRoomError as error:
        raise InputError(
            _no_room(manifest, dtype, devices, copies),
            hint="Add devices, free memory on them, choose a smaller dtype, `experts: int8`, or fewer copies.",
        ) from error
    names = [device.name for device in devices]
    return {
        layer: {
            expert: tuple(name for name, held in zip(names, row, strict=True) if held)
            for expert, row in enumerate(holds.tolist())
        }
        for layer, holds in enumerate(placed)
    }


def expert_bytes(manifest: Manifest, dtype: str) -> int:
    """Return the memory that a device needs for one expert.

    Raises:
        InputError: There is no such element type.
    """
    return expert_shape(manifest, dtype).weights_bytes


def expert_shape(manifest: Manifest, dtype: str) -> ExpertShape:
    """Return the size of an expert, as it is held where the run's element type is ``dtype``.

    Raises:
        InputError: There is no such element type.
    """
    if dtype not in DTYPE_BYTES:
        raise InputError(f"dtype: expected one of {', '.join(DTYPE_BYTES)}, got {dtype!r}")
    weight_bytes = None if manifest.weights is None else WEIGHT_BYTES[manifest.weights]
    return ExpertShape(manifest.hidden_size, manifest.intermediate_size, DTYPE_BYTES[dtype], weight_bytes)


def _no_room(manifest: Manifest, dtype: str, devices: Sequence[DeviceCapacity], copies: int) -> str:
    one_bytes = expert_bytes(manifest, dtype)
    needed = manifest.layers * manifest.experts_per_layer
    held = dtype if manifest.weights is None else manifest.weights
    each = f" on {copies} devices each" if copies > 1 else ""
    room = [device.memory_bytes // one_bytes for device in devices]
    fits = ", ".join(
        f"{device.name} {count}{f', {device.why}' if device.why else ''}"
        for device, count in zip(devices, room, strict=True)
    )
    return (
        f"{manifest.model} does not fit: {needed} experts of {one_bytes:,} bytes in {held}{each}, "
        f"but there is room for {sum(room)} ({fits})"
    )


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
    one_bytes = expert_bytes(manifest, dtype)
    for device in devices:
        count = sum(device.name in holders for row in placement.values() for holders in row.values())
        if count * one_bytes > device.memory_bytes:
            problems.append(
                f"{device.name}: {count} experts need {count * one_bytes:,} bytes in {manifest.weights or dtype}, "
                f"there are {device.memory_bytes:,}{f' ({device.why})' if device.why else ''}"
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
        "weights": manifest.weights,
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
        raise InputError(
            "there is no device to place experts on", hint="Name each one: --device NAME=GB:SPEED."
        )
    names = [device.name for device in devices]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{', '.join(twice)}: there is more than one device of this name")
    slow = [device.name for device in devices if not 0 < device.speed < float("inf")]
    if slow:
        raise InputError(f"the speed of {', '.join(slow)} is not a number above 0")
