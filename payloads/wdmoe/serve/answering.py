"""The answers to one request while they are made: what the engine tells becomes pieces of text."""

from __future__ import annotations

import json
import queue
import time
from typing import (
    Any,
    Callable,
    Dict,
    Generator,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Protocol,
    Sequence,
    Tuple,
)

from payloads.wdmoe.bs.asks import Ask, Scored, Sink, Token
from payloads.wdmoe.serve.errors import ApiError
from payloads.wdmoe.serve.openai_answers import Choice, Shape, usage
from payloads.wdmoe.serve.text import Entry, Piece, Writer

__all__ = [
    "Answer",
    "Answering",
    "Backend",
    "ClientGoneError",
    "Event",
    "Running",
    "gathered",
    "json_bytes",
    "not_serving",
    "sent",
]

LOOK_S = 0.25  # how often a request that waits looks whether its client does


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


class Running(Protocol):
    """A request that the engine has."""

    def cancel(self, reason: str = "abandoned") -> None:
        """Give it up.

        Args:
            reason: ``abandoned``, or ``stop`` where a text that the client named has ended the answer.
        """


class Backend(Protocol):
    """Who answers requests."""

    def submit(self, name: Optional[str], ask: Ask, sink: Sink) -> Running:
        """Take a request.

        Args:
            name: What the client calls it; ``None`` where it does not.
            ask: The request; its id is not set yet.
            sink: Who hears of it.
        """


class Answer:
    """One answer while it is made.

    Attributes:
        index: Its number within the request.
        prompt: The prompt's tokens.
        echo: The text that stands before the answer.
        offsets: Where each token of the prompt begins in that text; empty where nobody will be told.
        running: The request to the engine; ``None`` before it is submitted.
        tokens: How many tokens were generated, up to the end of the answer.
        finish: Why it ended, ``stop`` or ``length``; ``None`` before.
    """

    def __init__(
        self, index: int, prompt: List[int], echo: str, writer: Writer, offsets: Sequence[int] = ()
    ) -> None:
        self.index = index
        self.prompt = prompt
        self.echo = echo
        self.offsets = offsets
        self.running: Optional[Running] = None
        self.tokens = 0
        self.finish: Optional[str] = None
        self._writer = writer

    def add(self, token: Token, ends_text: bool) -> Optional[Event]:
        """Add a token; return what has become certain by it."""
        if self.finish is not None:
            return None
        self.tokens += 1
        piece = self._writer.add(token.token, token.scored, silent=ends_text)
        if self._writer.stopped:
            self.finish = "stop"
            assert self.running is not None
            self.running.cancel("stop")
        elif not piece.text and not piece.entries:
            return None
        return Event(self, piece, self.finish)

    def end(self, reason: str, message: str) -> Optional[Event]:
        """Hear that the engine is done with it; return the last piece, where that was not the last already.

        Raises:
            ApiError: There is none: the request failed.
        """
        if self.finish is not None:
            return None
        if reason == "deadline":
            text = message or "the request's time was up"
            raise ApiError(504, text, "timeout_error", code="deadline_exceeded")
        if reason not in ("stop", "length"):
            text = message or "the base station gave the request up"
            status, kind = (503, "service_unavailable") if reason == "abandoned" else (500, "server_error")
            raise ApiError(status, text, kind, code=f"request_{reason}")
        piece = self._writer.end()
        self.finish = "stop" if self._writer.stopped else reason
        return Event(self, piece, self.finish)


class Event(NamedTuple):
    """A piece of an answer.

    Attributes:
        answer: The answer.
        piece: The piece.
        finish: Why the answer ended, where this is its last piece.
    """

    answer: Answer
    piece: Piece
    finish: Optional[str]


class _Mailbox:
    """Hears of one answer in the engine's thread, and leaves it to the thread of the request."""

    def __init__(self, index: int, box: queue.SimpleQueue[Tuple[int, str, Any]]) -> None:
        self._index = index
        self._box = box

    def begun(self, handle: Any) -> None:
        """Nothing is to be done: whoever submitted the request knows its prompt."""

    def prompt(self, scores: Sequence[Optional[Scored]]) -> None:
        self._box.put((self._index, "prompt", list(scores)))

    def token(self, token: Token) -> None:
        self._box.put((self._index, "token", token))

    def end(self, reason: str, message: str) -> None:
        self._box.put((self._index, "end", (reason, message)))


