"""Models for the simulator: one with weights as `testbed run` shards it, or the numbers of a shape without any."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from payloads.wdmoe.families import FAMILIES, ConfigError, Family, family_of
from testbed.artifacts.manifest import ExpertObject, Manifest
from testbed.artifacts.weights import has_weights
from testbed.campaigns.placed import sharded
from testbed.errors import InputError

__all__ = ["SimulatedModel", "simulated_model"]


class SimulatedModel(NamedTuple):
    """A model as the simulator needs it.

    Attributes:
        manifest: Its numbers; of a shape, with objects that nobody has.
        family: Its family.
        config: Its config.json.
        weights: Whether it has weights, so that its routing can be recorded.
    """

    manifest: Manifest
    family: Family
    config: Mapping[str, Any]
    weights: bool


def simulated_model(model: Path, experts: Literal["int8"] | None = None) -> SimulatedModel:
    """Return a model by its folder.

    Args:
        model: The folder.
        experts: How the experts' weights are held; as in the checkpoint where None.

    Raises:
        InputError: Its family is not known, or its config.json lacks a number.
    """
    path = model / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    family = family_of(config)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise InputError(f"{path}: the family {config.get('model_type')!r} is not known; known: {known}")
    if has_weights(model):
        return SimulatedModel(sharded(model, experts).manifest, family, config, True)
    try:
        numbers = family.shape(config)
    except ConfigError as error:
        raise InputError(f"{path}: {error}") from error
    nobody_has = hashlib.sha256(path.read_bytes()).hexdigest()
    expert_parameters = 3 * numbers.hidden_size * numbers.intermediate_size
    whole = config.get("parameters")  # of a shape that tells; nothing but a line of the report depends on it
    count = numbers.layers * numbers.experts
    manifest = Manifest(
        model=model.name,
        family=family.name,
        dtype=str(config.get("dtype", "bfloat16")),
        layers=numbers.layers,
        experts_per_layer=numbers.experts,
        experts_per_token=numbers.experts_per_token,
        hidden_size=numbers.hidden_size,
        intermediate_size=numbers.intermediate_size,
        vocabulary=numbers.vocabulary,
        activation=numbers.activation,
        base_parameters=whole - count * expert_parameters if isinstance(whole, int) else 0,
        expert_parameters=expert_parameters,
        experts=tuple(
            ExpertObject(layer, expert, nobody_has, 0)
            for layer in range(numbers.layers)
            for expert in range(numbers.experts)
        ),
        base_station=(),
        moe_layers=numbers.moe_layers,
        weights=experts,
    )
    return SimulatedModel(manifest, family, config, False)
