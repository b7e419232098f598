"""Routes, answers in one and in pieces, and what becomes of them when something goes wrong. No sockets."""

from __future__ import annotations

import json

import pytest

from payloads.wdmoe.serve.answering import ClientGoneError
from payloads.wdmoe.serve.api import Api, Stream
from payloads.wdmoe.serve.errors import ApiError
from tests.payloads.serve.conftest import END, MODEL, Bytes


def post(api, path, body, **options):
    return api.handle("POST", path, json.dumps({"model": MODEL, **body}).encode(), **options)


def complete(api, **body):
    return json.loads(post(api, "/v1/completions", {"temperature": 0, "max_tokens": 50, **body}).body)


def events(reply):
    assert isinstance(reply, Stream)
    lines = b"".join(reply.events).decode().split("\n\n")
    assert lines.pop() == ""
    assert all(line.startswith("data: ") for line in lines)
    data = [line[len("data: ") :] for line in lines]
    return [json.loads(text) for text in data[:-1]], data[-1]


def test_a_completion_in_one(api, script):
    answer = complete(api, prompt="Hi")
    assert answer["object"] == "text_completion"
    assert answer["model"] == MODEL
    assert answer["choices"] == [
        {"index": 0, "text": "Hello, world.", "logprobs": None, "finish_reason": "stop"}
    ]
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 14, "total_tokens": 16}
    ask = script.seen[0].ask
    assert (ask.encode(), ask.max_new_tokens, ask.stop_tokens) == ([*b"Hi"], 50, (END,))
    assert (ask.sampling.temperature, ask.logprobs, ask.echo) == (0, None, False)
    assert script.seen[0].cancelled == []


def test_the_length_ends_an_answer_and_a_seed_reaches_the_engine(api, script):
    answer = complete(api, prompt="Hi", max_tokens=4, temperature=0.5, top_p=0.9, seed=7)
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("Hell", "length")
    assert tuple(script.seen[0].ask.sampling) == (0.5, 0.9, 7)
    complete(api, prompt="Hi", temperature=0.5)
    complete(api, prompt="Hi", temperature=0.5)
    assert script.seen[1].ask.sampling.seed != script.seen[2].ask.sampling.seed
    complete(api, prompt="Hi", temperature=1, top_p=0)
    assert script.seen[3].ask.sampling.temperature == 0


def test_a_text_that_ends_the_answer_is_no_part_of_it_and_the_engine_is_told(api, script):
    answer = complete(api, prompt="Hi", stop=[" wor"], logprobs=0)
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("Hello,", "stop")
    assert script.seen[0].cancelled == ["stop"]
    assert choice["logprobs"]["tokens"] == list("Hello,")
    assert answer["usage"]["completion_tokens"] == len("Hello, wor")


