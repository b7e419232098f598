"""What is asked of the engine, and what it tells whoever asked. Plain data: no model and no devices are known here."""

from __future__ import annotations

import time
from typing import Callable, List, NamedTuple, Optional, Protocol, Sequence, Tuple

__all__ = ["END_REASONS", "Ask", "Handle", "Sampling", "Scored", "Sink", "Token"]

#: Why a request ends: a stop token came; the most tokens are there; its time is up; nobody waits for it any more; it
#: could not be done.
END_REASONS = ("stop", "length", "deadline", "abandoned", "failed")


class Sampling(NamedTuple):
    """How a token is drawn.

    Attributes:
        temperature: 0 (or next to it) takes the most likely one.
        top_p: Only the most likely tokens are drawn from, as few as have this probability together.
        seed: What is drawn depends on this and the request's own tokens alone, not on who shares a batch with it.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class Scored(NamedTuple):
    """A token and what the model thought of it and of the most likely ones.

    Attributes:
        token: Its number in the vocabulary.
        logprob: The natural logarithm of its probability, at temperature 1.
        top: The most likely tokens with theirs, the most likely first; as many as were asked for.
    """

    token: int
    logprob: float
    top: Tuple[Tuple[int, float], ...]


class Token(NamedTuple):
    """One generated token.

    Attributes:
        token: Its number in the vocabulary.
        done_ns: When it was known, on the monotonic clock.
        duration_ms: Since the request's start for the first token, since the token before for others.
        bs_ms: The part of ``duration_ms`` in which the base station was not waiting for devices.
        iteration: The engine's iteration that it came from.
        wanted: Pairs of a token and an expert that the policy wanted to be answered, over all layers; of the whole
            prompt for the first token.
        lost: How many of them no device could answer.
        rerouted: How many of them another device answered than was first asked.
        scored: What the model thought of it; ``None`` where the request did not ask for ``logprobs``.
    """

    token: int
    done_ns: int
    duration_ms: float
    bs_ms: float
    iteration: int
    wanted: int = 0
    lost: int = 0
    rerouted: int = 0
    scored: Optional[Scored] = None


class Ask(NamedTuple):
    """A request.

    Attributes:
        id: Its name in the records.
        encode: Returns the prompt's tokens, at least one; called once, in the engine's thread. Its time is part of
            the first token's. What it raises ends the request as failed.
        max_new_tokens: The most tokens to generate; with 0 the prompt is only read.
        sampling: How tokens are drawn.
        stop_tokens: Tokens that end the text; the last token may be one.
        logprobs: How many of the most likely tokens come with each token; ``None`` for no likelihoods at all.
        echo: Whether the prompt's own likelihoods are wanted too; needs ``logprobs``.
        deadline_s: The most time from its submission to its end; ``None`` for any.
    """

    id: str
    encode: Callable[[], List[int]]
    max_new_tokens: int
    sampling: Sampling = Sampling()
    stop_tokens: Sequence[int] = ()
    logprobs: Optional[int] = None
    echo: bool = False
    deadline_s: Optional[float] = None


class Sink(Protocol):
    """Who hears of a request. Called from the engine's thread: what takes long belongs elsewhere.

    ``begun`` is called once, before anything else, and ``end`` once, after everything else.
    """

    def begun(self, handle: Handle) -> None:
        """Hear that the engine takes the request up; its prompt is encoded, unless the request ends at once."""

    def prompt(self, scores: Sequence[Optional[Scored]]) -> None:
        """Hear the prompt's tokens and their likelihoods, before the first token; only with ``echo``.

        Args:
            scores: One for each token of the prompt; ``None`` for the first, which nothing comes before.
        """

    def token(self, token: Token) -> None:
        """Hear a token."""

    def end(self, reason: str, message: str) -> None:
        """Hear that the request is over.

        Args:
            reason: One of :data:`END_REASONS`.
            message: What happened, for people; empty where all went as wished.
        """


class Handle:
    """A request that the engine has.

    Attributes:
        ask: What was asked.
        start_ns: When it was submitted, on the monotonic clock.
        begun_ns: When the engine took it up; 0 while it waits for a place.
        first_iteration: The engine's next iteration at its submission.
        prompt_tokens: Length of the prompt; 0 while it is not encoded.
        nlls: The negative log-likelihood of each generated token under the model (at temperature 1); complete when
            the request has ended.
    """

    def __init__(self, ask: Ask, first_iteration: int = 0) -> None:
        self.ask = ask
        self.start_ns = time.monotonic_ns()
        self.begun_ns = 0
        self.first_iteration = first_iteration
        self.prompt_tokens = 0
        self.nlls: List[float] = []
        self._cancelled: Optional[str] = None

    def cancel(self, reason: str = "abandoned") -> None:
        """Give it up: it ends before the next iteration. Any thread may call this, at any time, again and again.

        Args:
            reason: What it ends as: ``abandoned``, or ``stop`` where what was heard is all that was wanted.
        """
        if self._cancelled is None:
            self._cancelled = reason

    @property
    def cancelled(self) -> Optional[str]:
        """What it is to end as, once it was given up."""
        return self._cancelled

    @property
    def deadline_ns(self) -> Optional[int]:
        """When its time is up, on the monotonic clock; ``None`` where it has any."""
        deadline_s = self.ask.deadline_s
        return None if deadline_s is None else self.start_ns + round(deadline_s * 1e9)
