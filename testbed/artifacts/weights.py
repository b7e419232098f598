"""Whether a model has weights: one without is a shape, for the simulator only."""

from __future__ import annotations

from pathlib import Path

from testbed.errors import InputError

__all__ = ["has_weights", "require_weights"]


def has_weights(model: Path) -> bool:
    """Return whether a model's folder holds weights."""
    return any(model.glob("*.safetensors")) or any(model.glob("*.safetensors.index.json"))


def require_weights(model: Path) -> None:
    """Refuse a model without weights.

    Raises:
        InputError: It has none.
    """
    if not has_weights(model):
        raise InputError(
            f"{model.name} is a shape and has no weights (no safetensors file in {model}): it cannot be run",
            hint="`testbed simulate` draws the routing of such a model",
        )