class Answering:
    """The answers to one request.

    Args:
        answers: What is to be made.
        stop_tokens: The tokens that end a text.
    """

    def __init__(self, answers: Sequence[Answer], stop_tokens: Sequence[int]) -> None:
        self._answers = answers
        self._stop_tokens = frozenset(stop_tokens)
        self._box: queue.SimpleQueue[Tuple[int, str, Any]] = queue.SimpleQueue()

    def submit(self, backend: Backend, asks: Sequence[Ask], name: Optional[str]) -> None:
        """Hand the requests to the engine; all of them or none."""
        try:
            for answer, ask in zip(self._answers, asks):
                called = name if name is None or len(asks) == 1 else f"{name}-{answer.index}"
                answer.running = backend.submit(called, ask, _Mailbox(answer.index, self._box))
        except BaseException:
            self._give_up()
            raise

    def events(
        self, gone: Callable[[], bool], serving: Callable[[], bool], scored: bool
    ) -> Generator[Event, None, None]:
        """Yield what becomes of the answers until all are there; when it is closed, they are given up.

        Args:
            gone: Whether the client has gone.
            serving: Whether the engine still works.
            scored: Whether prompts that are echoed come with their likelihoods.

        Raises:
            ApiError: One could not be answered.
            ClientGoneError: Nobody waits any more.
        """
        left, looked_s = len(self._answers), time.monotonic()
        try:
            for answer in self._answers:
                if answer.echo and not scored:
                    yield Event(answer, Piece(answer.echo, ()), None)
            while left:
                if time.monotonic() - looked_s >= LOOK_S:
                    looked_s = time.monotonic()
                    if gone():
                        raise ClientGoneError
                try:
                    index, kind, value = self._box.get(timeout=LOOK_S)
                except queue.Empty:
                    if not serving():  # the engine had its time to end it in order
                        raise not_serving() from None
                    continue
                left -= kind == "end"
                event = self._heard(self._answers[index], kind, value)
                if event is not None:
                    yield event
        finally:
            self._give_up()

    def _heard(self, answer: Answer, kind: str, value: Any) -> Optional[Event]:
        if kind == "token":
            return answer.add(value, value.token in self._stop_tokens)
        if kind == "end":
            return answer.end(*value)
        entries = tuple(Entry(*entry) for entry in zip(answer.prompt, value, answer.offsets))
        return Event(answer, Piece(answer.echo, entries), None)

    def _give_up(self) -> None:
        for answer in self._answers:
            if answer.running is not None and answer.finish is None:
                answer.running.cancel()


def gathered(shape: Shape, answers: Sequence[Answer], events: Iterator[Event]) -> Dict[str, Any]:
    """Return all answers in one."""
    pieces: List[List[Piece]] = [[] for _ in answers]
    for event in events:
        pieces[event.answer.index].append(event.piece)
    choices = []
    for answer, listed in zip(answers, pieces):
        text = "".join(piece.text for piece in listed)
        entries = tuple(entry for piece in listed for entry in piece.entries)
        choices.append(Choice(Piece(text, entries), str(answer.finish)))
    return shape.whole(choices, _counts(answers))


def sent(
    shape: Shape, answers: Sequence[Answer], first: Event, others: Iterator[Event], close: Callable[[], None]
) -> Iterator[bytes]:
    """Yield all answers in server-sent events; what goes wrong in the middle is the last one.

    Args:
        shape: Their form.
        answers: The answers.
        first: The first piece.
        others: The other pieces.
        close: Called at the end, whatever happens.
    """
    opened = set()
    event: Optional[Event] = first
    try:
        while event is not None:
            index = event.answer.index
            if shape.chat and index not in opened:
                yield _sse(shape.opening(index))
            opened.add(index)
            yield _sse(shape.piece(index, event.piece, event.finish))
            event = next(others, None)
        closing = shape.closing(_counts(answers))
        if closing is not None:
            yield _sse(closing)
        yield b"data: [DONE]\n\n"
    except ApiError as error:
        yield _sse(error.as_json())
    finally:
        close()


def json_bytes(value: Any) -> bytes:
    """Return a value as JSON."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def not_serving() -> ApiError:
    """Return the error that there is no engine to answer."""
    text = "the base station serves nobody at the moment: it has no campaign to serve"
    return ApiError(503, text, "service_unavailable", code="not_serving")


def _counts(answers: Sequence[Answer]) -> Dict[str, int]:
    return usage(sum(len(answer.prompt) for answer in answers), sum(answer.tokens for answer in answers))


def _sse(value: Mapping[str, Any]) -> bytes:
    return b"data: " + json_bytes(value) + b"\n\n"