def test_several_prompts_have_an_answer_each_in_their_order(api, script):
    script.says = lambda prompt: [*reversed(prompt), END]
    answer = complete(api, prompt=["ab", [99, 100], "é"])
    assert [choice["text"] for choice in answer["choices"]][:2] == ["ba", "dc"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["prompt_tokens"] == 6


def test_an_echo_with_likelihoods_has_the_prompts_tokens_first(api):
    answer = complete(api, prompt="AéB", max_tokens=1, echo=True, logprobs=1)
    choice = answer["choices"][0]
    assert choice["text"] == "AéBH"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["A", "bytes:\\xc3", "bytes:\\xa9", "B", "H"]
    assert logprobs["text_offset"] == [0, 1, 1, 2, 3]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    # The likeliest token, and the one that is there.
    assert logprobs["top_logprobs"][3] == {"A": -0.5, "B": pytest.approx(-3.066)}
    assert logprobs["token_logprobs"][3] == pytest.approx(-3.066)
    assert complete(api, prompt="AB", max_tokens=0, echo=True, logprobs=1)["choices"][0]["text"] == "AB"


def test_an_echo_without_likelihoods_asks_the_engine_for_none(api, script):
    assert complete(api, prompt="AB", max_tokens=2, echo=True)["choices"][0]["text"] == "ABHe"
    assert not script.seen[0].ask.echo


def test_a_stream_gives_the_same_in_pieces(api):
    whole = complete(api, prompt="Hi", logprobs=2, stop="ld", echo=True)
    body = {
        "prompt": "Hi", "logprobs": 2, "stop": "ld", "echo": True, "temperature": 0, "max_tokens": 50,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    pieces, last = events(post(api, "/v1/completions", body))
    assert last == "[DONE]"
    assert pieces[-1]["choices"] == []
    assert pieces[-1]["usage"] == whole["usage"]
    assert all(piece["usage"] is None for piece in pieces[:-1])
    choices = [piece["choices"][0] for piece in pieces[:-1]]
    assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"] == "HiHello, wor"
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    for key, value in whole["choices"][0]["logprobs"].items():
        assert [e for choice in choices if choice["logprobs"] for e in choice["logprobs"][key]] == value
    assert len({piece["id"] for piece in pieces}) == 1


def test_a_chat_in_one_and_in_pieces(api, script):
    body = {"messages": [{"role": "user", "content": "Hi"}], "logprobs": True, "top_logprobs": 1}
    answer = json.loads(post(api, "/v1/chat/completions", body).body)
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {
        "role": "assistant",
        "content": "Hello, world.",
        "refusal": None,
    }
    first = answer["choices"][0]["logprobs"]["content"][0]
    assert (first["token"], first["bytes"]) == ("H", [72])
    assert first["top_logprobs"] == [{"token": "A", "logprob": -0.5, "bytes": [65]}]
    assert bytes(script.seen[0].ask.encode()) == b"user: Hi\nassistant: "
    # Where no length is given, the answer may fill the context.
    assert script.seen[0].ask.max_new_tokens == 128 - len("user: Hi\nassistant: ")
    pieces, last = events(post(api, "/v1/chat/completions", {**body, "stream": True}))
    assert last == "[DONE]"
    deltas = [piece["choices"][0]["delta"] for piece in pieces]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "Hello, world."
    assert pieces[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_model_without_a_template_says_so(script):
    api = Api(Bytes(template=False))
    api.open(script)
    with pytest.raises(ApiError, match="no chat template") as caught:
        post(api, "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]})
    assert caught.value.status == 400


def test_what_does_not_fit_is_told_before_the_engine_hears_of_it(api, script):
    for body, code in (
        ({"prompt": "x" * 120, "max_tokens": 9}, "context_length_exceeded"),
        ({"prompt": ["ok", "x" * 200]}, "context_length_exceeded"),
        ({"prompt": "x" * 30_000}, "context_length_exceeded"),
        ({"prompt": ""}, None),
        ({"prompt": [300]}, None),
    ):
        with pytest.raises(ApiError) as caught:
            post(api, "/v1/completions", body)
        assert (caught.value.status, caught.value.code) == (400, code)
    with pytest.raises(ApiError, match="is not served here; small is") as caught:
        post(api, "/v1/completions", {"model": "gpt-5", "prompt": "x"})
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    assert script.seen == []
    assert complete(api, prompt="x" * 120, max_tokens=8)["choices"][0]["text"] == "Hello, w"


def test_a_smaller_context_than_the_models_is_told_and_kept(script):
    api = Api(Bytes())
    api.open(script, context_tokens=20)
    (model,) = json.loads(api.handle("GET", "/v1/models").body)["data"]
    told = [model, json.loads(api.handle("GET", f"/v1/models/{MODEL}").body)]
    told.append(json.loads(post(api, "/tokenize", {"prompt": "ab"}).body))
    assert [one["max_model_len"] for one in told] == [20] * 3
    assert json.loads(api.handle("GET", "/tokenizer_info").body)["model_max_length"] == 20
    with pytest.raises(ApiError, match="20 tokens are read here at most") as caught:
        complete(api, prompt="x" * 13, max_tokens=8)
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")
    post(api, "/v1/chat/completions", {"messages": [{"role": "user", "content": ""}]})
    assert [one.ask.max_new_tokens for one in script.seen] == [20 - len("user: \nassistant: ")]


@pytest.mark.parametrize(
    ("end", "status", "code"),
    [
        (("failed", "device middle lost"), 500, "request_failed"),
        (("deadline", ""), 504, "deadline_exceeded"),
        (("abandoned", ""), 503, "request_abandoned"),
    ],
)
def test_a_request_that_fails_is_an_error_in_one_and_in_the_middle_of_a_stream(
    api, script, end, status, code
):
    script.ends = end
    with pytest.raises(ApiError) as caught:
        complete(api, prompt="Hi")
    assert (caught.value.status, caught.value.code) == (status, code)
    assert end[1] in caught.value.message
    pieces, last = events(post(api, "/v1/completions", {"prompt": "Hi", "stream": True}))
    assert json.loads(last)["error"]["code"] == code
    assert all(piece["choices"][0]["finish_reason"] is None for piece in pieces)


def test_when_one_of_several_fails_the_others_are_given_up(api, script):
    script.gate.clear()
    script.fails = {b"bad"}
    with pytest.raises(ApiError, match="it cannot be"):
        complete(api, prompt=["good", "bad"])
    assert [one.cancelled for one in script.seen if one.ask.encode() == [*b"good"]] == [["abandoned"]]


def test_a_client_that_goes_is_noticed_while_nothing_comes(api, script):
    script.gate.clear()
    with pytest.raises(ClientGoneError):
        post(api, "/v1/completions", {"prompt": "Hi"}, gone=lambda: True)
    assert script.seen[0].cancelled == ["abandoned"]
    stream = post(api, "/v1/completions", {"prompt": "Hi", "stream": True})
    next(stream.events)
    stream.events.close()
    assert script.seen[1].cancelled == ["abandoned"]


def test_nobody_is_served_before_it_opens_and_after_it_closes(script):
    api = Api(Bytes())
    with pytest.raises(ApiError, match="serves nobody") as caught:
        complete(api, prompt="Hi")
    assert (caught.value.status, caught.value.code) == (503, "not_serving")
    assert not json.loads(api.handle("GET", "/healthz").body)["serving"]
    api.open(script, deadline_s=3.5)
    assert json.loads(api.handle("GET", "/healthz").body)["serving"]
    complete(api, prompt="Hi")
    assert script.seen[0].ask.deadline_s == 3.5
    script.gate.clear()
    stream = post(api, "/v1/completions", {"prompt": "Hi", "stream": True})
    next(stream.events)
    api.close()
    # The engine never ends it: the request does, all the same.
    assert b"not_serving" in b"".join(stream.events)


def test_models_tokens_and_metrics(api):
    listed = json.loads(api.handle("GET", "/v1/models").body)
    assert [model["id"] for model in listed["data"]] == [MODEL]
    assert listed["data"][0]["max_model_len"] == 128
    assert json.loads(api.handle("GET", f"/v1/models/{MODEL}").body) == listed["data"][0]
    assert api.handle("GET", "/metrics").body == b"up 1\n"
    tokens = json.loads(post(api, "/tokenize", {"prompt": "ab", "add_special_tokens": False}).body)
    assert tokens == {"tokens": [97, 98], "count": 2, "max_model_len": 128}
    assert json.loads(post(api, "/detokenize", {"tokens": [97, 98]}).body) == {"prompt": "ab"}
    assert json.loads(api.handle("GET", "/tokenizer_info").body)["eos_token"] == "<end>"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/v1/completions", 405),
        ("POST", "/v1/models", 405),
        ("POST", "/tokenize", 400),
    ],
)
def test_a_wrong_path_or_method_is_told(api, method, path, status):
    with pytest.raises(ApiError) as caught:
        api.handle(method, path, b"{}")
    assert caught.value.status == status
