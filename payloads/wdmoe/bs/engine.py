"""Requests become passes through the model: prompts read in chunks, answers decoded as one batch.

An *iteration* is one pass: a chunk of one request's prompt, or one more token for each of the requests that are being
answered. Where both wait they take turns. A request alone goes through the model as it would without this module.

The engine runs in the thread of whoever calls :meth:`Engine.run`; any thread may submit requests and give them up.
"""

from __future__ import annotations

import gc
import threading
import time
from collections import deque
from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, Deque, Dict, Iterator, List, Optional, Sequence, Tuple, Type

import torch

from payloads.station.control import AbandonedError
from payloads.wdmoe.bs.asks import Ask, Handle, Sink, Token
from payloads.wdmoe.bs.kv_cache import SlotCache, allow_batches, positions_limit
from payloads.wdmoe.bs.remote import Dispatcher
from payloads.wdmoe.bs.sampling import is_nan, score_prompt
from payloads.wdmoe.bs.work import Work, over
from payloads.wire.frames import DTYPE_BYTES, MAX_FRAME_BYTES, MAX_ROWS

__all__ = ["Engine", "most_rows"]

_IDLE_POLL_S = 0.05
#: What a frame has beside rows, at most.
_LISTS_BYTES = 8 << 20
#: The cache has room for so many tokens of an answer from the start, and is lengthened for those that come then.
_AHEAD_TOKENS = 256
#: A cache with longer slots is given back when there is no work.
_KEPT_TOKENS = 4096
#: The most that the logits of a prompt may take at once, where all of them are asked for.
_ECHO_BYTES = 256 << 20
#: What PyTorch says where the processor's memory, or an accelerator's, is not had: it has no class of its own for it.
_NO_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc")
_NO_NUMBERS = "the model's logits are no numbers (NaN): its element type overflows, or its weights are wrong"


