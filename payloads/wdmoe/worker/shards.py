"""What a device is to hold, and how it is loaded: the wanted list and the experts' tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

import torch

from payloads.wdmoe.pace import ExpertShape
from payloads.wdmoe.tensors import TensorFile, TensorFileError
from payloads.wire.frames import DTYPE_BYTES

__all__ = ["ExpertWeights", "ShardError", "WantedExpert", "WantedList", "load_experts", "read_wanted"]


class ShardError(Exception):
    """The wanted list or an object is missing or wrong."""


class WantedExpert(NamedTuple):
    """One expert that the device holds.

    Attributes:
        layer: Its layer.
        expert: Its number in the layer.
        object: The sha256 of its object.
    """

    layer: int
    expert: int
    object: str


class WantedList(NamedTuple):
    """What a device holds.

    Attributes:
        model: The model's name.
        manifest: The sha256 of the model's manifest.
        dtype: Element type to compute in.
        hidden_size: Model width H.
        intermediate_size: Inner width I.
        activation: Name of the activation.
        experts: The experts.
    """

    model: str
    manifest: str
    dtype: str
    hidden_size: int
    intermediate_size: int
    activation: str
    experts: Tuple[WantedExpert, ...]

    def shape(self) -> ExpertShape:
        """Return the size of one expert."""
        return ExpertShape(self.hidden_size, self.intermediate_size, DTYPE_BYTES[self.dtype])


class ExpertWeights(NamedTuple):
    """An expert's weights, as views that a row vector is multiplied with.

    Attributes:
        gate_up: Shape (H, 2I).
        down: Shape (I, H).
    """

    gate_up: torch.Tensor
    down: torch.Tensor


def read_wanted(path: Path) -> WantedList:
    """Read a wanted list.

    Raises:
        ShardError: It cannot be read or lacks something.
    """
    try:
        value = json.loads(path.read_text())
        experts = tuple(
            WantedExpert(int(e["layer"]), int(e["expert"]), str(e["object"])) for e in value["experts"]
        )
        wanted = WantedList(
            model=str(value["model"]),
            manifest=str(value["manifest"]),
            dtype=str(value["dtype"]),
            hidden_size=int(value["hidden_size"]),
            intermediate_size=int(value["intermediate_size"]),
            activation=str(value["activation"]),
            experts=experts,
        )
    except OSError as error:
        raise ShardError(f"cannot read the wanted list {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"the wanted list {path} is damaged: {error!r}") from error
    if wanted.dtype not in DTYPE_BYTES:
        raise ShardError(f"the wanted list {path} names an unknown element type: {wanted.dtype}")
    return wanted


def load_experts(
    wanted: WantedList, objects: Path, device: torch.device
) -> Dict[Tuple[int, int], ExpertWeights]:
    """Load every wanted expert, converted to the run's element type.

    Args:
        wanted: The wanted list.
        objects: The folder of content-addressed objects.
        device: Where to compute.

    Raises:
        ShardError: An object is missing, damaged, or of another shape.
    """
    return {(e.layer, e.expert): _load(wanted, e, objects, device) for e in wanted.experts}


def describe(wanted: WantedList, experts: Dict[Tuple[int, int], ExpertWeights]) -> Dict[str, Any]:
    """Return what a worker says of itself to the base station."""
    held: List[List[int]] = [list(key) for key in sorted(experts)]
    parameters = sum(weights.gate_up.numel() + weights.down.numel() for weights in experts.values())
    return {
        "model": wanted.model,
        "manifest": wanted.manifest,
        "dtype": wanted.dtype,
        "hidden_size": wanted.hidden_size,
        "experts": held,
        "parameters": parameters,
    }


def _load(wanted: WantedList, expert: WantedExpert, objects: Path, device: torch.device) -> ExpertWeights:
    name = f"layer {expert.layer} expert {expert.expert}"
    path = objects / expert.object
    dtype: torch.dtype = getattr(torch, wanted.dtype)
    try:
        with TensorFile(path) as file:
            gate_up = file.tensor("gate_up_proj", dtype)
            down = file.tensor("down_proj", dtype)
    except OSError as error:
        raise ShardError(f"the object of {name} is missing: {path}; deploy again") from error
    except TensorFileError as error:
        raise ShardError(f"the object of {name} is damaged: {error}; deploy again") from error
    wide, narrow = wanted.intermediate_size, wanted.hidden_size
    if tuple(gate_up.shape) != (2 * wide, narrow) or tuple(down.shape) != (narrow, wide):
        raise ShardError(f"the object of {name} has another shape than the wanted list says: {path}")
    return ExpertWeights(gate_up.to(device).t(), down.to(device).t())
