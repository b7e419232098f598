"""DeepSeek V2: the first layers are dense, the others have shared experts, the router may choose by groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Mapping, Tuple

from payloads.wdmoe.families.base import ConfigError, Family, depth_of, key_patterns

if TYPE_CHECKING:
    import torch


def layers_after_dense(first: int) -> Any:
    """Return what tells which layers have experts: those behind the dense ones, ``first`` where nothing is said.

    Published modelling code also knows ``moe_layer_freq``; transformers does not, and builds another model.
    """

    def layers(config: Mapping[str, Any]) -> Tuple[int, ...]:
        if config.get("moe_layer_freq", 1) != 1:
            raise ConfigError(f"moe_layer_freq: expected 1, got {config['moe_layer_freq']!r}")
        dense = config.get("first_k_dense_replace")
        dense = first if dense is None else dense
        if not isinstance(dense, int) or isinstance(dense, bool) or dense < 0:
            raise ConfigError(f"first_k_dense_replace: expected a whole number, got {dense!r}")
        return tuple(range(dense, depth_of(config)))

    return layers


def _shared(block: Any, rows: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = block.shared_experts(rows)
    return output


FAMILY = Family(
    name="deepseek_v2",
    experts_class="DeepseekV2Experts",
    router_class="DeepseekV2TopkRouter",
    keys=key_patterns("mlp", parts="gate_proj|up_proj|down_proj"),
    experts_keys=("n_routed_experts", "num_experts"),
    inner_key="moe_intermediate_size",
    moe_layers=layers_after_dense(0),
    # transformers' class leaves norm_topk_prob aside: a weight is a probability times a constant.
    renormalise=lambda _config: "none",
    block_class="DeepseekV2Moe",
    shared=_shared,
)
