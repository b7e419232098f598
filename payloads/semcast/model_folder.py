"""A trained model on disk: ``config.json`` with the settings, ``model.safetensors`` with the weights, ``README.md``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Mapping

import torch

from payloads.semcast.klt import Klt
from payloads.semcast.network import Broadcast
from payloads.semcast.settings import from_config
from payloads.tensors import TensorFile, TensorFileError

__all__ = ["ModelError", "load_network", "network_of"]


class ModelError(Exception):
    """A model's folder cannot be used; the message says which file, what, and what was expected."""


def load_network(folder: Path) -> Broadcast:
    """Return the model in a folder, ready to be used.

    Raises:
        ModelError: A file is missing, damaged, or does not belong to the other.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path}: no JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: a JSON object was expected")
    try:
        return network_of(config, folder / "model.safetensors")
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from error


def network_of(config: Mapping[str, Any], weights: Path) -> Broadcast:
    """Return the model with these settings and the weights in a safetensors file.

    Raises:
        ModelError: The weights cannot be read, or do not fit the settings.
        ValueError: A setting is missing or wrong.
    """
    settings = from_config(config)
    try:
        with TensorFile(weights) as file:
            tensors = {name: file.tensor(name, torch.float32) for name in file.tensors}
    except OSError as error:
        raise ModelError(f"{weights}: cannot be read: {error.strerror}") from error
    except TensorFileError as error:
        raise ModelError(str(error)) from error
    parts = 192
    klt = Klt(torch.zeros(parts), torch.zeros(parts, parts), torch.ones(parts))
    # Weights that are about to be read need no random ones first.
    network = Broadcast(settings, klt)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    for name, shape in wanted.items():
        if name not in tensors:
            raise ModelError(f"{weights}: {name} is missing, which the settings need")
        if tuple(tensors[name].shape) != shape:
            raise ModelError(
                f"{weights}: {name} of shape {shape} was expected, not {tuple(tensors[name].shape)}"
            )
    unknown = sorted(set(tensors) - set(wanted))
    if unknown:
        raise ModelError(f"{weights}: {unknown[0]} belongs to no part of such a network")
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False)
