"""What a family of models says of itself: where its checkpoints keep experts, and which classes run them.

Two layouts are read: the published one with three matrices for each expert, and the fused one with all experts of a
layer in one tensor. Neither torch nor transformers is imported before a model is made.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any, Callable, Dict, Mapping, NamedTuple, Optional, Pattern, Tuple

if TYPE_CHECKING:
    import torch

__all__ = [
    "ConfigError",
    "ExpertKey",
    "Family",
    "ModelShape",
    "key_patterns",
    "renormalised_if",
    "softmax_of_logits",
]

#: The part of an expert that each name in a checkpoint's keys stands for.
_PARTS = {
    "w1": "gate",
    "w3": "up",
    "w2": "down",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "gate_up_proj": "gate_up",
    "input_linear": "gate_up",
    "output_linear": "down",
}
_MAX_LAYERS = 10_000
_LAYER = re.compile(r"^model\.layers\.(\d+)\.")

#: A model's configuration: the content of its config.json.
Config = Mapping[str, Any]


class ConfigError(ValueError):
    """A model's configuration lacks something, or says what cannot be run."""


class ExpertKey(NamedTuple):
    """What a checkpoint's key says.

    Attributes:
        layer: The layer of the checkpoint, dense ones counted: ``ModelShape.moe_layers`` tells which layer of
            experts it is.
        expert: The expert, or ``None`` for a tensor with all experts of the layer in its first dimension.
        part: ``gate``, ``up`` or ``down``; ``gate_up`` where two of them are one tensor.
    """

    layer: int
    expert: Optional[int]
    part: str


class ModelShape(NamedTuple):
    """The numbers of a model that placement, workers and simulators need.

    Attributes:
        moe_layers: For each layer with experts, the layer of the checkpoint that it is.
        depth: All layers of the checkpoint, dense ones counted.
        experts: Experts in a layer.
        experts_per_token: How many of them the router picks.
        hidden_size: Model width H.
        intermediate_size: Inner width I of an expert.
        vocabulary: Size of the vocabulary.
        activation: Name of the experts' activation.
    """

    moe_layers: Tuple[int, ...]
    depth: int
    experts: int
    experts_per_token: int
    hidden_size: int
    intermediate_size: int
    vocabulary: int
    activation: str

    @property
    def layers(self) -> int:
        """Number of layers with experts; everywhere else they are numbered by their order, from 0."""
        return len(self.moe_layers)


def softmax_of_logits(output: Any) -> torch.Tensor:
    """Return the probabilities of a router that returns its logits (N, E) first, as Mixtral's does."""
    scores: torch.Tensor = output[0].float().softmax(-1)
    return scores


def every_layer(config: Config) -> Tuple[int, ...]:
    """Return all layers: each has experts."""
    return tuple(range(depth_of(config)))


def always_renormalised(_config: Config) -> str:
    """Return that weights are scaled to their old sum: the router's own have a sum that is the same for all tokens."""
    return "sum"


def renormalised_if(key: str, default: bool) -> Callable[[Config], str]:
    """Return the rule of a family whose configuration says under ``key`` whether a token's weights have a fixed sum.

    Where they have not, an expert's weight is its probability, whoever else is chosen.
    """

    def rule(config: Config) -> str:
        return "sum" if config.get(key, default) else "none"

    return rule


