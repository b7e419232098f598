"""A model at the base station: everything but its experts, which stand on the devices.

:class:`RemoteExperts` takes the place of a model's experts class; it has no parameters. What each layer's router thinks
of every expert is overheard by a hook, since only its choice is handed on to the experts.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, Optional

import torch
from torch import nn

from payloads.wdmoe.bs.remote import Beside, Dispatcher
from payloads.wdmoe.families import Family

__all__ = ["RemoteExperts", "load_model"]

_LAYER = re.compile(r"\.layers\.(\d+)\.")


class RemoteExperts(nn.Module):
    """Takes the place of a model's experts: no parameters, every call goes to the devices.

    Attributes:
        number: The layer's number; known once the model is built.
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
        if self.dispatcher.decider is not None and self.family is not None:
            scores = self.family.router_scores(self.heard)
        return self.dispatcher.layer(self.number, hidden_states, top_k_index, top_k_weights, scores, beside)


def load_model(folder: Path, family: Family, dtype: str, dispatcher: Dispatcher) -> Any:
    """Load a model without its experts from a folder in transformers' layout.

    No expert parameter is ever created: the class that would own them is replaced while the model is built.

    Returns:
        The model, in evaluation mode, its layers of experts attached to ``dispatcher``.
    """
    from transformers import AutoModelForCausalLM
    from transformers.monkey_patching import register_patch_mapping, unregister_patch_mapping
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    family.register()
    register_patch_mapping({family.experts_class: RemoteExperts})
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=getattr(torch, dtype), local_files_only=True
        )
    finally:
        unregister_patch_mapping([family.experts_class])
    model.eval().requires_grad_(False)
    layers: Dict[int, RemoteExperts] = {}
    for name, module in model.named_modules():
        if isinstance(module, RemoteExperts):
            module.number = _layer_of(name)
            module.dispatcher = dispatcher
            module.family = family
            layers[module.number] = module
    heard = set()
    for name, module in model.named_modules():
        if type(module).__name__ == family.router_class:
            number = _layer_of(name)
            module.register_forward_hook(layers[number].hear)
            heard.add(number)
    if heard != set(layers):
        raise RuntimeError(
            f"{len(layers)} layers of experts and {len(heard)} routers ({family.router_class})"
        )
    return model


def _layer_of(name: str) -> int:
    match = _LAYER.search(f".{name}.")
    if match is None:
        raise RuntimeError(f"cannot tell the layer of the module {name}")
    return int(match[1])
