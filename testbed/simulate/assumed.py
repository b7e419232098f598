"""The latency model of a campaign on a lab: as its calibration says, or as assumed before anything is measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from payloads.wdmoe.latency import TERMS, DeviceSpeed, LatencyError, LatencyModel
from payloads.wdmoe.pace import WEIGHT_BYTES, ExpertShape
from payloads.wire.frames import DTYPE_BYTES
from testbed.boards.kinds import dense_ops_per_s, memory_bandwidth_bytes_per_s
from testbed.config.campaign import Campaign
from testbed.config.inventory import Inventory, Pace
from testbed.errors import InputError

__all__ = [
    "Sizes",
    "assumed_model",
    "assumed_of_run",
    "assumed_speed",
    "calibrated",
    "calibrated_with",
    "check_calibration",
    "latency_model",
    "load_calibration",
    "shape_of",
]

#: What of a board's peak rates an expert's products are taken to reach; what the emulated boards take too.
OPS_EFFICIENCY, BYTES_EFFICIENCY = 0.4, 0.7

_INNER_KEYS = ("moe_intermediate_size", "expert_intermediate_size", "intermediate_size")


class Sizes(Protocol):
    """What is asked of a sharded model's manifest."""

    @property
    def hidden_size(self) -> int:
        """Model width."""

    @property
    def intermediate_size(self) -> int:
        """Inner width of an expert."""


def assumed_speed(pace: Pace | None, board: str | None) -> DeviceSpeed:
    """Return how fast a device is by what the lab says of it: its pace, or else its board's data sheet.

    Its ``fixed_ms`` is not known before it answers a ping.

    Args:
        pace: How fast it was told to compute, where it is emulated.
        board: The kind of board.
    """
    if pace is not None:
        return DeviceSpeed(float(pace.ops_per_s), float(pace.bytes_per_s), None)
    ops_per_s = OPS_EFFICIENCY * dense_ops_per_s(board)
    return DeviceSpeed(ops_per_s, BYTES_EFFICIENCY * memory_bandwidth_bytes_per_s(board), None)


def shape_of(campaign: Campaign, manifest: Sizes | None = None) -> ExpertShape:
    """Return the size of an expert of the campaign's model, by its manifest or else its config.json.

    Raises:
        InputError: The config does not say how wide the model and its experts are.
    """
    element_bytes = DTYPE_BYTES[campaign.dtype]
    weight_bytes = None if campaign.experts is None else WEIGHT_BYTES[campaign.experts]
    if manifest is not None:
        return ExpertShape(manifest.hidden_size, manifest.intermediate_size, element_bytes, weight_bytes)
    path = campaign.model / "config.json"
    config: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    inner_key = next((key for key in _INNER_KEYS if key in config), _INNER_KEYS[-1])
    hidden, inner = _size(path, config, "hidden_size"), _size(path, config, inner_key)
    return ExpertShape(hidden, inner, element_bytes, weight_bytes)


