"""The sizes of a campaign's model, and settings of its policies that have other ones. Pure but for one small file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["ModelSizes", "length_problem", "model_sizes", "size_problems"]


class ModelSizes(NamedTuple):
    """How large a model is, where its config.json says so.

    Attributes:
        layers: How many layers it has.
        experts: How many experts a layer has.
        positions: The longest text that it reads, in tokens.
        shared_positions: The same where a request shares its passes with others or is read in chunks, if that differs.
    """

    layers: int | None
    experts: int | None
    positions: int | None = None
    shared_positions: int | None = None


def model_sizes(folder: Path) -> ModelSizes:
    """Return the sizes of a model by its folder."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))

    def first(*keys: str) -> int | None:
        return next((int(config[key]) for key in keys if isinstance(config.get(key), int)), None)

    return ModelSizes(
        first("num_hidden_layers"),
        first("num_local_experts", "num_experts", "n_routed_experts"),
        # The base station's own limit, whatever the rotary embedding is scaled by.
        first("max_position_embeddings"),
        _longrope_positions(config),
    )


def _longrope_positions(config: Mapping[str, Any]) -> int | None:
    """Return the length that a model with longrope was first trained for, as its file says it.

    The base station asks transformers' own form of it: ``positions_limit`` in ``payloads/wdmoe/bs/kv_cache.py``.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(rope, dict) or (rope.get("rope_type") or rope.get("type")) != "longrope":
        return None
    key = "original_max_position_embeddings"
    found = config.get(key) or rope.get(key)
    return found if isinstance(found, int) else None


def length_problem(new: int, sizes: ModelSizes, *, shared: bool) -> str:
    """Return why no answer can have so many tokens; empty where the model does not say so.

    Args:
        new: How many tokens an answer may have.
        sizes: The model's sizes.
        shared: Whether requests share their passes, or are read in chunks.
    """
    limits = [(sizes.positions, "")]
    if shared:
        limits.append((sizes.shared_positions, ", where several requests share a pass or prompts are cut"))
    for positions, where in limits:
        if positions is not None and new >= positions:
            most = f"at most {positions - 1} was expected, not {new}"
            return f"{most}: the model reads {positions} tokens, prompt and answer together{where}"
    return ""


def size_problems(settings: Mapping[str, Any], sizes: ModelSizes) -> Iterator[tuple[str, str]]:
    """Yield the settings of a selection that have a size which the model has not, with what is wrong.

    What is no number or matrix at all is the kind's own matter.
    """
    layers, experts = sizes.layers, sizes.experts
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
