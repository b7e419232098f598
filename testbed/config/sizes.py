"""The sizes of a campaign's model, and settings of its policies that have other ones. Pure but for one small file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["ModelSizes", "model_sizes", "size_problems"]


class ModelSizes(NamedTuple):
    """How large a model is, where its config.json says so.

    Attributes:
        layers: How many layers it has.
        experts: How many experts a layer has.
    """

    layers: int | None
    experts: int | None


def model_sizes(folder: Path) -> ModelSizes:
    """Return the sizes of a model by its folder."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))

    def first(*keys: str) -> int | None:
        return next((int(config[key]) for key in keys if isinstance(config.get(key), int)), None)

    return ModelSizes(
        first("num_hidden_layers"), first("num_local_experts", "num_experts", "n_routed_experts")
    )


def size_problems(settings: Mapping[str, Any], sizes: ModelSizes) -> Iterator[tuple[str, str]]:
    """Yield the settings of a selection that have a size which the model has not, with what is wrong.

    What is no number or matrix at all is the kind's own matter.
    """
    layers, experts = sizes
    k, costs = settings.get("k"), settings.get("layer_cost")
    alike: Any = settings.get("similarity")
    if isinstance(k, int) and experts is not None and k > experts:
        yield "k", f"at most {experts} was expected (the model's experts), not {k}"
    if isinstance(costs, list) and layers is not None and len(costs) != layers:
        yield "layer_cost", f"{layers} numbers were expected (one a layer of the model), not {len(costs)}"
    if not _nested(alike):
        return
    if _nested(alike[0]):
        if layers is not None and len(alike) != layers:
            yield (
                "similarity",
                f"{layers} matrices were expected (one a layer of the model), not {len(alike)}",
            )
        alike = alike[0]
    if experts is not None and len(alike) != experts:
        wanted = f"{experts} x {experts}"
        yield (
            "similarity",
            f"a matrix of {wanted} was expected (the model's experts), not of {len(alike)} rows",
        )


def _nested(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], list)
