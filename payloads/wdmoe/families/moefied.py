"""A Llama whose dense feed-forward layers were split into experts: the model class, for transformers.

The intermediate neurons of each layer are dealt out: some stay together as the shared part, the others form experts of
equal size. The layer's output is the plain sum of the shared part and of the active experts, each with weight 1, so
that with all experts active the model is the dense one. For an expert that is not active a small linear map of the
layer's input stands in, its compensator; with all experts active none is used.

The weights are ordinary safetensors and the class is this file: nothing is loaded that could run code.
"""

from __future__ import annotations

from typing import Any, Callable, Optional, Tuple

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.activations import ACT2FN
from transformers.integrations.moe import use_experts_implementation
from transformers.monkey_patching import get_patch_mapping

__all__ = ["MoefiedLlamaConfig", "MoefiedLlamaForCausalLM", "MoefiedMLP", "register"]


@strict
class MoefiedLlamaConfig(LlamaConfig):  # type: ignore[no-untyped-call]
    """A Llama's configuration, and how its feed-forward layers were split.

    ``intermediate_size`` stays the dense layer's: the shared neurons and those of all experts.

    Attributes:
        shared_intermediate_size: Neurons of the shared part.
        moe_intermediate_size: Neurons of each expert.
        num_local_experts: E, experts in a layer.
        num_experts_per_tok: k, how many of them the router picks; all of them make the dense model.
        compensator_rank: Rank r of the compensators; 0 where there are none.
    """

    model_type = "moefied_llama"

    shared_intermediate_size: int = 0
    moe_intermediate_size: int = 0
    num_local_experts: int = 0
    num_experts_per_tok: int = 0
    compensator_rank: int = 0


