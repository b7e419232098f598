"""What clients may ask for, and how a wrong request is told."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.wdmoe.serve.errors import ApiError
from payloads.wdmoe.serve.fields import read_json
from payloads.wdmoe.serve.openai_requests import Message, read_chat, read_completion


def test_a_completion_has_the_defaults_of_the_openai_api():
    request = read_completion({"model": "m", "prompt": "Hi"})
    assert request.prompts == ("Hi",)
    assert (request.max_tokens, request.temperature, request.top_p) == (16, 1.0, 1.0)
    assert (request.seed, request.stop, request.logprobs) == (None, (), None)
    assert not any((request.echo, request.stream, request.include_usage, request.chat))


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ("a",)),
        ("", ("",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
        (["a", [3]], ("a", (3,))),
    ],
)
def test_prompts_are_texts_or_tokens(prompt, prompts):
    assert read_completion({"model": "m", "prompt": prompt}).prompts == prompts


def test_what_asks_for_nothing_is_taken():
    body = {
        "model": "m",
        "prompt": "Hi",
        "n": 1,
        "best_of": 1,
        "suffix": None,
        "logit_bias": {},
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "user": "me",
        "stop": None,
        "seed": -1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request = read_completion(body)
    assert (request.stream, request.include_usage, request.seed) == (True, True, -1)


@pytest.mark.parametrize(
    ("changes", "param", "problem"),
    [
        ({"model": None}, "model", "is missing"),
        ({"model": 3}, "model", "expected a string, got 3"),
        ({"prompt": None}, "prompt", "expected a string, a list of token numbers"),
        ({"prompt": []}, "prompt", "not empty"),
        ({"prompt": [[]]}, "prompt", "expected a string"),
        ({"prompt": [True]}, "prompt", "expected a string"),
        ({"prompt": [["a"]]}, "prompt", "expected a string"),
        ({"prompt": ["a"] * 129}, "prompt", "at most 128 prompts"),
        ({"max_tokens": -1}, "max_tokens", "expected a whole number from 0"),
        ({"max_tokens": 1.5}, "max_tokens", "expected a whole number"),
        ({"max_tokens": True}, "max_tokens", "expected a whole number"),
        ({"max_tokens": 0}, "max_tokens", "0 makes sense with `echo` only"),
        ({"temperature": 2.1}, "temperature", "expected a number from 0 to 2, got 2.1"),
        ({"temperature": "hot"}, "temperature", "expected a number"),
        ({"top_p": -0.1}, "top_p", "expected a number"),
        ({"logprobs": 21}, "logprobs", "expected a whole number from 0 to 20"),
        ({"n": 2}, "n", "not supported here; leave it out or let it be 1"),
        ({"best_of": 2}, "best_of", "not supported"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"frequency_penalty": 1}, "frequency_penalty", "not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"stop": [""]}, "stop", "expected texts of 1 to 256 characters"),
        ({"stop": ["x"] * 17}, "stop", "a list of at most 16"),
        ({"stop": 5}, "stop", "expected a string or a list"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs `stream`: true"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unrecognised field"),
        ({"stream": "yes"}, "stream", "expected true or false"),
        ({"top_k": 5}, "top_k", "unrecognised field"),
    ],
)
def test_a_wrong_completion_is_told_by_its_field(changes, param, problem):
    with pytest.raises(ApiError) as caught:
        read_completion({"model": "m", "prompt": "Hi", **changes})
    assert (caught.value.status, caught.value.param) == (400, param)
    assert caught.value.message.startswith(f"{param}: ")
    assert problem in caught.value.message


def test_a_chat_is_read_with_its_newer_names():
    body = {
        "model": "m",
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "you"}]},
        ],
        "max_completion_tokens": 7,
        "max_tokens": 9,
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": {"type": "text"},
        "tools": [],
    }
    request = read_chat(body)
    assert request.messages == (Message("system", "Be brief."), Message("user", "Hi you"))
    assert (request.max_tokens, request.logprobs, request.chat) == (7, 2, True)
    assert read_chat({"model": "m", "messages": body["messages"]}).max_tokens is None


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"echo": True}, "echo"),
    ],
)
def test_a_wrong_chat_is_told_by_its_field(changes, param):
    with pytest.raises(ApiError) as caught:
        read_chat({"model": "m", "messages": [{"role": "user", "content": "Hi"}], **changes})
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b'{"temperature": NaN}',
        b'{"a": Infinity}',
        b'{"seed": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body):
    with pytest.raises(ApiError) as caught:
        read_json(body)
    assert caught.value.status == 400
    assert len(caught.value.message) < 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable, max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = [
    *(
        "model",
        "prompt",
        "messages",
        "max_tokens",
        "temperature",
        "top_p",
        "seed",
        "stop",
        "logprobs",
        "echo",
    ),
    *("stream", "stream_options", "n", "tools", "top_logprobs", "response_format", "max_completion_tokens"),
]


@given(st.dictionaries(st.sampled_from(NAMES), JSON), st.booleans())
def test_whatever_is_asked_it_is_a_request_or_an_error_of_the_client(body, chat):
    """What comes over the wire was JSON: floats are finite."""
    body = {"model": "m", "prompt": "x", "messages": [{"role": "user", "content": "x"}], **body}
    del body["messages" if not chat else "prompt"]
    try:
        request = (read_chat if chat else read_completion)(body)
    except ApiError as error:
        refused = error
    else:
        refused = None
    if refused is not None:
        assert refused.status == 400
        json.dumps(refused.as_json())
        return
    assert request.model == body["model"]
    assert 0 <= request.temperature <= 2
    assert request.prompts or request.messages
