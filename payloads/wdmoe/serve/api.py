"""What the service answers: routes, requests to the engine, and answers in one or in pieces. No sockets."""

from __future__ import annotations

import secrets
import threading
import time
import uuid
from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Protocol,
    Sequence,
    Tuple,
    Union,
)

from payloads.metrics import CONTENT_TYPE
from payloads.wdmoe.bs.asks import Ask, Sampling
from payloads.wdmoe.serve.answering import Answer, Answering, Backend, gathered, json_bytes, not_serving, sent
from payloads.wdmoe.serve.errors import ApiError, bad_request
from payloads.wdmoe.serve.fields import Fields, read_json
from payloads.wdmoe.serve.openai_answers import Shape, models
from payloads.wdmoe.serve.openai_requests import GenerationRequest, Prompt, read_chat, read_completion
from payloads.wdmoe.serve.text import Writer, offsets_of, tail_of

__all__ = ["Api", "Reply", "Speaks", "Stream", "Whole"]

#: No text has so many characters in a token: what is longer is refused without making tokens of it.
MOST_CHARACTERS = 200


class Whole(NamedTuple):
    """An answer in one.

    Attributes:
        status: The HTTP status.
        kind: Its content type.
        body: What it says.
    """

    status: int
    kind: str
    body: bytes


class Stream(NamedTuple):
    """An answer in server-sent events.

    Attributes:
        events: Each is complete; closing the generator gives the request up.
    """

    events: Iterator[bytes]


Reply = Union[Whole, Stream]


class Speaks(Protocol):
    """The tokenizer: a :class:`payloads.wdmoe.serve.language.Language`, or what stands in for one."""

    model: str
    vocabulary: int
    context_tokens: int
    stop_tokens: Tuple[int, ...]

    def encode(self, prompt: Prompt, special: bool = True) -> List[int]:
        """Return the tokens of a prompt."""

    def decode(self, tokens: Sequence[int], skip_special: bool = True) -> str:
        """Return the text of tokens."""

    def spell(self, token: int) -> bytes:
        """Return the bytes of a token."""

    def offsets(self, text: str) -> List[int]:
        """Return where each token of a text's prompt begins in it, in characters."""

    def chat(self, messages: Sequence[Any]) -> List[int]:
        """Return the tokens of a chat."""

    def info(self) -> Dict[str, Any]:
        """Return what a client needs to know to count and end texts."""


