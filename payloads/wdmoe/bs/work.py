"""A request at work: what the engine keeps of it, and how its sink hears of it."""

from __future__ import annotations

import sys
from typing import Any, List, Optional, Tuple

import torch

from payloads.wdmoe.bs.asks import Handle, Scored, Sink
from payloads.wdmoe.bs.sampling import Sampler, nll, score

__all__ = ["Work", "over"]

#: Logits of tokens whose likelihood is worked out at a request's end, at most.
_UNSCORED_BYTES = 64 << 20


class Work:
    """A request at work.

    Attributes:
        handle: What the submitter has of it.
        sink: Who hears of it.
        begun: Whether the sink knows that it was taken up.
        prompt: Its prompt's tokens; empty while it waits.
        read: How many of them the model has read.
        last: Its last token.
        given: How many tokens it got.
        done_ns: When the last of them was known; at first its submission.
        wall_ns: The time that all had waited for devices then.
        pairs: What became of its pairs since then: wanted, lost, rerouted.
        sampler: What draws its tokens.
        prompt_scores: What the model thought of the tokens of its prompt so far, where that is asked for.
        unscored: The logits of its last tokens, their likelihood still to be worked out.
    """

    def __init__(self, handle: Handle, sink: Sink, wall_ns: int) -> None:
        self.handle = handle
        self.sink = sink
        self.begun = False
        self.prompt: List[int] = []
        self.read = 0
        self.last = 0
        self.given = 0
        self.done_ns = handle.start_ns
        self.wall_ns = wall_ns
        self.pairs = (0, 0, 0)
        self.sampler = Sampler(handle.ask.sampling)
        self.prompt_scores: List[Optional[Scored]] = [None]
        self.unscored: List[Tuple[torch.Tensor, int]] = []

    @property
    def past(self) -> int:
        """How many tokens its slot holds."""
        return self.read + max(0, self.given - 1)

    def keep_likelihood(self, logits: torch.Tensor, token: int) -> Optional[Scored]:
        """Work out the token's likelihood at once where it is asked for, otherwise when nobody waits for it."""
        top = self.handle.ask.logprobs
        if top is not None:
            scored = score(logits, token, top)
            self.handle.nlls.append(-scored.logprob)
            return scored
        self.unscored.append((logits, token))
        if len(self.unscored) * logits.numel() * logits.element_size() > _UNSCORED_BYTES:
            self.settle()
        return None

    def settle(self) -> None:
        """Work out the likelihoods that are still to be worked out."""
        self.handle.nlls += [nll(logits, token) for logits, token in self.unscored]
        self.unscored.clear()

    def tell(self, what: str, *told: Any) -> None:
        """Call a method of the sink; where it fails, the request is given up and nobody else suffers."""
        try:
            getattr(self.sink, what)(*told)
        except Exception as error:
            text = f"request {self.handle.ask.id}: its sink failed: {type(error).__name__}: {error}"
            print(f"engine: {text}", file=sys.stderr, flush=True)
            self.handle.cancel()


def over(work: Work, now_ns: int) -> Optional[Tuple[str, str]]:
    """Return as what a request is to end now, and what to say; ``None`` where it goes on."""
    handle = work.handle
    if handle.cancelled is not None:
        return handle.cancelled, "" if handle.cancelled == "stop" else "nobody waits for it any more"
    if handle.deadline_ns is not None and now_ns >= handle.deadline_ns:
        return "deadline", f"its time of {handle.ask.deadline_s:g} s is up"
    return None
