"""Mixtral."""

from __future__ import annotations

from payloads.wdmoe.families.base import Family, key_patterns

FAMILY = Family(
    name="mixtral",
    experts_class="MixtralExperts",
    router_class="MixtralTopKRouter",
    keys=key_patterns("block_sparse_moe|mlp", parts="w1|w2|w3"),
    config_keys={
        "experts": "num_local_experts",
        "experts_per_token": "num_experts_per_tok",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "vocabulary": "vocab_size",
    },
)
