"""The manifest of a sharded model: which objects it is made of, and its numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from payloads.wdmoe.pace import WEIGHT_BYTES
from testbed.errors import InputError

__all__ = ["WEIGHTS", "BaseFile", "ExpertObject", "Manifest", "load_manifest", "manifest_from_json"]

FORMAT = 2
#: How the experts' weights may be held, other than in the checkpoint's element type.
WEIGHTS = tuple(WEIGHT_BYTES)


@dataclass(frozen=True)
class ExpertObject:
    """One expert.

    Attributes:
        layer: Its layer.
        expert: Its number in the layer.
        object: The sha256 of its object.
        bytes: The object's size.
    """

    layer: int
    expert: int
    object: str
    bytes: int


@dataclass(frozen=True)
class BaseFile:
    """One file of the base station's part.

    Attributes:
        name: The file's name in the model's folder.
        object: The sha256 of its object.
        bytes: The object's size.
    """

    name: str
    object: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """A sharded model.

    Attributes:
        model: The model's name.
        family: Its family, as in ``payloads.wdmoe.families``.
        dtype: Element type of the experts in the checkpoint.
        layers: Number of layers with experts; everywhere but in ``moe_layers`` they are numbered from 0.
        experts_per_layer: Experts in each layer.
        experts_per_token: How many the router picks.
        hidden_size: Model width H.
        intermediate_size: Inner width I of an expert.
        vocabulary: Size of the vocabulary.
        activation: Name of the experts' activation.
        base_parameters: Parameters at the base station, tied ones once.
        expert_parameters: Parameters of one expert.
        experts: Every expert, by layer and number.
        base_station: The base station's files.
        moe_layers: For each layer, the layer of the checkpoint that it is; left empty, each is its own.
        weights: ``int8`` where the experts are 8 bits with a scale for each row, ``None`` where they are as in the
            checkpoint.
    """

    model: str
    family: str
    dtype: str
    layers: int
    experts_per_layer: int
    experts_per_token: int
    hidden_size: int
    intermediate_size: int
    vocabulary: int
    activation: str
    base_parameters: int
    expert_parameters: int
    experts: tuple[ExpertObject, ...]
    base_station: tuple[BaseFile, ...]
    moe_layers: tuple[int, ...] = ()
    weights: str | None = None

    def __post_init__(self) -> None:
        if not self.moe_layers:
            object.__setattr__(self, "moe_layers", tuple(range(self.layers)))

    @property
    def parameters(self) -> int:
        """All parameters of the model."""
        return self.base_parameters + len(self.experts) * self.expert_parameters

    def to_json(self) -> str:
        """Return the manifest file's text; equal manifests have equal texts."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True) + "\n"

    def digest(self) -> str:
        """Return the sha256 of the manifest file."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def objects(self) -> dict[str, int]:
        """Return the size of every object, by sha256."""
        base = {entry.object: entry.bytes for entry in self.base_station}
        return base | {entry.object: entry.bytes for entry in self.experts}


def load_manifest(path: Path) -> Manifest:
    """Read a manifest file.

    Raises:
        InputError: It cannot be read, or is none.
    """
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {error.strerror}", hint="Make it with `testbed shard`."
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: is not JSON: {error}") from error
    return manifest_from_json(value, path)


def manifest_from_json(value: Mapping[str, Any], path: Path) -> Manifest:
    """Build a manifest from the content of its file.

    Raises:
        InputError: Something is missing, or it is of another format.
    """
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise InputError(
            f"{path}: expected a model's manifest of format {FORMAT}", hint="Run `testbed shard` again."
        )
    fields = {name: entry for name, entry in value.items() if name != "format"}
    try:
        fields["experts"] = tuple(ExpertObject(**entry) for entry in fields["experts"])
        fields["base_station"] = tuple(BaseFile(**entry) for entry in fields["base_station"])
        fields["moe_layers"] = tuple(int(layer) for layer in fields["moe_layers"])
        manifest = Manifest(**fields)
        wanted = {(layer, e) for layer in range(manifest.layers) for e in range(manifest.experts_per_layer)}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: the manifest is damaged: {error}", hint="Run `testbed shard` again."
        ) from error
    if {(entry.layer, entry.expert) for entry in manifest.experts} != wanted:
        raise InputError(
            f"{path}: the manifest does not list every expert", hint="Run `testbed shard` again."
        )
    if len(manifest.moe_layers) != manifest.layers or list(manifest.moe_layers) != sorted(
        set(manifest.moe_layers)
    ):
        raise InputError(
            f"{path}: moe_layers does not name {manifest.layers} layers of the checkpoint, one after the other",
            hint="Run `testbed shard` again.",
        )
    if manifest.weights is not None and manifest.weights not in WEIGHTS:
        raise InputError(
            f"{path}: weights: expected null or {' or '.join(WEIGHTS)}, got {manifest.weights!r}",
            hint="Run `testbed shard` again.",
        )
    return manifest