class MoefiedRouter(nn.Module):
    """Says how much each expert will be missed: the logarithm of the energy that is lost, linear in the input."""

    def __init__(self, config: MoefiedLlamaConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.weight = nn.Parameter(torch.empty(config.num_local_experts, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(config.num_local_experts))

    def forward(self, hidden_states: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Choose experts for each token.

        Args:
            hidden_states: (N, H).

        Returns:
            The logits (N, E), whose softmax is each expert's share of what could be lost; the weights (N, k),
            all 1; the chosen experts (N, k), the most important first.
        """
        logits = nn.functional.linear(hidden_states, self.weight, self.bias)
        index = logits.topk(self.top_k, dim=-1).indices
        return logits, torch.ones_like(index, dtype=hidden_states.dtype), index


@use_experts_implementation
class MoefiedExperts(nn.Module):
    """All experts of a layer, in the fused layout of transformers; the mathematics are its ``grouped_mm``."""

    def __init__(self, config: MoefiedLlamaConfig) -> None:
        super().__init__()
        self.num_experts = config.num_local_experts
        wide, narrow = config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(self.num_experts, 2 * wide, narrow))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, narrow, wide))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Return the weighted sum (N, H) of the chosen experts; one after the other, where nothing better is set."""
        total = torch.zeros_like(hidden_states)
        for expert in range(self.num_experts):
            rows, places = torch.where(top_k_index == expert)
            gate, up = nn.functional.linear(hidden_states[rows], self.gate_up_proj[expert]).chunk(2, dim=-1)
            answer = nn.functional.linear(self.act_fn(gate) * up, self.down_proj[expert])
            total.index_add_(0, rows, answer * top_k_weights[rows, places, None])
        return total


class Compensators(nn.Module):
    """For each expert of a layer the best linear guess of its output, of rank r: up (down x) + bias."""

    def __init__(self, config: MoefiedLlamaConfig) -> None:
        super().__init__()
        experts, rank, width = config.num_local_experts, config.compensator_rank, config.hidden_size
        self.rank = rank
        self.down = nn.Parameter(torch.empty(experts * rank, width))
        self.up = nn.Parameter(torch.empty(width, experts * rank))
        self.bias = nn.Parameter(torch.empty(width, experts))

    def forward(self, hidden_states: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
        """Return the sum (N, H) of the guesses for the experts that are ``missing`` (N, E)."""
        inner = nn.functional.linear(hidden_states, self.down)
        # Each expert's r columns count only where it is missing: one product for all of them.
        inner = inner * missing.repeat_interleave(self.rank, dim=1).to(inner.dtype)
        return nn.functional.linear(inner, self.up) + nn.functional.linear(
            missing.to(self.bias.dtype), self.bias
        )


class MoefiedMLP(nn.Module):
    """A feed-forward layer that was split: shared part, router, experts, and compensators if there are any."""

    def __init__(self, config: MoefiedLlamaConfig) -> None:
        super().__init__()
        width, shared = config.hidden_size, config.shared_intermediate_size
        self.num_experts = config.num_local_experts
        self.gate_proj = nn.Linear(width, shared, bias=False)
        self.up_proj = nn.Linear(width, shared, bias=False)
        self.down_proj = nn.Linear(shared, width, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]
        self.gate = MoefiedRouter(config)
        # transformers replaces classes in its own modules only; what is asked to be replaced is known to it.
        self.experts = get_patch_mapping().get(MoefiedExperts.__name__, MoefiedExperts)(config)
        self.compensators = Compensators(config) if config.compensator_rank else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the layer's output; hidden states may have any leading dimensions."""
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        _, weights, index = self.gate(rows)

        def beside(served: Optional[torch.Tensor]) -> torch.Tensor:
            return self.beside(rows, served)

        if isinstance(self.experts, MoefiedExperts):
            served = None
            if index.shape[1] < self.num_experts:
                served = torch.zeros(len(rows), self.num_experts, dtype=torch.bool).scatter_(1, index, True)
            total = self.experts(rows, index, weights) + beside(served)
        else:
            total = self.experts(rows, index, weights, beside)
        result: torch.Tensor = total.reshape(hidden_states.shape)
        return result

    def beside(self, rows: torch.Tensor, served: Optional[torch.Tensor]) -> torch.Tensor:
        """Return what is added (N, H) to the experts' sum: the shared part, and guesses for who does not answer.

        Args:
            rows: (N, H), the tokens.
            served: (N, E), which experts answer; ``None`` where all do.
        """
        shared: torch.Tensor = self.down_proj(self.act_fn(self.gate_proj(rows)) * self.up_proj(rows))
        if served is None or self.compensators is None:
            return shared
        guesses: torch.Tensor = self.compensators(rows, ~served)
        return shared + guesses


class MoefiedLlamaModel(LlamaModel):  # type: ignore[no-untyped-call]
    """A Llama with split feed-forward layers."""

    config_class = MoefiedLlamaConfig
    # transformers guesses this and keeps its guess with the class; a dense Llama's is inherited and wrong.
    _can_set_experts_implementation_cached_value = True

    def __init__(self, config: MoefiedLlamaConfig) -> None:
        super().__init__(config)
        for layer in self.layers:
            layer.mlp = MoefiedMLP(config)
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        _initialise(self, module, super()._init_weights)


class MoefiedLlamaForCausalLM(LlamaForCausalLM):  # type: ignore[no-untyped-call]
    """The language model; with ``num_experts_per_tok`` = ``num_local_experts`` it is the dense one."""

    config_class = MoefiedLlamaConfig
    _can_set_experts_implementation_cached_value = True

    def __init__(self, config: MoefiedLlamaConfig) -> None:
        # Not LlamaForCausalLM's own: it would build a dense model first.
        super(LlamaForCausalLM, self).__init__(config)
        self.model = MoefiedLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        _initialise(self, module, super()._init_weights)


def _initialise(model: Any, module: nn.Module, usual: Callable[[nn.Module], None]) -> None:
    """Draw the parameters of our own modules as those of a linear layer are drawn; others are left to ``usual``."""
    if not isinstance(module, (MoefiedRouter, MoefiedExperts, Compensators)):
        usual(module)
        return
    from transformers import initialization

    for parameter in module.parameters(recurse=False):
        initialization.normal_(parameter, mean=0.0, std=model.config.initializer_range)


def register() -> None:
    """Make the classes known to transformers' Auto classes."""
    AutoConfig.register(MoefiedLlamaConfig.model_type, MoefiedLlamaConfig, exist_ok=True)
    AutoModelForCausalLM.register(MoefiedLlamaConfig, MoefiedLlamaForCausalLM, exist_ok=True)
