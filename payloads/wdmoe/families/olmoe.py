"""OLMoE."""

from __future__ import annotations

from payloads.wdmoe.families.base import Family, key_patterns, renormalised_if

FAMILY = Family(
    name="olmoe",
    experts_class="OlmoeExperts",
    router_class="OlmoeTopKRouter",
    keys=key_patterns("mlp", parts="gate_proj|up_proj|down_proj"),
    config_keys={
        "experts": ("num_experts", "num_local_experts"),
        "experts_per_token": "num_experts_per_tok",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "vocabulary": "vocab_size",
    },
    renormalise=renormalised_if("norm_topk_prob", default=False),
)
