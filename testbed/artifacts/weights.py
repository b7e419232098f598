"""Whether a model has what a run needs: a tokenizer and weights; one without is a shape, for the simulator only."""

from __future__ import annotations

from pathlib import Path

from testbed.errors import InputError

__all__ = ["has_weights", "require_tokenizer", "require_weights"]

#: Where a tokenizer has its vocabulary; one of them is in every model's folder that has a tokenizer.
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")


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


def require_tokenizer(model: Path) -> None:
    """Refuse a model whose prompts nobody could read.

    Raises:
        InputError: It has no tokenizer.
    """
    if not any((model / name).is_file() for name in _VOCABULARIES):
        raise InputError(
            f"{model.name} has no tokenizer (none of {', '.join(_VOCABULARIES)} in {model}): no prompt can be read",
            hint="copy the tokenizer's files of the checkpoint beside its weights",
        )
