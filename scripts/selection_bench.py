"""For measure_selection.py: a model with all its experts here, imagined links, and what a selection does on both."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from payloads.wdmoe.costs import Costs
from payloads.wdmoe.gating import mass_of, selector_of
from payloads.wdmoe.latency import DeviceSpeed, LatencyModel
from payloads.wdmoe.pace import ExpertShape
from payloads.wdmoe.routing import LayerView, Loads, Routing, Selection, loads_of

__all__ = ["Bench", "Change", "Clock", "Row"]

WINDOW = 256
BATCH = 8
SEED = 1

Change = Callable[[int, Routing], Selection]


class Row(NamedTuple):
    """One measurement.

    Attributes:
        what: What was done.
        pairs: Share of the pairs that were dropped or replaced.
        lost: Share of the gate's mass that they had.
        kl: Nats a token, untouched model || changed one.
        perplexity: Change of the perplexity, in per cent.
        agree: Share of tokens whose most likely successor stays the same.
        latency_ms: Mean attention waiting latency of a layer, where a policy ran on links.
    """

    what: str
    pairs: float
    lost: float
    kl: float
    perplexity: float
    agree: float
    latency_ms: float | None = None


class Bench:
    """The model, its text, and its untouched answers."""

    def __init__(self, folder: Path, windows: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.batches: list[torch.Tensor] = []
        for text in sorted(folder.glob("held-out-*.txt")):
            ids = tokenizer(text.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
            there = len(ids) // WINDOW
            picks = np.unique(np.linspace(0, there - 1, min(windows, there)).astype(int))
            rows = torch.tensor([ids[pick * WINDOW : (pick + 1) * WINDOW] for pick in picks])
            self.batches += rows.split(BATCH)
        self.layers = 0
        self.change: Change | None = None
        self._scores: dict[int, torch.Tensor] = {}
        self.touched = self.lost = self.pairs = 0.0
        for layer in self.model.model.layers:
            layer.mlp.experts = _Changed(layer.mlp.experts, self, self.layers)
            layer.mlp.gate.register_forward_hook(self._listener(self.layers))
            self.layers += 1
        self.reference = [self._log_probabilities(batch).half() for batch in self.batches]
        self.nll = self._mean_nll(self.reference)

    def _listener(self, layer: int) -> Callable[..., None]:
        def listen(module: nn.Module, inputs: Any, output: Any) -> None:
            self._scores[layer] = torch.softmax(output[0].float(), -1)

        return listen

    def routing(self, layer: int, index: torch.Tensor, weights: torch.Tensor) -> Routing:
        """Return a layer's routing of the batch that runs."""
        return Routing(index.numpy(), weights.numpy(), self._scores[layer].numpy())

    def _log_probabilities(self, batch: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.log_softmax(self.model(input_ids=batch).logits, -1)[:, :-1]

    def _mean_nll(self, answers: Sequence[torch.Tensor]) -> float:
        total = count = 0.0
        for batch, answer in zip(self.batches, answers, strict=True):
            total -= float(answer.float().gather(-1, batch[:, 1:, None]).sum())
            count += batch[:, 1:].numel()
        return total / count

    def measure(self, what: str, change: Change, clock: Clock | None = None) -> Row:
        """Run all text with a change, and compare."""
        self.change, self.touched, self.lost, self.pairs = change, 0.0, 0.0, 0.0
        kl = agree = nll = count = 0.0
        for batch, before in zip(self.batches, self.reference, strict=True):
            after, before = self._log_probabilities(batch), before.float()
            kl += float((before.exp() * (before - after)).sum())
            agree += float((before.argmax(-1) == after.argmax(-1)).sum())
            nll -= float(after.gather(-1, batch[:, 1:, None]).sum())
            count += batch[:, 1:].numel()
        self.change = None
        perplexity = 100 * (math.exp(nll / count - self.nll) - 1)
        latency_ms = None if clock is None else clock.mean_ms
        return Row(
            what,
            self.touched / self.pairs,
            self.lost / (self.pairs / self.chosen),
            kl / count,
            perplexity,
            agree / count,
            latency_ms,
        )

    @property
    def chosen(self) -> int:
        """How many experts the router picks."""
        return int(self.model.config.num_experts_per_tok)


class _Changed(nn.Module):
    """A layer's experts, asked what a selection says."""

    def __init__(self, inner: nn.Module, bench: Bench, layer: int) -> None:
        super().__init__()
        self.inner, self.layer = inner, layer
        self.bench = [bench]  # in a list: no module of this one

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        bench = self.bench[0]
        if bench.change is not None:
            routing = bench.routing(self.layer, index, weights)
            chosen = bench.change(self.layer, routing)
            touched = ~chosen.keep | (chosen.index != routing.index)
            bench.touched += float(touched.sum())
            bench.pairs += touched.size
            bench.lost += float((mass_of(routing) * touched).sum())
            index = torch.from_numpy(np.where(chosen.keep, chosen.index, routing.index))
            weights = torch.from_numpy(chosen.weights)
        answer: torch.Tensor = self.inner(hidden, index, weights)
        return answer


class Clock:
    """Links that fade, and what the layers took on them. Token i of a layer sees block i of the fading."""

    DEVICES = 4

    def __init__(self, layers: int, experts: int, blocks: int) -> None:
        random = np.random.default_rng(SEED)
        speeds = ((1e12, 2e11), (1e12, 1e11), (5e11, 5e10), (3e12, 2e11))
        model = LatencyModel(
            tuple("abcd"), ExpertShape(4096, 14336, 2), tuple(DeviceSpeed(*speed, 2.0) for speed in speeds)
        )
        mean_mbit = np.array([40.0, 80.0, 120.0, 20.0])
        shape = (2, self.DEVICES)
        draw = lambda: (random.normal(size=shape) + 1j * random.normal(size=shape)) / math.sqrt(2)  # noqa: E731
        state, same = draw(), 0.98
        self.costs: list[Costs] = []
        for _ in range(blocks):
            rates = np.log2(1 + 10 * abs(state) ** 2) / 3.3
            self.costs.append(model.costs(mean_mbit * rates[0] + 0.5, mean_mbit / 2 * rates[1] + 0.5))
            state = same * state + math.sqrt(1 - same**2) * draw()
        self.device_of = np.array(
            [[(e + layer) % self.DEVICES for e in range(experts)] for layer in range(layers)]
        )
        self.blocks = blocks
        self.seconds, self.count = 0.0, 0
        self.at = [0] * layers

    @property
    def mean_ms(self) -> float:
        """Mean latency of a layer."""
        return 1e3 * self.seconds / self.count

    def policy(self, settings: dict[str, Any]) -> Change:
        """Return what a policy does, token by token, on these links."""
        selector = selector_of(settings)
        self.seconds, self.count, self.at = 0.0, 0, [0] * len(self.at)

        def change(layer: int, routing: Routing) -> Selection:
            parts = []
            for token in range(len(routing.index)):
                costs = self.costs[self.at[layer] % self.blocks]
                self.at[layer] += 1
                one = Routing(*(array[token : token + 1] for array in routing))
                view = LayerView(layer, 1, one, self.device_of[layer], costs)
                part = selector.select(view)
                loads = loads_of(part, view.device_of, self.DEVICES)
                taken_s = costs.dispatch_s(loads)
                self._tell(selector, view, loads, taken_s)
                self.seconds += float(taken_s.max())
                self.count += 1
                parts.append(part)
            return Selection(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

        return change

    def _tell(self, selector: Any, view: LayerView, loads: Loads, taken_s: Any) -> None:
        if getattr(selector, "observe", None) is not None:
            selector.observe(view.layer, view.step, loads, np.where(loads.pairs > 0, taken_s, np.nan))
