"""A service whose tokens are bytes and whose engine says what it is told to."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator

import pytest

from payloads.wdmoe.bs.asks import Ask, Scored, Sink, Token
from payloads.wdmoe.serve.api import Api
from payloads.wdmoe.serve.errors import ApiError
from payloads.wdmoe.serve.http import HttpServer

MODEL = "small"
END = 256
CONTEXT = 128


class Bytes:
    """A tokenizer whose tokens are the bytes of a text, and one that ends it."""

    model = MODEL
    stop_tokens = (END,)
    vocabulary = END + 1
    context_tokens = CONTEXT

    def __init__(self, *, template: bool = True) -> None:
        self._template = template

    def encode(self, prompt: Any, special: bool = True) -> list[int]:
        tokens = list(prompt.encode()) if isinstance(prompt, str) else list(prompt)
        if any(not 0 <= token < self.vocabulary for token in tokens):
            raise ApiError(400, "no such token", param="prompt")
        return tokens

    def decode(self, tokens: Any, skip_special: bool = True) -> str:
        return bytes(token for token in tokens if token != END).decode(errors="replace")

    def spell(self, token: int) -> bytes:
        return b"<end>" if token == END else bytes([token])

    def chat(self, messages: Any) -> list[int]:
        if not self._template:
            raise ApiError(400, "the model has no chat template", param="messages", code="no_chat_template")
        return self.encode("".join(f"{one.role}: {one.content}\n" for one in messages) + "assistant: ")

    def offsets(self, text: str) -> list[int]:
        return [len(text.encode()[:place].decode(errors="ignore")) for place in range(len(text.encode()))]

    def info(self) -> dict[str, Any]:
        return {"eos_token": "<end>", "bos_token": None, "chat_template": None}


@dataclass
class Running:
    """A request at the scripted engine."""

    ask: Ask
    name: str | None
    cancelled: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def cancel(self, reason: str = "abandoned") -> None:
        self.cancelled.append(reason)


class Script:
    """An engine that answers every prompt with the same text, or with what `says` makes of it.

    Attributes:
        says: Makes the answer's tokens of the prompt's.
        fails: The prompts that fail at once.
        ends: The reason and the message of the end, where it is neither the stop token nor the length.
        gate: Waited for before every token after the first.
        seen: All requests so far.
    """

    def __init__(self) -> None:
        self.says: Callable[[list[int]], list[int]] = lambda prompt: [*b"Hello, world.", END]
        self.fails: set[bytes] = set()
        self.ends: tuple[str, str] | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.seen: list[Running] = []

    def submit(self, name: str | None, ask: Ask, sink: Sink) -> Running:
        running = Running(ask, name)
        self.seen.append(running)
        threading.Thread(target=self._answer, args=(running, ask, sink), daemon=True).start()
        return running

    def _answer(self, running: Running, ask: Ask, sink: Sink) -> None:
        prompt = ask.encode()
        sink.begun(running)
        if self.fails and bytes(prompt) in self.fails:
            sink.end("failed", "it cannot be")
            return
        if ask.echo:
            sink.prompt([None, *(score(token, ask.logprobs) for token in prompt[1:])])
        reason = "length"
        for number, token in enumerate(self.says(prompt)[: ask.max_new_tokens]):
            if number:
                assert self.gate.wait(10)
            if running.cancelled:
                reason = running.cancelled[0]
                break
            scored = None if ask.logprobs is None else score(token, ask.logprobs)
            sink.token(Token(token, number, 1.0, 1.0, number, scored=scored))
            if token in ask.stop_tokens:
                reason = "stop"
                break
        sink.end(*(self.ends or (reason, "")))
        running.ended.set()


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def score(token: int, top: int | None) -> Scored:
    """A likelihood that follows from the token; the likeliest token is always 65, an A."""
    likely = [(65 + place, -0.5 - place) for place in range(top or 0)]
    return Scored(token, -0.5 if token == 65 else -3.0 - token / 1000, tuple(likely))


@pytest.fixture
def script() -> Iterator[Script]:
    engine = Script()
    yield engine
    engine.gate.set()


@pytest.fixture(scope="session")
def service() -> Iterator[tuple[Api, HttpServer]]:
    made = Api(Bytes(), lambda: "up 1\n")
    server = HttpServer(made, ("127.0.0.1", 0))
    yield made, server
    server.close()


@pytest.fixture
def api(service: tuple[Api, HttpServer], script: Script) -> Api:
    service[0].open(script)
    return service[0]


@pytest.fixture
def server(service: tuple[Api, HttpServer], api: Api) -> HttpServer:
    return service[1]
