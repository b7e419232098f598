"""Tokens from logits: which one is taken, and what the model thought of it."""

from __future__ import annotations

import math
from typing import Any, List, Optional, Sequence

import torch

from payloads.wdmoe.bs.asks import Sampling, Scored

__all__ = ["Sampler", "end_tokens", "is_nan", "nll", "score", "score_prompt"]


#: Below this temperature nothing but the most likely token has a chance, and numbers would overflow.
_COLD = 1e-4


class Sampler:
    """Draws a request's tokens, one after the other.

    Args:
        sampling: How.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator: Optional[torch.Generator] = None
        if not self.greedy:
            self._generator = torch.Generator().manual_seed(sampling.seed % (1 << 63))

    @property
    def greedy(self) -> bool:
        """Whether it takes the most likely token, without drawing."""
        return self._sampling.temperature < _COLD

    def draw(self, logits: torch.Tensor) -> int:
        """Return the next token, given logits (V,); where one of them is no number, the place of such a one."""
        likeliest = int(logits.argmax())
        if self._generator is None or is_nan(logits, likeliest):
            return likeliest
        probabilities = torch.softmax(logits.float() / self._sampling.temperature, dim=-1)
        if self._sampling.top_p < 1:
            probabilities = _nucleus(probabilities, self._sampling.top_p)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def _nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the most likely tokens, as few as have ``top_p`` together; always one."""
    ordered, tokens = probabilities.sort(descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    kept = torch.where(before < top_p, ordered, torch.zeros_like(ordered))
    kept[0] = ordered[0]
    return torch.zeros_like(probabilities).scatter_(0, tokens, kept)


def is_nan(logits: torch.Tensor, likeliest: int) -> bool:
    """Whether any logit (V,) is no number, given where ``argmax`` finds the largest one: it takes those first."""
    return math.isnan(float(logits[likeliest]))


def nll(logits: torch.Tensor, token: int) -> float:
    """Return a token's negative log-likelihood in nats, given logits (V,)."""
    target = torch.tensor([token])
    return float(torch.nn.functional.cross_entropy(logits.unsqueeze(0).float(), target, reduction="sum"))


def score(logits: torch.Tensor, token: int, top: int) -> Scored:
    """Return what the model thought of a token and of the ``top`` most likely ones, given logits (V,)."""
    (scored,) = score_prompt(logits.unsqueeze(0), [token], top)
    return scored


def score_prompt(logits: torch.Tensor, tokens: Sequence[int], top: int) -> List[Scored]:
    """Return what the model thought of each token.

    Args:
        logits: (T, V), before each token.
        tokens: (T,), what came.
        top: How many of the most likely tokens come with each.
    """
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    chosen = logprobs.gather(1, torch.tensor(list(tokens)).view(-1, 1)).flatten().tolist()
    values, places = logprobs.topk(min(top, logprobs.shape[1]), dim=-1)
    return [
        Scored(int(token), logprob, tuple(zip(map(int, row), best)))
        for token, logprob, row, best in zip(tokens, chosen, places.tolist(), values.tolist())
    ]


def end_tokens(model: Any) -> List[int]:
    """Return the tokens that end an answer, by what the model says of itself."""
    value = model.generation_config.eos_token_id
    if value is None:
        return []
    return [int(token) for token in value] if isinstance(value, (list, tuple)) else [int(value)]
