"""A Llama whose feed-forward layers were split into experts; its classes are in :mod:`payloads.wdmoe.families.moefied`.

An expert that is active counts whole, so that all of them together are the dense layer.
"""

from __future__ import annotations

from payloads.wdmoe.families.base import Family, key_patterns

FAMILY = Family(
    name="moefied_llama",
    experts_class="MoefiedExperts",
    router_class="MoefiedRouter",
    keys=key_patterns("mlp"),
    inner_key="moe_intermediate_size",
    renormalise=lambda _config: "none",
    module="payloads.wdmoe.families.moefied",
)