class Api:
    """Answers requests. Its methods may be called from any thread.

    Args:
        language: The model's tokenizer.
        metrics: Gives the metrics as text; ``None`` where there are none.
    """

    def __init__(self, language: Speaks, metrics: Optional[Callable[[], str]] = None) -> None:
        self._model = language.model
        self._language = language
        self._metrics = metrics
        self._created_s = int(time.time())
        self._lock = threading.Lock()
        self._backend: Optional[Backend] = None
        self._deadline_s: Optional[float] = None
        self._context_tokens = language.context_tokens

    def open(
        self, backend: Backend, deadline_s: Optional[float] = None, context_tokens: Optional[int] = None
    ) -> None:
        """Answer requests from now on.

        Args:
            backend: Who answers them.
            deadline_s: The most time of each; ``None`` for any.
            context_tokens: The most tokens of each, prompt and answer; ``None`` for as many as the model reads.
        """
        with self._lock:
            self._backend, self._deadline_s = backend, deadline_s
            self._context_tokens = context_tokens or self._language.context_tokens

    def close(self) -> None:
        """Refuse requests from now on; those that run end as the engine ends them."""
        with self._lock:
            self._backend = None

    def handle(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        name: Optional[str] = None,
        gone: Callable[[], bool] = lambda: False,
    ) -> Reply:
        """Answer one request.

        Args:
            method: ``GET`` or ``POST``.
            path: Its path, without a query.
            body: Its body.
            name: What the client calls it.
            gone: Whether the client has gone.

        Raises:
            ApiError: It cannot be answered.
            ClientGoneError: Nobody waits for the answer any more.
        """
        if path.startswith("/v1/models/") and method == "GET":
            self._check_model(path[len("/v1/models/") :])
            return _whole(models(self._model, self._created_s, self._context_tokens)[0])
        wanted = _ROUTES.get(path)
        if wanted is None:
            raise ApiError(404, f"there is nothing at {path[:80]}", code="not_found")
        if method != wanted:
            raise ApiError(405, f"{path} takes {wanted}, not {method}", code="method_not_allowed")
        if method == "GET":
            return self._get(path)
        value = read_json(body)
        if path == "/tokenize":
            return self._tokenize(value)
        if path == "/detokenize":
            return self._detokenize(value)
        request = read_chat(value) if path == "/v1/chat/completions" else read_completion(value)
        return self._generate(request, name, gone)

    def _get(self, path: str) -> Reply:
        if path == "/healthz":
            return _whole({"status": "ok", "model": self._model, "serving": self._backend is not None})
        if path == "/metrics":
            if self._metrics is None:
                raise ApiError(404, "this base station keeps no metrics", code="not_found")
            return Whole(200, CONTENT_TYPE, self._metrics().encode())
        if path == "/tokenizer_info":
            return _whole({**self._language.info(), "model_max_length": self._context_tokens})
        listed = models(self._model, self._created_s, self._context_tokens)
        return _whole({"object": "list", "data": listed})

    def _tokenize(self, value: Mapping[str, Any]) -> Reply:
        fields = Fields(value)
        text = fields.text("prompt")
        if text is None:
            raise fields.wrong("prompt", "expected a string")
        special = fields.raw("add_special_tokens") is None or fields.flag("add_special_tokens")
        self._check_model(fields.text("model") or self._model)
        fields.no_others()
        tokens = self._language.encode(text, special)
        limit = self._context_tokens
        return _whole({"tokens": tokens, "count": len(tokens), "max_model_len": limit})

    def _detokenize(self, value: Mapping[str, Any]) -> Reply:
        fields = Fields(value)
        tokens = fields.raw("tokens")
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            raise fields.wrong("tokens", "expected a list of token numbers")
        self._check_model(fields.text("model") or self._model)
        fields.no_others()
        return _whole({"prompt": self._language.decode(self._language.encode(tuple(tokens)), False)})

    def _check_model(self, name: str) -> None:
        if name != self._model:
            text = f"the model {name[:80]!r} is not served here; {self._model} is"
            raise ApiError(404, text, param="model", code="model_not_found")

    def _generate(self, request: GenerationRequest, name: Optional[str], gone: Callable[[], bool]) -> Reply:
        self._check_model(request.model)
        with self._lock:
            backend, deadline_s, most = self._backend, self._deadline_s, self._context_tokens
        if backend is None:
            raise not_serving()
        answers = [self._prepared(request, number, most) for number in range(max(1, len(request.prompts)))]
        asks = [self._ask(request, answer, deadline_s, most) for answer in answers]
        shape = Shape(
            chat=request.chat,
            identity=uuid.uuid4().hex,
            model=self._model,
            created_s=int(time.time()),
            spell=self._language.spell,
            scored=request.logprobs is not None,
            top=request.logprobs or 0,
            include_usage=request.include_usage,
        )
        answering = Answering(answers, self._language.stop_tokens)
        answering.submit(backend, asks, name)
        events = answering.events(gone, lambda: self._backend is backend, request.logprobs is not None)
        if not request.stream:
            return _whole(gathered(shape, answers, events))
        # What goes wrong before the first piece is there is still told by the status.
        first = next(events)
        return Stream(sent(shape, answers, first, events, events.close))

    def _prepared(self, request: GenerationRequest, index: int, most: int) -> Answer:
        """Read one prompt and check that it fits the context of ``most`` tokens."""
        language = self._language
        prompt = request.prompts[index] if request.prompts else ""
        if isinstance(prompt, str) and len(prompt) > most * MOST_CHARACTERS:
            text = f"{len(prompt)} characters are more than the {most} tokens that are read here"
            raise bad_request("prompt", text, "context_length_exceeded")
        tokens = language.chat(request.messages) if request.chat else language.encode(prompt)
        part = "messages" if request.chat else "prompt"
        if not tokens:
            raise bad_request(part, "the prompt has no tokens")
        wanted = 1 if request.max_tokens is None else request.max_tokens
        if len(tokens) + wanted > most:
            text = f"{most} tokens are read here at most; {len(tokens)} of the prompt and {wanted} to come are more"
            raise bad_request(part, text, "context_length_exceeded")
        whole = prompt if isinstance(prompt, str) else language.decode(tokens, False)
        # A completion goes on with the prompt's text; an answer to a chat is a text of its own.
        before = [] if request.chat else tail_of(tokens, language.decode)
        writer = Writer(language.decode, request.stop, len(whole), before)
        offsets: List[int] = []
        if request.echo and request.logprobs is not None:
            told = isinstance(prompt, str)
            offsets = language.offsets(whole) if told else offsets_of(tokens, language.spell, whole)
        return Answer(index, tokens, whole if request.echo else "", writer, offsets)

    def _ask(self, request: GenerationRequest, answer: Answer, deadline_s: Optional[float], most: int) -> Ask:
        tokens = answer.prompt
        fits = most - len(tokens)
        seed = secrets.randbits(63) if request.seed is None else request.seed & ((1 << 63) - 1)
        greedy = request.temperature == 0 or request.top_p == 0  # nothing but the likeliest token
        return Ask(
            id="",
            encode=lambda: tokens,
            max_new_tokens=fits if request.max_tokens is None else request.max_tokens,
            sampling=Sampling(seed=seed) if greedy else Sampling(request.temperature, request.top_p, seed),
            stop_tokens=self._language.stop_tokens,
            logprobs=request.logprobs,
            echo=request.echo and request.logprobs is not None,
            deadline_s=deadline_s,
        )


#: What there is, and how it is asked.
_ROUTES: Mapping[str, str] = {
    "/healthz": "GET",
    "/metrics": "GET",
    "/v1/models": "GET",
    "/v1/completions": "POST",
    "/v1/chat/completions": "POST",
    "/tokenizer_info": "GET",
    "/tokenize": "POST",
    "/detokenize": "POST",
}


def _whole(value: Any) -> Whole:
    return Whole(200, "application/json", json_bytes(value))
