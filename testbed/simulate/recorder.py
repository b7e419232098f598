"""Record what the routers of a real model ask for: the model runs here, whole, on the campaign's prompts.

Decoding is greedy, as at the base station, and no expert is dropped. What was recorded is kept in the cache under the
digest of all that it follows from.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from payloads.wdmoe.families import Family
from testbed.config.folders import cache_folder
from testbed.errors import InputError
from testbed.simulate.routing import Traced, read_traces, write_traces

if TYPE_CHECKING:
    import torch

__all__ = ["Asked", "record_routing"]

_LAYER = re.compile(r"\.layers\.(\d+)\.")
_PACKAGES = ("torch", "transformers", "tokenizers")


class Asked(NamedTuple):
    """What is to be recorded.

    Attributes:
        text: The prompt.
        tokens: The answer, where it is given: it is read as it is. None: the model answers by itself.
    """

    text: str
    tokens: tuple[int, ...] | None = None


def record_routing(
    model: Path,
    digest: str,
    family: Family,
    dtype: str,
    asked: Mapping[str, Asked],
    max_new_tokens: int,
    say: Callable[[str], None],
) -> dict[str, Traced]:
    """Return the routing of some prompts and their answers, from the cache where it is there.

    Args:
        model: The model's folder.
        digest: The digest of its content.
        family: Its family.
        dtype: The element type that it runs in.
        asked: What is to be recorded, by name.
        max_new_tokens: The most tokens of an answer that is not given.
        say: Told what takes a while.

    Raises:
        InputError: A prompt has more tokens than the model can read.
    """
    path = cache_folder() / "routing" / f"{_key(digest, dtype, asked, max_new_tokens)}.npz"
    there = read_traces(path)
    if there is not None:
        return there
    say(f"recording the routing of {len(asked)} prompts with {model.name}")
    recorder = _Recorder(model, family, dtype)
    traces: dict[str, Traced] = {}
    for number, (name, ask) in enumerate(asked.items(), 1):
        say(f"recording the routing: prompt {number} of {len(asked)}")
        traces[name] = recorder.record(name, ask, max_new_tokens)
    write_traces(path, traces)
    return traces


def _key(digest: str, dtype: str, asked: Mapping[str, Asked], max_new_tokens: int) -> str:
    about = {
        "model": digest,
        "dtype": dtype,
        "asked": {name: list(ask) for name, ask in asked.items()},
        "max_new_tokens": max_new_tokens,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


class _Recorder:
    """The model with an eye on each layer's router and on what its experts are asked for."""

    def __init__(self, model: Path, family: Family, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # type: ignore[no-untyped-call]
        family.register()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(model), local_files_only=True)
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            str(model), dtype=getattr(torch, dtype), local_files_only=True
        )
        self._model.requires_grad_(False)  # from_pretrained leaves it in evaluation mode
        self._scores: dict[int, list[torch.Tensor]] = {}
        self._index: dict[int, list[torch.Tensor]] = {}
        self._weights: dict[int, list[torch.Tensor]] = {}
        for name, module in self._model.named_modules():
            kind = type(module).__name__
            if kind in (family.router_class, family.experts_class):
                match = _LAYER.search(f".{name}.")
                if match is None:
                    raise RuntimeError(f"cannot tell the layer of the module {name}")
                layer = int(match[1])
                if kind == family.router_class:
                    module.register_forward_hook(self._router_hook(layer, family))
                else:
                    module.register_forward_pre_hook(self._experts_hook(layer))

    def _router_hook(self, layer: int, family: Family) -> Callable[..., None]:
        def hook(_module: Any, _given: Any, output: Any) -> None:
            self._scores.setdefault(layer, []).append(family.router_scores(output))

        return hook

    def _experts_hook(self, layer: int) -> Callable[..., None]:
        def hook(_module: Any, given: Sequence[torch.Tensor]) -> None:
            _, index, weights = given
            self._index.setdefault(layer, []).append(index)
            self._weights.setdefault(layer, []).append(weights.float())

        return hook

    def record(self, name: str, ask: Asked, max_new_tokens: int) -> Traced:
        import torch

        for kept in (self._scores, self._index, self._weights):
            kept.clear()
        prompt: list[int] = self._tokenizer(ask.text)["input_ids"]
        new = max_new_tokens if ask.tokens is None else len(ask.tokens)
        most = int(self._model.config.max_position_embeddings) - new
        if not 0 < len(prompt) <= most:
            wanted = f"expected 1 to {most} beside {new} new ones"
            raise InputError(f"prompt {name} has {len(prompt)} tokens; {wanted}")
        with torch.inference_mode():
            if ask.tokens is None:
                tokens = self._answer(prompt, max_new_tokens)
            else:
                tokens = list(ask.tokens)
                self._model(input_ids=torch.tensor([prompt + tokens[:-1]]), use_cache=False, logits_to_keep=1)
        layers = sorted(self._index)  # of the checkpoint, those without experts left out
        return Traced(
            prompt_tokens=len(prompt),
            index=np.stack([torch.cat(self._index[layer]).numpy() for layer in layers]),
            weights=np.stack([torch.cat(self._weights[layer]).numpy() for layer in layers]),
            scores=np.stack([torch.cat(self._scores[layer]).float().numpy() for layer in layers]),
            tokens=np.array(tokens, np.int64),
        )

    def _answer(self, prompt: Sequence[int], max_new_tokens: int) -> list[int]:
        """Answer greedily with a key-value cache, as the base station does."""
        import torch

        end_tokens = _end_tokens(self._model)
        ids, cache, tokens = torch.tensor([prompt]), None, []
        for _ in range(max_new_tokens):
            output = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            tokens.append(int(output.logits[0, -1].argmax()))
            if tokens[-1] in end_tokens:
                break
            ids = torch.tensor([[tokens[-1]]])
        return tokens


def _end_tokens(model: Any) -> list[int]:
    value = model.generation_config.eos_token_id
    if value is None:
        return []
    return [int(token) for token in value] if isinstance(value, list | tuple) else [int(value)]
