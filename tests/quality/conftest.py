"""tiny-mixtral in this process, its experts behind a dispatcher that asks a policy as the base station's does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from payloads.wdmoe.latency import DeviceSpeed, LatencyModel
from payloads.wdmoe.pace import ExpertShape
from payloads.wdmoe.routing import Routing

MODEL = Path(__file__).parents[2] / "payloads" / "models" / "tiny-mixtral"
DEVICES = ("big", "middle", "small")
#: Which device serves each of the 8 experts, alike in the 4 layers.
SERVING = np.array([[0, 0, 0, 1, 1, 1, 2, 2]] * 4)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def encode() -> Callable[[str], list[int]]:
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL, local_files_only=True)
    return lambda text: list(tokenizer(text, verbose=False)["input_ids"])


@pytest.fixture(scope="session")
def plain() -> Any:
    """The model as transformers has it, untouched."""
    return _load()


@pytest.fixture
def latency() -> LatencyModel:
    """Three unequal devices."""
    speeds = tuple(DeviceSpeed(ops, 1e9, 0.5) for ops in (4e9, 3e9, 1e9))
    return LatencyModel(DEVICES, ExpertShape(192, 384, 4), speeds)


class LocalDispatcher:
    """The dispatcher's part that a quality pass needs; the experts answer in this process."""

    def __init__(self) -> None:
        self.decider: Any = None
        self.activations: str | None = None
        self.request = ""
        self.step = 0
        self.booking = SimpleNamespace(rows=[])
        self.passes: list[tuple[str, int, int]] = []

    def begin_step(self, step: int) -> None:
        self.step = step
        if self.decider is not None:
            self.decider.before_token(self.request, step, None)

    def layer(self, layer: int, routing: Routing) -> tuple[torch.Tensor, torch.Tensor]:
        self.passes.append((self.request, layer, len(routing.index)))
        self.booking.rows.append((self.request, layer))
        if self.decider is None:
            return torch.from_numpy(routing.index), torch.from_numpy(routing.weights)
        selection = self.decider.decide(layer, self.step, routing, None).selection
        weights = np.where(selection.keep, selection.weights, 0.0).astype(np.float32)
        assert self.decider.observe is None  # a quality pass teaches nobody
        return torch.from_numpy(selection.index), torch.from_numpy(weights)


@pytest.fixture(scope="session")
def _hooked() -> tuple[Any, list[LocalDispatcher]]:
    model = _load()
    current: list[LocalDispatcher] = []
    for number, layer in enumerate(model.model.layers):
        _hook(number, layer.mlp, current)
    return model, current


@pytest.fixture
def local(_hooked: tuple[Any, list[LocalDispatcher]]) -> Iterator[tuple[Any, LocalDispatcher]]:
    """The model, and the dispatcher that its experts ask."""
    model, current = _hooked
    current.append(LocalDispatcher())
    yield model, current[-1]
    current.clear()


def _hook(number: int, block: Any, current: list[LocalDispatcher]) -> None:
    seen: list[torch.Tensor] = []
    compute = block.experts.forward

    def forward(hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        scores = seen.pop().float().softmax(-1)
        routing = Routing(index.numpy(), weights.float().numpy(), scores.numpy())
        result: torch.Tensor = compute(hidden, *current[-1].layer(number, routing))
        return result

    block.gate.register_forward_hook(lambda _module, _given, output: seen.append(output[0]))
    block.experts.forward = forward


def _load() -> Any:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, local_files_only=True)
    return model.eval().requires_grad_(False)
