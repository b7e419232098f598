"""DeepSeek V3: as V2, but the router asks each expert by itself (sigmoid), and corrects its choice by a bias."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from payloads.wdmoe.families import deepseek_v2
from payloads.wdmoe.families.base import renormalised_if

if TYPE_CHECKING:
    import torch


def _share_of_sigmoids(output: Any) -> torch.Tensor:
    """Return each expert's share of all affinities: what weights are made of, whatever corrects the choice."""
    affinities: torch.Tensor = output[0].float().sigmoid()
    return affinities / affinities.sum(-1, keepdim=True)


FAMILY = deepseek_v2.FAMILY._replace(
    name="deepseek_v3",
    experts_class="DeepseekV3Experts",
    router_class="DeepseekV3TopkRouter",
    router_scores=_share_of_sigmoids,
    experts_keys=("n_routed_experts", "num_local_experts"),
    moe_layers=deepseek_v2.layers_after_dense(3),
    renormalise=renormalised_if("norm_topk_prob", default=True),
    block_class="DeepseekV3MoE",
)
