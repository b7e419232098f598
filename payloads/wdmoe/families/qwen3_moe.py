"""Qwen3-MoE: some layers may be dense, none has a shared expert."""

from __future__ import annotations

from typing import Any, Mapping, Tuple

from payloads.wdmoe.families.base import ConfigError, Family, depth_of, key_patterns, number, renormalised_if


def sparse_layers(config: Mapping[str, Any]) -> Tuple[int, ...]:
    """Return which layers have experts: every ``decoder_sparse_step``-th but for ``mlp_only_layers``."""
    step = number(config, "decoder_sparse_step") if "decoder_sparse_step" in config else 1
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise ConfigError(f"mlp_only_layers: expected a list, got {dense!r}")
    return tuple(layer for layer in range(depth_of(config)) if layer not in dense and (layer + 1) % step == 0)


FAMILY = Family(
    name="qwen3_moe",
    experts_class="Qwen3MoeExperts",
    router_class="Qwen3MoeTopKRouter",
    keys=key_patterns("mlp", parts="gate_proj|up_proj|down_proj"),
    experts_keys=("num_experts", "num_local_experts"),
    inner_key="moe_intermediate_size",
    moe_layers=sparse_layers,
    renormalise=renormalised_if("norm_topk_prob", default=False),
)
