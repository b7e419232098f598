"""The models of a broadcast campaign: their configurations, and where their weights lie. Needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.config.broadcast import BroadcastCampaign
from testbed.errors import InputError

__all__ = ["Model", "models_of"]

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Model:
    """One model.

    Attributes:
        name: Its name: that of its folder.
        folder: Its folder.
        config: Its config.json.
        object: The sha256 of its weights, in hexadecimal.
        bytes: The size of its weights.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    object: str
    bytes: int

    @property
    def weights(self) -> Path:
        """The file of the weights."""
        return self.folder / WEIGHTS

    @property
    def training_seed(self) -> int | None:
        """What its training's random choices followed from, where its configuration says so."""
        training = self.config.get("training")
        seed = training.get("seed") if isinstance(training, dict) else None
        return seed if isinstance(seed, int) else None

    def listed(self) -> dict[str, Any]:
        """Return it as a host's list of models has it."""
        return {"config": dict(self.config), "weights": {"object": self.object, "bytes": self.bytes}}

    def described(self) -> dict[str, Any]:
        """Return it as a run's manifest has it."""
        kept = ("users", "slots", "width", "blocks", "backbone", "sees_csi", "by_similarity")
        return {
            "plays": self.config.get("scheme"),
            "training_seed": self.training_seed,
            "weights": self.object,
            "bytes": self.bytes,
            **{key: self.config[key] for key in kept if key in self.config},
        }


def models_of(campaign: BroadcastCampaign) -> dict[str, Model]:
    """Return the models of a campaign by their names.

    Raises:
        InputError: A model has no weights.
    """
    models: dict[str, Model] = {}
    for folder, config in campaign.configs.items():
        try:
            data = (folder / WEIGHTS).read_bytes()
        except OSError as error:
            raise InputError(
                f"{folder / WEIGHTS}: the model's weights cannot be read: {error.strerror}",
                hint="scripts/train_semcast.py makes them",
            ) from None
        models[folder.name] = Model(folder.name, folder, config, hashlib.sha256(data).hexdigest(), len(data))
    return models
