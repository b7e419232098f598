"""OLMoE."""

from __future__ import annotations

from payloads.wdmoe.families.base import Family, key_patterns, renormalised_if

FAMILY = Family(
    name="olmoe",
    experts_class="OlmoeExperts",
    router_class="OlmoeTopKRouter",
    keys=key_patterns("mlp", parts="gate_proj|up_proj|down_proj"),
    experts_keys=("num_experts", "num_local_experts"),
    renormalise=renormalised_if("norm_topk_prob", default=False),
)
