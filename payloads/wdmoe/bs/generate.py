"""Greedy decoding with per-token timing. No devices are known here."""

from __future__ import annotations

import gc
import time
from contextlib import contextmanager
from typing import Any, Callable, Iterator, List, NamedTuple, Sequence

import torch

from payloads.wdmoe.bs.remote import Dispatcher

__all__ = ["AbandonedError", "Generation", "Token", "generate"]


class AbandonedError(Exception):
    """Nobody waits for the result any more."""


class Token(NamedTuple):
    """One generated token.

    Attributes:
        token: Its number in the vocabulary.
        done_ns: When it was known, on the monotonic clock.
        duration_ms: Since the request's start for the first token, since the token before for others.
        bs_ms: The part of ``duration_ms`` in which the base station was not waiting for devices.
        nll: Its negative log-likelihood under the model.
    """

    token: int
    done_ns: int
    duration_ms: float
    bs_ms: float
    nll: float


class Generation(NamedTuple):
    """One answered prompt.

    Attributes:
        start_ns: When the request began, on the monotonic clock.
        prompt_tokens: Length of the prompt.
        tokens: The generated tokens; the last may be the end-of-text token.
    """

    start_ns: int
    prompt_tokens: int
    tokens: List[Token]


def generate(
    model: Any,
    encode: Callable[[], List[int]],
    dispatcher: Dispatcher,
    max_new_tokens: int,
    end_tokens: Sequence[int],
    check: Callable[[], None],
) -> Generation:
    """Answer one prompt greedily with a key-value cache.

    Args:
        model: A causal language model of transformers.
        encode: Returns the prompt's tokens; its time is part of the first token's.
        dispatcher: Told the token step; asked for the time spent waiting.
        max_new_tokens: The most tokens to generate.
        end_tokens: Tokens that end the text.
        check: Called before every token; raises to stop.
    """
    start_ns = last_ns = time.monotonic_ns()
    tokens: List[int] = []
    times: List[int] = []
    walls: List[int] = []
    logits: List[torch.Tensor] = []
    cache: Any = None
    with torch.inference_mode(), _no_collection():
        prompt = encode()
        ids = torch.tensor([prompt])
        for step in range(max_new_tokens):
            check()
            dispatcher.begin_step(step)
            wall_ns = dispatcher.wall_ns
            output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            logits.append(output.logits[0, -1])
            tokens.append(int(logits[-1].argmax()))
            times.append(time.monotonic_ns())
            walls.append(dispatcher.wall_ns - wall_ns)
            if tokens[-1] in end_tokens:
                break
            ids = torch.tensor([[tokens[-1]]])
        # The likelihoods are worked out afterwards: they are no part of answering the prompt.
        nlls = [float(_nll(row.unsqueeze(0), torch.tensor([token]))) for row, token in zip(logits, tokens)]
    result = []
    for token, done_ns, wall_ns, nll in zip(tokens, times, walls, nlls):
        duration_ns = done_ns - last_ns
        result.append(Token(token, done_ns, duration_ns / 1e6, (duration_ns - wall_ns) / 1e6, nll))
        last_ns = done_ns
    return Generation(start_ns, len(prompt), result)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Hold back the garbage collector: a pause of it would be measured as time at the base station."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect(1)


def _nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
