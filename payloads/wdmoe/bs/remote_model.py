"""A model at the base station: everything but its experts, which stand on the devices.

:class:`RemoteExperts` takes the place of a model's experts class; it has no parameters. What each layer's router thinks
of every expert is overheard by a hook, since only its choice is handed on to the experts.
"""

from __future__ import annotations

import json
import os
import re
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Optional

import torch
from torch import nn

from payloads.wdmoe.bs.model_folder import StationError
from payloads.wdmoe.bs.remote import Beside, Dispatcher
from payloads.wdmoe.families import Family, ModelShape

__all__ = ["RemoteExperts", "load_model"]

#: What the shared experts of a block make of the tokens (N, H).
Shared = Callable[[Any, torch.Tensor], torch.Tensor]

#: The most threads for the output layer. What it waits for is memory, which few cores can keep busy.
_HEAD_THREADS = 8
_LAYER = re.compile(r"\.layers\.(\d+)\.")


class RemoteExperts(nn.Module):
    """Takes the place of a model's experts: no parameters, every call goes to the devices.

    Attributes:
        number: The layer's number among those with experts, from 0; known once the model is built.
        dispatcher: What sends it out.
        family: What makes scores of what the layer's router returned.
        heard: What that was, for the tokens that come next.
    """

    def __init__(self, config: object) -> None:
        super().__init__()
        self.number = -1
        self.dispatcher: Optional[Dispatcher] = None
        self.family: Optional[Family] = None
        self.heard: Any = None

    def attach(self, number: int, family: Family, dispatcher: Dispatcher) -> None:
        """Tell the layer its number, its family, and what sends it out."""
        self.number, self.family, self.dispatcher = number, family, dispatcher

    def hear(self, _router: nn.Module, _given: Any, output: Any) -> None:
        """Keep what the layer's router returned: a forward hook."""
        self.heard = output

    def forward(
        self,
        hidden_states: torch.Tensor,
        top_k_index: torch.Tensor,
        top_k_weights: torch.Tensor,
        beside: Optional[Beside] = None,
    ) -> torch.Tensor:
        """Return the sum of the experts' answers and of what is ``beside`` them; see :meth:`Dispatcher.layer`."""
        if self.dispatcher is None:
            raise RuntimeError("the layer was not attached to a dispatcher")
        scores = None
        heard, self.heard = self.heard, None  # of these tokens only, and no memory of theirs is kept
        if self.dispatcher.wants_scores and self.family is not None:
            scores = self.family.router_scores(heard)
        return self.dispatcher.layer(self.number, hidden_states, top_k_index, top_k_weights, scores, beside)


def load_model(folder: Path, family: Family, dtype: str, dispatcher: Dispatcher) -> Any:
    """Load a model without its experts from a folder in transformers' layout.

    No expert parameter is ever created: the class that would own them is replaced while the model is built.

    Returns:
        The model, in evaluation mode, its layers of experts attached to ``dispatcher``.

    Raises:
        ConfigError: The configuration lacks a number.
        StationError: The folder lacks weights of the model.
        RuntimeError: The model that was built has other layers of experts than the configuration says.
    """
    from transformers import AutoModelForCausalLM
    from transformers.monkey_patching import register_patch_mapping, unregister_patch_mapping
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    family.register()
    register_patch_mapping({family.experts_class: RemoteExperts})
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=getattr(torch, dtype), local_files_only=True, output_loading_info=True
        )
    finally:
        unregister_patch_mapping([family.experts_class])
    model, about = loaded
    lacking = sorted(about["missing_keys"])
    if lacking:  # they were drawn at random
        raise StationError(
            f"the model lacks {len(lacking)} of the base station's tensors, {lacking[0]} first; "
            "is the checkpoint whole, and of the kind that its config.json says?"
        )
    model.eval().requires_grad_(False)
    _use_cores(model.get_output_embeddings())
    _attach(model, family, dispatcher, family.shape(json.loads((folder / "config.json").read_text())))
    return model


def _use_cores(head: nn.Module) -> None:
    """Let a model's output layer have several cores: nothing waits for the devices then, and its weights are many.

    The product of one row is the same to the bit, however many threads share it; of several rows, as when requests
    share an iteration, it may be rounded otherwise.
    """
    threads, before = min(_HEAD_THREADS, len(os.sched_getaffinity(0))), [torch.get_num_threads()]

    def widen(*_: Any) -> None:
        before[0] = torch.get_num_threads()
        torch.set_num_threads(max(before[0], threads))

    head.register_forward_pre_hook(widen)
    head.register_forward_hook(lambda *_: torch.set_num_threads(before[0]), always_call=True)


def _attach(model: Any, family: Family, dispatcher: Dispatcher, shape: ModelShape) -> None:
    """Tell each layer of experts its number, what sends it out, and what its router says."""
    experts: Dict[int, RemoteExperts] = {}
    routers: Dict[int, nn.Module] = {}
    blocks: Dict[int, Any] = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, RemoteExperts):
            experts[_layer_of(name)] = module
        elif kind == family.router_class:
            routers[_layer_of(name)] = module
        elif kind == family.block_class:
            blocks[_layer_of(name)] = module
    wanted = set(shape.moe_layers)
    if set(experts) != wanted or set(routers) != wanted:
        raise RuntimeError(
            f"expected {len(wanted)} layers with experts, got {len(experts)} with {family.experts_class} "
            f"and {len(routers)} with {family.router_class}"
        )
    for number, layer in enumerate(shape.moe_layers):
        experts[layer].attach(number, family, dispatcher)
        routers[layer].register_forward_hook(experts[layer].hear)
    if family.shared is None:
        return
    if set(blocks) != wanted:
        raise RuntimeError(
            f"expected {len(wanted)} layers with experts, got {len(blocks)} of {family.block_class}"
        )
    for block in blocks.values():
        block.forward = partial(_block_forward, block, family.shared)


def _block_forward(block: Any, shared: Shared, hidden_states: torch.Tensor) -> torch.Tensor:
    """Take the place of the forward of a block with shared experts: they run while the devices work.

    The model's own forward has them before or after the others. The sum of both is the same to the bit.
    """
    rows = hidden_states.reshape(-1, hidden_states.shape[-1])
    _, weights, index = block.gate(rows)
    total: torch.Tensor = block.experts(rows, index, weights, lambda _served: shared(block, rows))
    return total.reshape(hidden_states.shape)


def _layer_of(name: str) -> int:
    match = _LAYER.search(f".{name}.")
    if match is None:
        raise RuntimeError(f"cannot tell the layer of the module {name}")
    return int(match[1])
