"""What a device is to hold, and how it is loaded: the wanted list and the experts' tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch

from payloads.artifacts.store import Store, hash_file
from payloads.tensors import TensorFile, TensorFileError
from payloads.wdmoe.pace import WEIGHT_BYTES, ExpertShape
from payloads.wdmoe.worker.products import Matrix
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
        weights: How the experts' weights are held, where it is not in ``dtype``: ``int8``.
    """

    model: str
    manifest: str
    dtype: str
    hidden_size: int
    intermediate_size: int
    activation: str
    experts: Tuple[WantedExpert, ...]
    weights: Optional[str] = None

    def shape(self) -> ExpertShape:
        """Return the size of one expert."""
        weight_bytes = None if self.weights is None else WEIGHT_BYTES[self.weights]
        return ExpertShape(self.hidden_size, self.intermediate_size, DTYPE_BYTES[self.dtype], weight_bytes)


class ExpertWeights(NamedTuple):
    """An expert's weights.

    Attributes:
        gate_up: (H, 2I).
        down: (I, H).
    """

    gate_up: Matrix
    down: Matrix


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
            weights=value.get("weights"),
        )
    except OSError as error:
        raise ShardError(f"cannot read the wanted list {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"the wanted list {path} is damaged: {error!r}") from error
    if wanted.dtype not in DTYPE_BYTES:
        raise ShardError(f"the wanted list {path} names an unknown element type: {wanted.dtype}")
    if wanted.weights is not None and wanted.weights not in WEIGHT_BYTES:
        raise ShardError(f"the wanted list {path} names unknown weights: {wanted.weights!r}")
    return wanted


def load_experts(
    wanted: WantedList, objects: Path, device: torch.device
) -> Dict[Tuple[int, int], ExpertWeights]:
    """Load every wanted expert, converted to the run's element type; int8 weights stay as they are.

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
    parameters = sum(
        weights.gate_up.weight.numel() + weights.down.weight.numel() for weights in experts.values()
    )
    return {
        "model": wanted.model,
        "manifest": wanted.manifest,
        "dtype": wanted.dtype,
        "weights": wanted.weights,
        "hidden_size": wanted.hidden_size,
        "experts": held,
        "parameters": parameters,
    }


def _load(wanted: WantedList, expert: WantedExpert, objects: Path, device: torch.device) -> ExpertWeights:
    name = f"layer {expert.layer} expert {expert.expert}"
    path = objects / expert.object
    try:
        # Disks and memory flip bits, and an answer computed from such a weight would look like any other.
        if hash_file(path).hexdigest() != expert.object:
            Store(objects).distrust(expert.object)  # so that the next pull fetches it anew
            raise ShardError(
                f"the object of {name} is damaged: {path} is not what its name says; deploy again"
            )
        with TensorFile(path) as file:
            gate_up = _matrix(file, "gate_up", wanted, device)
            down = _matrix(file, "down", wanted, device)
    except OSError as error:
        raise ShardError(f"the object of {name} is missing: {path}; deploy again") from error
    except TensorFileError as error:
        raise ShardError(f"the object of {name} is damaged: {error}; deploy again") from error
    wide, narrow = wanted.intermediate_size, wanted.hidden_size
    if not (_fits(gate_up, narrow, 2 * wide) and _fits(down, wide, narrow)):
        raise ShardError(f"the object of {name} has another shape than the wanted list says: {path}")
    return ExpertWeights(gate_up, down)


def _matrix(file: TensorFile, part: str, wanted: WantedList, device: torch.device) -> Matrix:
    """Read one matrix of an expert.

    Raises:
        TensorFileError: It is not there, or its element type is another one.
    """
    key = f"{part}_proj"
    held = file.info(key).dtype
    quantised = wanted.weights == "int8"
    if (held == "I8") != quantised:
        raise TensorFileError(
            f"{file.path}: {key} is {'int8' if held == 'I8' else held}, "
            f"the wanted list says {wanted.weights or wanted.dtype}"
        )
    if not quantised:
        dtype: torch.dtype = getattr(torch, wanted.dtype)
        return Matrix(file.tensor(key, dtype).to(device).t())
    scale = file.tensor(f"{part}_scale", torch.float32).to(device)
    return Matrix(file.tensor(key).to(device).t(), scale)


def _fits(matrix: Matrix, inputs: int, outputs: int) -> bool:
    right = tuple(matrix.weight.shape) == (inputs, outputs)
    return right and (matrix.scale is None or tuple(matrix.scale.shape) == (outputs,))
