"""Mixtral."""

from __future__ import annotations

from payloads.wdmoe.families.base import Family, key_patterns

FAMILY = Family(
    name="mixtral",
    experts_class="MixtralExperts",
    router_class="MixtralTopKRouter",
    keys=key_patterns("block_sparse_moe|mlp", parts="w1|w2|w3"),
)
