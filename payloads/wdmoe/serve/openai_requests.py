"""Requests of the OpenAI API, read and checked. Pure: no tokenizer and no model."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple, Union

from payloads.wdmoe.serve.fields import Fields

__all__ = ["GenerationRequest", "Message", "Prompt", "read_chat", "read_completion"]

MAX_PROMPTS = 128
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_TOKENS = 1 << 20
MOST_LIKELY = 20  # as many likely tokens as come with each one
DEFAULT_MAX_TOKENS = 16  # of a completion, as the OpenAI API has it; a chat's answer may fill the context

#: Fields that say something about the client or its bill, and nothing about the answer.
_IGNORED = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})

#: A text, or the tokens of one.
Prompt = Union[str, Tuple[int, ...]]


class Message(NamedTuple):
    """One message of a chat.

    Attributes:
        role: Who said it: ``system``, ``user`` or ``assistant``.
        content: What was said.
    """

    role: str
    content: str


class GenerationRequest(NamedTuple):
    """What a client wants.

    Attributes:
        model: The model that it named.
        prompts: What is to be completed; empty for a chat.
        messages: The chat so far; empty for completions.
        max_tokens: The most tokens of each answer; ``None`` for as many as fit.
        temperature: 0 takes the most likely token.
        top_p: Only the most likely tokens are drawn from, as few as have this probability together.
        seed: What is drawn follows from it; ``None`` for any.
        stop: Texts that end an answer; they are no part of it.
        logprobs: How many likely tokens come with each one; ``None`` for no likelihoods at all.
        echo: Whether the prompt comes before its completion.
        stream: Whether the answer comes in pieces.
        include_usage: Whether a stream's last piece counts tokens.
    """

    model: str
    prompts: Tuple[Prompt, ...]
    messages: Tuple[Message, ...]
    max_tokens: Optional[int]
    temperature: float
    top_p: float
    seed: Optional[int]
    stop: Tuple[str, ...]
    logprobs: Optional[int]
    echo: bool
    stream: bool
    include_usage: bool

    @property
    def chat(self) -> bool:
        """Whether it is about a chat."""
        return bool(self.messages)


def read_completion(body: Mapping[str, Any]) -> GenerationRequest:
    """Read the body of ``POST /v1/completions``.

    Raises:
        ApiError: It is wrong, or asks for what is not done here.
    """
    fields = Fields(body)
    prompts = _prompts(fields)
    logprobs = fields.whole("logprobs", 0, MOST_LIKELY)
    max_tokens = fields.whole("max_tokens", 0, MAX_TOKENS)
    fields.only("best_of", 1)
    fields.only("suffix", "")
    request = GenerationRequest(
        prompts=prompts,
        messages=(),
        max_tokens=DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens,
        logprobs=logprobs,
        echo=fields.flag("echo"),
        **_common(fields),
    )
    if request.max_tokens == 0 and not request.echo:
        raise fields.wrong("max_tokens", "0 makes sense with `echo` only")
    return request


def read_chat(body: Mapping[str, Any]) -> GenerationRequest:
    """Read the body of ``POST /v1/chat/completions``.

    Raises:
        ApiError: It is wrong, or asks for what is not done here.
    """
    fields = Fields(body)
    messages = _messages(fields)
    wanted = [fields.whole(name, 1, MAX_TOKENS) for name in ("max_completion_tokens", "max_tokens")]
    top = fields.whole("top_logprobs", 0, MOST_LIKELY)
    scored = fields.flag("logprobs")
    if top is not None and not scored:
        raise fields.wrong("top_logprobs", "needs `logprobs`: true")
    for name, allowed in (("tools", []), ("functions", []), ("modalities", ["text"])):
        fields.only(name, allowed)
    fields.only("response_format", {"type": "text"})
    fields.only("tool_choice", "none", "auto")
    fields.only("parallel_tool_calls", True, False)
    return GenerationRequest(
        prompts=(),
        messages=messages,
        max_tokens=wanted[0] if wanted[0] is not None else wanted[1],
        logprobs=(top or 0) if scored else None,
        echo=False,
        **_common(fields),
    )


def _common(fields: Fields) -> Dict[str, Any]:
    """Read what both kinds of request have, and refuse what nobody has read."""
    model = fields.text("model")
    if model is None:
        raise fields.wrong("model", "is missing")
    stream = fields.flag("stream")
    options = fields.inner("stream_options")
    include_usage = False
    if options is not None:
        if not stream:
            raise fields.wrong("stream_options", "needs `stream`: true")
        include_usage = options.flag("include_usage")
        options.only("include_obfuscation", False)
        options.no_others()
    fields.only("n", 1)
    fields.only("logit_bias", {})
    fields.only("presence_penalty", 0)
    fields.only("frequency_penalty", 0)
    common = {
        "model": model,
        "temperature": fields.number("temperature", 0, 2, 1.0),
        "top_p": fields.number("top_p", 0, 1, 1.0),
        "seed": fields.whole("seed", -(1 << 63), (1 << 63) - 1),
        "stop": _stops(fields),
        "stream": stream,
        "include_usage": include_usage,
    }
    fields.no_others(_IGNORED)
    return common


def _prompts(fields: Fields) -> Tuple[Prompt, ...]:
    value = fields.raw("prompt")
    expected = "expected a string, a list of token numbers, or a list of either"
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise fields.wrong("prompt", f"{expected}, not empty")
    if _are_tokens(value):
        return (tuple(value),)
    if len(value) > MAX_PROMPTS:
        raise fields.wrong("prompt", f"at most {MAX_PROMPTS} prompts in one request, got {len(value)}")
    prompts: List[Prompt] = []
    for one in value:
        if isinstance(one, str):
            prompts.append(one)
        elif isinstance(one, list) and one and _are_tokens(one):
            prompts.append(tuple(one))
        else:
            raise fields.wrong("prompt", expected)
    return tuple(prompts)


def _are_tokens(value: List[Any]) -> bool:
    return all(isinstance(one, int) and not isinstance(one, bool) for one in value)


def _stops(fields: Fields) -> Tuple[str, ...]:
    value = fields.raw("stop")
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise fields.wrong("stop", f"expected a string or a list of at most {MAX_STOPS}")
    if not all(isinstance(one, str) and 0 < len(one) <= MAX_STOP_CHARACTERS for one in stops):
        raise fields.wrong("stop", f"expected texts of 1 to {MAX_STOP_CHARACTERS} characters")
    return tuple(dict.fromkeys(stops))


def _messages(fields: Fields) -> Tuple[Message, ...]:
    value = fields.raw("messages")
    if not isinstance(value, list) or not value:
        raise fields.wrong("messages", "expected a list of messages, not empty")
    return tuple(_message(fields, number, one) for number, one in enumerate(value))


def _message(fields: Fields, number: int, value: Any) -> Message:
    name = f"messages[{number}]"
    if not isinstance(value, dict):
        raise fields.wrong(name, "expected an object with `role` and `content`")
    role = value.get("role")
    if role == "developer":  # the newer name of the same
        role = "system"
    if role not in ("system", "user", "assistant"):
        raise fields.wrong(f"{name}.role", "expected system, developer, user or assistant")
    content = value.get("content")
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text":
                raise fields.wrong(f"{name}.content", "only parts of the type `text` are understood")
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise fields.wrong(f"{name}.content", "expected a string or a list of text parts")
    if value.get("tool_calls"):
        raise fields.wrong(f"{name}.tool_calls", "not supported here")
    return Message(str(role), content)
