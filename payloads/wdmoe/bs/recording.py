"""What becomes of a trial's requests: their records, the next one in their place, and what is added up between them."""

from __future__ import annotations

import time
from collections import deque
from itertools import chain
from typing import Callable, Deque, List, NamedTuple, Optional, Sequence

from payloads.wdmoe.bs.asks import Ask, Handle, Scored, Sink, Token
from payloads.wdmoe.bs.engine import Engine
from payloads.wdmoe.bs.records import Answer, Records
from payloads.wdmoe.bs.remote import Dispatcher
from payloads.wdmoe.judge import Judge

__all__ = ["ClosedLoop", "Judging", "Recording", "RequestFailedError", "Throughput"]

#: Decisions that wait to be judged, and the tokens in them; each holds what a layer's router thought of its tokens.
MOST_DECIDED = 20_000
MOST_DECIDED_TOKENS = 1_000_000


class RequestFailedError(Exception):
    """A request of a trial could not be answered."""


class Recording:
    """A sink that writes a request into the records, and hands on what it hears.

    Args:
        records: Where it goes.
        warmup: Whether the request is a warm-up.
        decode: Makes text of tokens.
        then: Who hears next, if anybody; of the end, when the records have it.
    """

    def __init__(
        self, records: Records, warmup: bool, decode: Callable[[List[int]], str], then: Optional[Sink] = None
    ) -> None:
        self._records = records
        self._warmup = warmup
        self._decode = decode
        self._then = then
        self._handle: Optional[Handle] = None
        self._tokens: List[Token] = []

    def begun(self, handle: Handle) -> None:
        """See :class:`payloads.wdmoe.bs.asks.Sink`."""
        self._handle = handle
        if self._then is not None:
            self._then.begun(handle)

    def prompt(self, scores: Sequence[Optional[Scored]]) -> None:
        """See :class:`payloads.wdmoe.bs.asks.Sink`."""
        if self._then is not None:
            self._then.prompt(scores)

    def token(self, token: Token) -> None:
        """See :class:`payloads.wdmoe.bs.asks.Sink`."""
        self._tokens.append(token)
        if self._then is not None:
            self._then.token(token)

    def end(self, reason: str, message: str) -> None:
        """See :class:`payloads.wdmoe.bs.asks.Sink`."""
        assert self._handle is not None
        text = self._decode([token.token for token in self._tokens])
        answer = Answer(self._handle, self._warmup, text, self._tokens, reason, time.monotonic_ns())
        self._records.add_answer(answer)
        if self._then is not None:
            self._then.end(reason, message)


class Judging:
    """Adds a trial's decisions up when nothing is timed, as far as that is possible.

    Args:
        judge: What adds up.
        dispatcher: What keeps the decisions until then.
    """

    def __init__(self, judge: Judge, dispatcher: Dispatcher) -> None:
        self._judge = judge
        self._dispatcher = dispatcher
        self._judged = self._weighed = self._tokens = 0
        self.forget()

    def due(self) -> bool:
        """Whether so much is kept that it is to be judged, whatever is timed, and forgotten."""
        decided = self._dispatcher.decided or ()
        self._tokens += sum(len(one.routing.index) for one in decided[self._weighed :])
        self._weighed = len(decided)
        return self._weighed > MOST_DECIDED or self._tokens > MOST_DECIDED_TOKENS

    def settle(self, warmup: bool) -> None:
        """Judge the decisions that are kept and were not judged yet."""
        decided = (self._dispatcher.decided or [])[self._judged :]
        for one, after in zip(decided, chain(decided[1:], [None])):
            self._judge.add(one, warmup, after)
        self._judged += len(decided)

    def settle_some(self, most: int) -> None:
        """Judge the oldest decisions of no warm-up, so many at most, and forget them: others wait for this."""
        decided = self._dispatcher.decided or []
        for one, after in zip(decided[:most], chain(decided[1 : most + 1], [None])):
            self._judge.add(one, False, after)
        self._tokens -= sum(len(one.routing.index) for one in decided[: min(most, self._weighed)])
        self._weighed = max(0, self._weighed - most)
        del decided[:most]

    def forget(self) -> None:
        """Forget all decisions."""
        self._dispatcher.decided = []
        self._judged = self._weighed = self._tokens = 0


class Throughput(NamedTuple):
    """What came out of a closed loop.

    Attributes:
        output_tokens: Tokens generated.
        seconds: From the first request's submission to the last one's end.
    """

    output_tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Output tokens a second."""
        return self.output_tokens / self.seconds if self.seconds > 0 else 0.0


class ClosedLoop:
    """Keeps a number of requests in flight: when one has ended, the next takes its place.

    Args:
        engine: Who answers.
        records: Where the requests go.
        decode: Makes text of tokens.
        judging: What adds the decisions up: after each request where they come one by one, else at the end.
        concurrency: How many requests are in flight.
        asked: Called before each request is submitted, with its name and how many have ended so far.
    """

    def __init__(
        self,
        engine: Engine,
        records: Records,
        decode: Callable[[List[int]], str],
        judging: Judging,
        concurrency: int,
        asked: Callable[[str, int], None],
    ) -> None:
        self._engine = engine
        self._records = records
        self._decode = decode
        self._judging = judging
        self._concurrency = concurrency
        self._asked = asked
        self._warmup = False
        self._waiting: Deque[Ask] = deque()
        self._in_flight: List[_Ends] = []
        self._ended = self._output_tokens = 0

    def run(self, asks: Sequence[Ask], warmup: bool, check: Callable[[], None]) -> Throughput:
        """Have all requests answered.

        Args:
            asks: The requests, in their order.
            warmup: Whether they are warm-ups.
            check: Called before every iteration; raises to stop.

        Raises:
            RequestFailedError: One of them could not be answered.
            Exception: What the engine raises.
        """
        self._warmup, self._waiting, self._output_tokens = warmup, deque(asks), 0
        begun_ns = time.monotonic_ns()
        self._engine.run(self._refill, check)
        seconds = (time.monotonic_ns() - begun_ns) / 1e9
        self._judging.settle(warmup)
        return Throughput(self._output_tokens, seconds)

    def _refill(self) -> bool:
        """Let the next requests take the place of those that have ended; return whether all have."""
        for one in [one for one in self._in_flight if one.reason]:
            self._in_flight.remove(one)
            self._ended += 1
            self._output_tokens += one.tokens
            if one.reason in ("failed", "abandoned"):
                raise RequestFailedError(f"request {one.request}: {one.message}")
        while self._waiting and len(self._in_flight) < self._concurrency:
            ask = self._waiting.popleft()
            due = self._concurrency == 1 or self._judging.due()
            if due:
                self._judging.settle(self._warmup)
            self._asked(ask.id, self._ended)
            if due:
                self._judging.forget()
            ends = _Ends(ask.id)
            self._in_flight.append(ends)
            self._engine.submit(ask, Recording(self._records, self._warmup, self._decode, ends))
        return not self._in_flight


class _Ends:
    """Hears how a request ends."""

    def __init__(self, request: str) -> None:
        self.request = request
        self.tokens = 0
        self.reason = self.message = ""

    def begun(self, handle: Handle) -> None:
        """Nothing comes of it."""

    def prompt(self, scores: Sequence[Optional[Scored]]) -> None:
        """Nothing comes of it."""

    def token(self, token: Token) -> None:
        """Count it."""
        self.tokens += 1

    def end(self, reason: str, message: str) -> None:
        """Keep it."""
        self.reason, self.message = reason, message
