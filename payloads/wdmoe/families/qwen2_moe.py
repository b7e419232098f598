"""Qwen2-MoE (and Qwen1.5-MoE): as Qwen3-MoE, with a shared expert behind a gate of its own in each layer of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from payloads.wdmoe.families import qwen3_moe

if TYPE_CHECKING:
    import torch


def _shared(block: Any, rows: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = block.shared_expert_gate(rows).sigmoid() * block.shared_expert(rows)
    return output


FAMILY = qwen3_moe.FAMILY._replace(
    name="qwen2_moe",
    experts_class="Qwen2MoeExperts",
    router_class="Qwen2MoeTopKRouter",
    block_class="Qwen2MoeSparseMoeBlock",
    shared=_shared,
)