def number(config: Config, *keys: str) -> int:
    """Return a whole number above 0 of a configuration; the first of ``keys`` that is there counts.

    Raises:
        ConfigError: There is none.
    """
    key = next((key for key in keys if config.get(key) is not None), None)
    if key is None:
        raise ConfigError(f"{' or '.join(keys)} is missing")
    value = config[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{key}: expected a whole number above 0, got {value!r}")
    return value


def depth_of(config: Config) -> int:
    """Return the number of layers, dense ones counted.

    Raises:
        ConfigError: There is none, or more than any model has.
    """
    depth = number(config, "num_hidden_layers")
    if depth > _MAX_LAYERS:
        raise ConfigError(f"num_hidden_layers: expected at most {_MAX_LAYERS}, got {depth}")
    return depth


class Family(NamedTuple):
    """One family of models.

    Attributes:
        name: ``model_type`` of the configuration.
        experts_class: The class in transformers that is replaced at the base station.
        router_class: The class of each layer's router; a forward hook on it sees what it thinks of every expert.
        keys: Patterns of the keys of experts, with groups layer, part and, where a tensor is of one expert, expert.
        experts_keys: The configuration's names for the number of experts in a layer; the first that is there counts.
        inner_key: Its name for the inner width of an expert.
        router_scores: Makes of what a router returns its opinion of every expert: (N, E), float32, not
            negative, each row sums to 1.
        moe_layers: Which layers of the checkpoint have experts, from the configuration.
        renormalise: What becomes of the weights of a token that lost an expert, where the policy does not
            say, from the configuration: ``sum`` (those left are scaled to the old sum) or ``none`` (an expert's
            weight is its own).
        block_class: The class around router (its ``gate``) and experts, where there is a shared expert in it.
        shared: What the shared experts of such a block make of the tokens: (N, H) -> (N, H). They stay at the base
            station and run while the devices work.
        module: The module of ours that makes the model's classes known to transformers; ``None`` where
            transformers has them.
    """

    name: str
    experts_class: str
    router_class: str
    keys: Tuple[Pattern[str], ...]
    experts_keys: Tuple[str, ...] = ("num_local_experts",)
    inner_key: str = "intermediate_size"
    router_scores: Callable[[Any], torch.Tensor] = softmax_of_logits
    moe_layers: Callable[[Config], Tuple[int, ...]] = every_layer
    renormalise: Callable[[Config], str] = always_renormalised
    block_class: Optional[str] = None
    shared: Optional[Callable[[Any, torch.Tensor], torch.Tensor]] = None
    module: Optional[str] = None

    def register(self) -> None:
        """Make the family's classes known to transformers; again and again does no harm."""
        if self.module is not None:
            import_module(self.module).register()

    def expert_key(self, name: str) -> Optional[ExpertKey]:
        """Return what a checkpoint's key says, or ``None`` if it is none of an expert."""
        for pattern in self.keys:
            match = pattern.match(name)
            if match:
                groups = match.groupdict()
                expert = groups.get("expert")
                part = _PARTS[groups["part"]]
                return ExpertKey(int(groups["layer"]), None if expert is None else int(expert), part)
        return None

    def unused(self, name: str, shape: ModelShape) -> bool:
        """Return whether a checkpoint's key is of a layer behind the model's last, such as DeepSeek's for drafts."""
        match = _LAYER.match(name)
        return match is not None and int(match[1]) >= shape.depth

    def shape(self, config: Config) -> ModelShape:
        """Return the model's numbers from its configuration.

        Raises:
            ConfigError: The configuration lacks one, or has what cannot be run.
        """
        numbers: Dict[str, int] = {
            "experts": number(config, *self.experts_keys),
            "experts_per_token": number(config, "num_experts_per_tok"),
            "hidden_size": number(config, "hidden_size"),
            "intermediate_size": number(config, self.inner_key),
            "vocabulary": number(config, "vocab_size"),
        }
        if numbers["experts_per_token"] > numbers["experts"]:
            raise ConfigError(
                f"{numbers['experts_per_token']} experts of {numbers['experts']} for each token"
            )
        layers = self.moe_layers(config)
        if not layers:
            raise ConfigError("no layer has experts")
        activation = config.get("hidden_act", "silu")
        if not isinstance(activation, str):
            raise ConfigError(f"hidden_act: expected a name, got {activation!r}")
        return ModelShape(moe_layers=layers, depth=depth_of(config), activation=activation, **numbers)


def key_patterns(block: str, parts: str = "", fused: str = "") -> Tuple[Pattern[str], ...]:
    """Return the patterns of the keys of a family's experts.

    Args:
        block: The module of a layer that the experts are in, as a pattern.
        parts: Names of the three matrices of one expert in the published layout, as a pattern; none by default.
        fused: Names in the block of tensors with all experts, as a pattern, where the family has such of its own.
    """
    start = rf"^model\.layers\.(?P<layer>\d+)\.(?:{block})\."
    patterns = [rf"{start}experts\.(?P<part>gate_up_proj|down_proj)$"]
    if parts:
        patterns.insert(0, rf"{start}experts\.(?P<expert>\d+)\.(?P<part>{parts})\.weight$")
    if fused:
        patterns.insert(0, rf"{start}(?P<part>{fused})\.weight$")
    return tuple(re.compile(pattern) for pattern in patterns)
