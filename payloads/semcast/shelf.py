"""The models that a host holds: a list of names, configurations and weights, and the networks made of them."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Mapping, NamedTuple

from payloads.artifacts.marks import Mark
from payloads.json_input import parse_json

if TYPE_CHECKING:
    from payloads.semcast.network import Broadcast

__all__ = ["Shelf", "ShelfError"]

_DIGEST = re.compile(r"^[0-9a-f]{64}$")


class ShelfError(Exception):
    """The list of models is missing or wrong, or a model is not what it says."""


class _Listed(NamedTuple):
    """A model of the list.

    Attributes:
        config: Its configuration.
        weights: The sha256 of its weights, in hexadecimal, which is the name of their file.
    """

    config: Mapping[str, Any]
    weights: str


class Shelf:
    """The models of one host, read from its list; each network is made when it is first asked for.

    Args:
        path: The list: ``{"models": {name: {"config": {...}, "weights": {"object": sha256, "bytes": size}}}}``.
            Weights lie in the folder ``objects`` beside it.

    Raises:
        ShelfError: The list cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._objects = path.parent / "objects"
        self._networks: Dict[str, Broadcast] = {}
        try:
            models = parse_json(path.read_text())["models"]
            self._listed = {str(name): _listed(name, entry) for name, entry in models.items()}
        except OSError as error:
            raise ShelfError(f"cannot read {path}: {error.strerror}") from error
        except KeyError as error:
            raise ShelfError(f"{path}: {error.args[0]} is missing") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise ShelfError(f"{path} is damaged: {error}") from error

    def kept(self) -> Mark:
        """Keep the weights from being removed until the answer is closed: networks are made when first asked for."""
        return Mark("semcast", [listed.weights for listed in self._listed.values()], self._objects)

    def identities(self) -> Dict[str, str]:
        """Return a sha256 of each model by its name: two hosts with the same one hold the same model."""
        return {name: _identity(listed) for name, listed in self._listed.items()}

    def network(self, name: str) -> Broadcast:
        """Return a model's network.

        Raises:
            ShelfError: There is no such model here, or its weights are not what the list says.
        """
        if name in self._networks:
            return self._networks[name]
        from payloads.semcast.model_folder import ModelError, network_of

        if name not in self._listed:
            raise ShelfError(
                f"there is no model {name!r} here; there are {', '.join(self._listed) or 'none'}"
            )
        listed = self._listed[name]
        weights = self._objects / listed.weights
        try:
            if hashlib.sha256(weights.read_bytes()).hexdigest() != listed.weights:
                raise ShelfError(f"model {name}: {weights} is damaged")
            network = network_of(listed.config, weights)
        except OSError as error:
            raise ShelfError(f"model {name}: cannot read {weights}: {error.strerror}") from error
        except (ModelError, ValueError) as error:
            raise ShelfError(f"model {name}: {error}") from error
        self._networks[name] = network
        return network


def _listed(name: str, entry: Mapping[str, Any]) -> _Listed:
    config, digest = entry["config"], entry["weights"]["object"]
    if not isinstance(config, dict):
        raise ValueError(f"{name}: config: an object was expected")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ValueError(f"{name}: weights: object: a sha256 in hexadecimal was expected")
    return _Listed(config, digest)


def _identity(listed: _Listed) -> str:
    text = json.dumps([listed.config, listed.weights], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
