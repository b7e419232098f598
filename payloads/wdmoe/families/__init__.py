"""Families of models: where a checkpoint keeps its experts, and which class holds them in transformers.

Two layouts are read: the published one with three matrices for each expert, and the fused one that
transformers uses in memory. A new family is one more entry here. Neither torch nor transformers is imported
before a model is made.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any, Callable, Dict, Mapping, NamedTuple, Optional, Pattern

if TYPE_CHECKING:
    import torch

__all__ = ["FAMILIES", "ExpertKey", "Family", "ModelShape", "family_of"]


class ExpertKey(NamedTuple):
    """What a checkpoint's key says.

    Attributes:
        layer: The layer.
        expert: The expert, or ``None`` for a tensor with all experts of the layer in its first dimension.
        part: ``gate``, ``up`` or ``down``; ``gate_up`` in the fused layout.
    """

    layer: int
    expert: Optional[int]
    part: str


class ModelShape(NamedTuple):
    """The numbers of a model that placement, workers and simulators need.

    Attributes:
        layers: Number of layers, each with experts.
        experts: Experts in a layer.
        experts_per_token: How many of them the router picks.
        hidden_size: Model width H.
        intermediate_size: Inner width I of an expert.
        vocabulary: Size of the vocabulary.
        activation: Name of the experts' activation.
    """

    layers: int
    experts: int
    experts_per_token: int
    hidden_size: int
    intermediate_size: int
    vocabulary: int
    activation: str


class Family(NamedTuple):
    """One family of models.

    Attributes:
        name: ``model_type`` of the configuration.
        experts_class: The class in transformers that is replaced at the base station.
        single: Pattern of the published keys, with groups layer, expert, part; ``None`` where there is no other
            layout than the fused one.
        fused: Pattern of the fused keys, with groups layer, part.
        parts: The part that each name in a published key stands for.
        config_keys: The configuration's names for the fields of :class:`ModelShape`.
        router_class: The class of each layer's router; a forward hook on it sees what it thinks of every expert.
        router_scores: Makes of what a router returns its opinion of every expert: (N, E), float32, not
            negative, each row sums to 1.
        renormalise: What becomes of the weights of a token that lost an expert, where the policy does not
            say: ``sum`` (those left are scaled to the old sum) or ``none`` (an expert's weight is its own).
        module: The module of ours that makes the model's classes known to transformers; ``None`` where
            transformers has them.
    """

    name: str
    experts_class: str
    single: Optional[Pattern[str]]
    fused: Pattern[str]
    parts: Mapping[str, str]
    config_keys: Mapping[str, str]
    router_class: str
    router_scores: Callable[[Any], torch.Tensor]
    renormalise: str = "sum"
    module: Optional[str] = None

    def register(self) -> None:
        """Make the family's classes known to transformers; again and again does no harm."""
        if self.module is not None:
            import_module(self.module).register()

    def expert_key(self, name: str) -> Optional[ExpertKey]:
        """Return what a checkpoint's key says, or ``None`` if it is none of an expert."""
        match = self.single.match(name) if self.single is not None else None
        if match:
            return ExpertKey(int(match["layer"]), int(match["expert"]), self.parts[match["part"]])
        match = self.fused.match(name)
        if match:
            return ExpertKey(int(match["layer"]), None, match["part"].replace("_proj", ""))
        return None

    def shape(self, config: Mapping[str, Any]) -> ModelShape:
        """Return the model's numbers from its configuration.

        Raises:
            KeyError: The configuration lacks one.
        """
        values: Dict[str, Any] = {field: config[key] for field, key in self.config_keys.items()}
        return ModelShape(**values)


def _softmax_of_logits(output: Any) -> torch.Tensor:
    """Return the probabilities of a router that returns its logits (N, E) first, as Mixtral's does."""
    scores: torch.Tensor = output[0].float().softmax(-1)
    return scores


_MIXTRAL = Family(
    name="mixtral",
    experts_class="MixtralExperts",
    single=re.compile(
        r"^model\.layers\.(?P<layer>\d+)\.(?:block_sparse_moe|mlp)\.experts\."
        r"(?P<expert>\d+)\.(?P<part>w1|w2|w3)\.weight$"
    ),
    fused=re.compile(
        r"^model\.layers\.(?P<layer>\d+)\.(?:block_sparse_moe|mlp)\.experts\.(?P<part>gate_up_proj|down_proj)$"
    ),
    parts={"w1": "gate", "w3": "up", "w2": "down"},
    config_keys={
        "layers": "num_hidden_layers",
        "experts": "num_local_experts",
        "experts_per_token": "num_experts_per_tok",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "vocabulary": "vocab_size",
        "activation": "hidden_act",
    },
    router_class="MixtralTopKRouter",
    router_scores=_softmax_of_logits,
)

#: A Llama whose feed-forward layers were split into experts (see payloads.wdmoe.families.moefied). An expert that is
#: active counts whole, so that all of them together are the dense layer.
_MOEFIED_LLAMA = Family(
    name="moefied_llama",
    experts_class="MoefiedExperts",
    single=None,
    fused=re.compile(r"^model\.layers\.(?P<layer>\d+)\.mlp\.experts\.(?P<part>gate_up_proj|down_proj)$"),
    parts={},
    config_keys={
        "layers": "num_hidden_layers",
        "experts": "num_local_experts",
        "experts_per_token": "num_experts_per_tok",
        "hidden_size": "hidden_size",
        "intermediate_size": "moe_intermediate_size",
        "vocabulary": "vocab_size",
        "activation": "hidden_act",
    },
    router_class="MoefiedRouter",
    router_scores=_softmax_of_logits,
    renormalise="none",
    module="payloads.wdmoe.families.moefied",
)

FAMILIES: Dict[str, Family] = {family.name: family for family in [_MIXTRAL, _MOEFIED_LLAMA]}


def family_of(config: Mapping[str, Any]) -> Optional[Family]:
    """Return the family that a configuration belongs to, or ``None`` if it is not known."""
    return FAMILIES.get(str(config.get("model_type")))