class Engine:
    """Answers requests, several at a time.

    Args:
        model: A causal language model of transformers.
        dispatcher: Told of each iteration; asked for the time spent waiting for devices; looks around while there is
            nothing to do.
        max_batch: The most requests that are answered at a time; others wait, the first come first.
        prefill_chunk_tokens: The most tokens of a prompt in one iteration; ``None`` for as many as can be sent.
        survives: Failures that end the requests of their iteration only. Any other ends all and is raised.
            ``MemoryError`` is also what PyTorch raises instead.
        activations: Element type of the rows on the wire; ``None`` for the model's.
        context_tokens: The most tokens of a request, prompt and answer; ``None`` for as many as the model reads.

    Raises:
        BatchingError: The model cannot answer several requests at a time.
    """

    def __init__(
        self,
        model: Any,
        dispatcher: Dispatcher,
        *,
        max_batch: int = 1,
        prefill_chunk_tokens: Optional[int] = None,
        survives: Tuple[Type[Exception], ...] = (),
        activations: Optional[str] = None,
        context_tokens: Optional[int] = None,
    ) -> None:
        self._model = model
        self._dispatcher = dispatcher
        self._max_batch = max_batch
        self._chunk = min(prefill_chunk_tokens or MAX_ROWS, most_rows(model, activations))
        self._survives = survives
        self._vocabulary = int(model.config.vocab_size)
        self._echo_chunk = self._chunk
        if positions_limit(model.config) is None:
            self._echo_chunk = min(self._chunk, max(1, _ECHO_BYTES // (4 * self._vocabulary)))
        self._longest = int(model.config.max_position_embeddings)
        if context_tokens is not None:
            self._longest = min(self._longest, context_tokens)
        self._same_to = positions_limit(model.config) if max_batch > 1 or prefill_chunk_tokens else None
        if max_batch > 1:
            allow_batches(model)
        self._cache = SlotCache(self._longest)
        self._lock = threading.Condition()
        self._waiting: Deque[Work] = deque()
        self._closed = False
        self._reading: Optional[Work] = None
        # Their order is that of their slots; who reads has the slot behind them.
        self._decoding: List[Work] = []
        self._read_last = False
        self.iterations = 0

    def submit(self, ask: Ask, sink: Sink) -> Handle:
        """Take a request; it waits for its turn. Any thread may call this."""
        handle = Handle(ask, self.iterations)
        work = Work(handle, sink, self._dispatcher.wall_ns)
        with self._lock:
            closed = self._closed
            if not closed:
                self._waiting.append(work)
                self._lock.notify()
        if closed:
            self._end(work, "abandoned", "the engine is closed")
        return handle

    @property
    def context_tokens(self) -> int:
        """The most tokens that a request may have, prompt and answer."""
        return self._longest if self._same_to is None else min(self._longest, self._same_to)

    @property
    def load(self) -> Tuple[int, int]:
        """How many requests are at work, and how many wait for a place."""
        return len(self._decoding) + (self._reading is not None), len(self._waiting)

    def run(self, until: Callable[[], bool], check: Callable[[], None]) -> None:
        """Answer requests until ``until()``, which is asked between iterations and now and then while there are none.

        Args:
            until: Whether to return; requests that are not answered then stay, for the next call or for
                :meth:`close`.
            check: Called before every iteration; raises to stop.

        Raises:
            Exception: What ``check``, an ``encode`` or an iteration raised and is not survived; all requests have
                ended then.
        """
        try:
            with torch.inference_mode():
                while not until():
                    if not self._any_work():
                        if self._cache.length > _KEPT_TOKENS:
                            self._cache = SlotCache(self._longest)
                        check()
                        self._dispatcher.look()
                        self._wait()
                        continue
                    with _no_collection():
                        while self._any_work() and not until():
                            check()
                            self._iterate()
                            self._dispatcher.booking.settle()  # the last layer's
        except BaseException as error:
            abandoned = isinstance(error, AbandonedError)
            self._end_all("abandoned" if abandoned else "failed", str(error) or type(error).__name__)
            raise
        finally:
            dispatcher = self._dispatcher
            dispatcher.iteration, dispatcher.batch, dispatcher.deadline_ns = 0, 1, None

    def close(self) -> None:
        """End all requests, and all that are still to come, as abandoned. Not while :meth:`run` runs."""
        with self._lock:
            self._closed = True
        self._end_all("abandoned", "the engine is closed")

    @property
    def _at_work(self) -> List[Work]:
        return self._decoding if self._reading is None else [*self._decoding, self._reading]

    def _any_work(self) -> bool:
        return bool(self._decoding or self._reading or self._waiting)

    def _wait(self) -> None:
        with self._lock:
            if not self._waiting:
                self._lock.wait(_IDLE_POLL_S)

    def _iterate(self) -> None:
        self._sweep()
        self._admit()
        reading = self._reading
        if reading is not None and not (self._decoding and self._read_last):
            self._read_last = True
            self._tried([reading], partial(self._read, reading))
        elif self._decoding:
            self._read_last = False
            members = list(self._decoding)
            self._tried(members, partial(self._decode, members))

    def _tried(self, members: List[Work], do: Callable[[], None]) -> None:
        """Do what an iteration does for its requests; where that fails and is survived, they fail."""
        try:
            do()
            return
        except Exception as error:
            short = _is_short_of_memory(error)
            if not isinstance(MemoryError() if short else error, self._survives):
                raise
            problem = str(error) or type(error).__name__
            problem = f"the base station is short of memory: {problem}" if short else problem
        failed = [work for work in members if work in self._at_work]
        for work in failed:
            self._leave(work)
        if short:  # only now: the error held on to what the pass had
            self._give_back()
        now_ns = time.monotonic_ns()
        for work in failed:
            self._end(work, *(over(work, now_ns) or ("failed", problem)))

    def _give_back(self) -> None:
        """Give back the keys and values of requests that are not at work any more, and the room that they had."""
        held = max((work.past for work in self._at_work), default=0)
        if held:
            self._cache.cut(len(self._at_work), held + _AHEAD_TOKENS)
        else:
            self._cache = SlotCache(self._longest)

    def _sweep(self) -> None:
        """End who was given up and whose time is up."""
        now_ns = time.monotonic_ns()
        waiting: List[Work] = []
        if self._waiting:
            with self._lock:
                waiting = list(self._waiting)
        for work in [*waiting, *self._at_work]:
            due = over(work, now_ns)
            if due is not None:
                self._leave(work)
                self._end(work, *due)

    def _admit(self) -> None:
        """Give the next request that waits a place, if there is one."""
        while self._reading is None and len(self._decoding) < self._max_batch:
            with self._lock:
                if not self._waiting:
                    return
                work = self._waiting.popleft()
            handle, ask = work.handle, work.handle.ask
            handle.begun_ns = time.monotonic_ns()
            try:
                work.prompt = list(ask.encode())
                handle.prompt_tokens = len(work.prompt)
                problem = self._problem(work)
            except Exception as error:
                problem = str(error) or type(error).__name__
                if not isinstance(error, self._survives):
                    self._end(work, "failed", problem)
                    raise
            if problem:
                self._end(work, "failed", problem)
                continue
            self._begin(work)
            self._reading = work
            return

    def _problem(self, work: Work) -> str:
        """Return why a request cannot be answered; empty if it can."""
        tokens, new = len(work.prompt), work.handle.ask.max_new_tokens
        if not 0 < tokens <= self._longest - new:
            return (
                f"the prompt has {tokens} tokens; expected 1 to {self._longest - new} beside {new} new ones"
            )
        strange = [token for token in work.prompt if not 0 <= token < self._vocabulary]
        if strange:
            return f"the prompt has the token {strange[0]}; the model knows 0 to {self._vocabulary - 1}"
        if self._same_to is not None and tokens + new > self._same_to:
            limit = f"{self._same_to} tokens, prompt and answer"
            return f"this model (longrope) answers more than {limit}, only one request at a time in one chunk"
        return ""

    def _read(self, work: Work) -> None:
        """Read one chunk of a prompt; after the last one there is a token."""
        ask, begin = work.handle.ask, work.read
        echo = ask.echo and ask.logprobs is not None
        chunk = work.prompt[begin : begin + (self._echo_chunk if echo else self._chunk)]
        whole = begin + len(chunk) == len(work.prompt)
        # Not before: where there is no room for it, it is this pass that fails.
        ahead = min(ask.max_new_tokens, _AHEAD_TOKENS)
        self._cache.reserve(len(self._decoding) + 1, len(work.prompt) + ahead)
        self._cache.one(len(self._decoding), begin)
        logits = self._pass([work], 0, torch.tensor([chunk]), {"logits_to_keep": 0 if echo else 1})
        work.read += len(chunk)
        if self._dispatcher.metrics is not None:
            self._dispatcher.metrics.prompt_tokens.add(len(chunk))
        if echo and ask.logprobs is not None:
            follow = work.prompt[begin + 1 : begin + len(chunk) + 1]
            work.prompt_scores += score_prompt(logits[0, : len(follow)], follow, ask.logprobs)
        if not whole:
            return
        if echo:
            work.tell("prompt", work.prompt_scores)
        self._reading = None
        self._decoding.append(work)
        if ask.max_new_tokens:
            self._give([work], logits[:, -1])
        else:
            self._leave(work)
            self._end(work, "length", "")

    def _decode(self, members: List[Work]) -> None:
        """Give each request that is being answered one more token."""
        past = [work.past for work in members]
        self._cache.reserve(len(members), max(past) + 1)
        settings: Dict[str, Any] = {"logits_to_keep": 1}
        if len(members) == 1:
            self._cache.one(0, past[0])
        else:
            self._cache.first(past)
            settings["position_ids"] = torch.tensor(past).view(-1, 1)
        oldest = min(members, key=lambda work: work.handle.start_ns)
        ids = torch.tensor([[work.last] for work in members])
        self._give(members, self._pass(members, oldest.given, ids, settings)[:, -1])

    def _pass(
        self, members: List[Work], step: int, ids: torch.Tensor, settings: Dict[str, Any]
    ) -> torch.Tensor:
        """Do one pass through the model; return its logits."""
        dispatcher = self._dispatcher
        oldest = min(self._at_work, key=lambda work: work.handle.start_ns)
        first = min(members, key=lambda work: work.handle.start_ns)
        deadlines = [work.handle.deadline_ns for work in members]
        dispatcher.request, dispatcher.batch = first.handle.ask.id, len(members)
        dispatcher.iteration = self.iterations
        dispatcher.deadline_ns = None if None in deadlines else max(d for d in deadlines if d is not None)
        self.iterations += 1
        dispatcher.begin_step(step, oldest.handle.ask.id)
        logits: torch.Tensor = self._model(
            input_ids=ids, past_key_values=self._cache, use_cache=True, **settings
        ).logits
        self._count_pairs(members)
        return logits

    def _count_pairs(self, members: List[Work]) -> None:
        """Add what became of the pass's pairs to the requests that its rows belong to."""
        outcome = self._dispatcher.outcome
        if outcome is None:
            return
        counts = [part.reshape(len(members), -1).sum(axis=1).tolist() for part in outcome]
        for work, wanted, lost, rerouted in zip(members, *counts):
            before = work.pairs
            work.pairs = (before[0] + wanted, before[1] + lost, before[2] + rerouted)

    def _give(self, members: Sequence[Work], logits: torch.Tensor) -> None:
        """Give each request the token that its logits (B, V) say; end those that have all they want."""
        if all(work.sampler.greedy for work in members):
            chosen = logits.argmax(dim=-1).tolist()
        else:
            chosen = [work.sampler.draw(row) for work, row in zip(members, logits)]
        done_ns, wall_ns = time.monotonic_ns(), self._dispatcher.wall_ns
        broken = [work for work, token, row in zip(members, chosen, logits) if is_nan(row, token)]
        if broken:
            self._cache.scrub()  # what they leave there must not reach others
        if self._dispatcher.metrics is not None:
            new = [(done_ns - work.handle.start_ns) * 1e-9 for work in members if not work.given]
            self._dispatcher.metrics.generated(len(members), new)
        for work, token, row in zip(members, chosen, logits):
            if work in broken:
                continue
            duration_ns = done_ns - work.done_ns
            busy_ns = max(0, duration_ns - (wall_ns - work.wall_ns))
            scored = work.keep_likelihood(row, token)
            times = (done_ns, duration_ns / 1e6, busy_ns / 1e6)
            told = Token(token, *times, self.iterations - 1, *work.pairs, scored)
            work.done_ns, work.wall_ns, work.pairs = done_ns, wall_ns, (0, 0, 0)
            work.last, work.given = token, work.given + 1
            work.tell("token", told)
        for work in members:  # only now: a slot that moves is as long as its request's tokens say
            ask = work.handle.ask
            stops = work.last in ask.stop_tokens
            if work in broken:
                self._leave(work)
                self._end(work, "failed", _NO_NUMBERS)
            elif stops or work.given == ask.max_new_tokens:
                self._leave(work)
                self._end(work, "stop" if stops else "length", "")

    def _leave(self, work: Work) -> None:
        """Take a request out of the batch, or out of those that wait; slots behind it move up."""
        if work is self._reading:
            self._reading = None
            return
        if work not in self._decoding:
            with self._lock:
                self._waiting.remove(work)
            return
        place, last = self._decoding.index(work), len(self._decoding) - 1
        if place != last:
            self._cache.move(last, place, self._decoding[last].past)
            self._decoding[place] = self._decoding[last]
        self._decoding.pop()
        if self._reading is not None:
            self._cache.move(last + 1, last, self._reading.read)

    def _begin(self, work: Work) -> None:
        if not work.begun:
            work.begun = True
            work.tell("begun", work.handle)

    def _end(self, work: Work, reason: str, message: str) -> None:
        with torch.inference_mode():
            work.settle()
        self._begin(work)
        if self._dispatcher.metrics is not None:
            self._dispatcher.metrics.ended(reason, (time.monotonic_ns() - work.handle.start_ns) * 1e-9)
        work.tell("end", reason, message)
        if not gc.isenabled():
            gc.collect(1)

    def _end_all(self, reason: str, message: str) -> None:
        with self._lock:
            works = [*self._at_work, *self._waiting]
            self._waiting.clear()
        self._decoding, self._reading = [], None
        for work in works:
            self._end(work, reason, message)


def most_rows(model: Any, activations: Optional[str]) -> int:
    """Return how many tokens of a prompt fit one pass: a device may be asked for all of their pairs."""
    config, dtype = model.config, getattr(model, "dtype", torch.float32)
    element_bytes = max(torch.empty(0, dtype=dtype).element_size(), DTYPE_BYTES.get(activations or "", 0))
    row_bytes = getattr(config, "hidden_size", 1) * element_bytes
    pairs = getattr(config, "num_experts_per_tok", 1)
    return min(MAX_ROWS, max(1, (MAX_FRAME_BYTES - _LISTS_BYTES) // (row_bytes * pairs)))


def _is_short_of_memory(error: Exception) -> bool:
    if isinstance(error, RuntimeError):
        return any(words in str(error) for words in _NO_MEMORY)
    return isinstance(error, MemoryError)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Hold back the garbage collector: a pause of it would be measured as time at the base station."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect(1)
