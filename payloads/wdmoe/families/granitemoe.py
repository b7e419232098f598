"""GraniteMoE: published with all experts of a layer in one tensor, under names of its own."""

from __future__ import annotations

from payloads.wdmoe.families.base import Family, key_patterns

FAMILY = Family(
    name="granitemoe",
    experts_class="GraniteMoeExperts",
    router_class="GraniteMoeTopKRouter",
    keys=key_patterns("block_sparse_moe", fused="input_linear|output_linear"),
)