def _size(path: Path, config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError.at(path, None, key, f"a whole number above 0 was expected, not {value!r}")
    return value


def assumed_model(campaign: Campaign, inventory: Inventory, manifest: Sizes | None = None) -> LatencyModel:
    """Return the latency model before anything is measured: no round trip, no time at the base station.

    Args:
        campaign: The campaign: its model, its number format and the model's terms.
        inventory: The lab; its devices' order is the model's.
        manifest: The sharded model's manifest, where there is one.

    Raises:
        InputError: The model's config does not say how wide it is.
    """
    return LatencyModel(
        tuple(device.name for device in inventory.devices),
        shape_of(campaign, manifest),
        tuple(assumed_speed(device.pace, device.board) for device in inventory.devices),
        frozenset(TERMS if campaign.latency.terms is None else campaign.latency.terms),
        # Without the links' own word: netem and the line hold the first frame back, a token bucket does not.
        first_frame=inventory.network.leaf in {"netem", "line"},
        tls=inventory.network.security == "tls",
    )


def latency_model(campaign: Campaign, inventory: Inventory, manifest: Sizes | None = None) -> LatencyModel:
    """Return the latency model that a campaign asks for: its calibration's, or the assumed one.

    A calibration's speeds and times hold for the model at hand as they are: what a device takes for an operation and
    for a byte does not depend on how many there are. What the base station takes is that of the calibrated run.

    Raises:
        InputError: The calibration cannot be read, or lacks a device of the lab.
    """
    assumed = assumed_model(campaign, inventory, manifest)
    file = campaign.latency.calibration
    if file is None:
        return assumed
    return (
        calibrated(file, assumed.devices)
        .with_shape(assumed.shape)
        .with_terms(assumed.terms)
        .with_tls(assumed.tls)
    )


def calibrated(file: Path, devices: Iterable[str]) -> LatencyModel:
    """Return the latency model of some devices from a calibration.

    Args:
        file: A file that ``testbed calibrate`` wrote.
        devices: The devices' names, in the order of the model's.

    Raises:
        InputError: It cannot be read, is none, or lacks a device.
    """
    whole = load_calibration(file)
    try:
        return whole.limited(devices)
    except LatencyError as error:
        raise InputError(
            f"{file}: {error}", hint="calibrate with a run on this lab, or leave `latency.calibration` out"
        ) from error


def check_calibration(campaign: Campaign, inventory: Inventory) -> None:
    """Check that a campaign's calibration, where it names one, can be read and knows the lab's devices.

    Raises:
        InputError: It cannot be read, is none, or lacks a device.
    """
    if campaign.latency.calibration is not None:
        calibrated(campaign.latency.calibration, [device.name for device in inventory.devices])


def assumed_of_run(manifest: Mapping[str, Any], row_bytes: int) -> LatencyModel:
    """Return the model that was assumed of a run's lab, by the run's manifest.

    Args:
        manifest: The manifest.
        row_bytes: Bytes of one row of hidden state, as they were recorded.

    Raises:
        InputError: The manifest does not say what the model or the lab was.
    """
    try:
        shape, hosts = manifest["model"], manifest["inventory"]["hosts"]
        hidden, inner = int(shape["hidden_size"]), int(shape["intermediate_size"])
        devices = {name: host for name, host in hosts.items() if host["role"] == "device"}
        speeds = [
            assumed_speed(Pace(**host["pace"]) if host.get("pace") else None, host.get("board"))
            for host in devices.values()
        ]
        held = shape.get("weights")  # not there in runs from before there were such weights
        weight_bytes = None if held is None else WEIGHT_BYTES[held]
        sizes = ExpertShape(hidden, inner, row_bytes // hidden, weight_bytes)
        return LatencyModel(tuple(devices), sizes, tuple(speeds))
    except (KeyError, TypeError, ValueError) as error:
        name = manifest.get("run", "this run")
        raise InputError(f"{name}: its manifest does not say what its model and lab were: {error}") from error


def load_calibration(path: Path) -> LatencyModel:
    """Return the latency model of a file that ``testbed calibrate`` wrote.

    Raises:
        InputError: It cannot be read, or is none.
    """
    value = _calibration(path)
    try:
        return LatencyModel.from_json(value["model"])
    except LatencyError as error:
        raise InputError(f"{path}: {error}", hint=_HINT) from error


def calibrated_with(path: Path) -> str | None:
    """Return the name of the run that a calibration was made from; None where the file does not say.

    Raises:
        InputError: It cannot be read, or is none.
    """
    run = _calibration(path).get("run")
    return run if isinstance(run, str) else None


def _calibration(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}", hint=_HINT) from error
    except ValueError as error:
        raise InputError(f"{path}: is not JSON: {error}", hint=_HINT) from error
    if not isinstance(value, dict) or "model" not in value:
        raise InputError(f"{path}: a calibration was expected, an object with the key `model`", hint=_HINT)
    return value


_HINT = "`testbed calibrate RUN --out FILE` makes one"
