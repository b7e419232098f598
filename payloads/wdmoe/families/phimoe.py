"""PhiMoE: as Mixtral, but each of the two weights is a probability among the experts left to choose from."""

from __future__ import annotations

from payloads.wdmoe.families import mixtral

FAMILY = mixtral.FAMILY._replace(
    name="phimoe",
    experts_class="PhimoeExperts",
    router_class="PhimoeTopKRouter",
    # Without its second expert a token keeps the first with the weight that it has anyway.
    renormalise=lambda _config: "none",
)
