"""The client that everybody uses, unchanged."""

from __future__ import annotations

import asyncio

import pytest

from tests.payloads.serve.conftest import MODEL, wait_for

openai = pytest.importorskip("openai")


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=10) as made:
        yield made


def test_models(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "testbed"


def test_completions_in_one_and_in_pieces(client):
    body = {"model": MODEL, "prompt": "Hi", "max_tokens": 50, "temperature": 0, "stop": "ld", "logprobs": 1}
    whole = client.completions.create(**body)
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == ("Hello, wor", "stop")
    assert whole.choices[0].logprobs.tokens == list("Hello, wor")
    assert whole.usage.total_tokens == 2 + 12
    pieces = list(client.completions.create(**body, stream=True, stream_options={"include_usage": True}))
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == "Hello, wor"
    assert pieces[-1].usage == whole.usage


def test_chats_in_one_and_in_pieces(client):
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hi"}],
        "logprobs": True,
        "top_logprobs": 1,
    }
    whole = client.chat.completions.create(**body)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("Hello, world.", "stop")
    assert whole.choices[0].logprobs.content[0].top_logprobs[0].token == "A"
    pieces = list(client.chat.completions.create(**body, stream=True))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "Hello, world."
    assert pieces[-1].choices[0].finish_reason == "stop"


def test_errors_are_of_the_clients_own_kinds(client, script, api):
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        client.completions.create(model="gpt-5", prompt="Hi")
    with pytest.raises(openai.BadRequestError, match="n: not supported here") as caught:
        client.completions.create(model=MODEL, prompt="Hi", n=2)
    assert caught.value.param == "n"
    script.ends = ("failed", "device middle lost")
    with pytest.raises(openai.InternalServerError, match="device middle lost"):
        client.completions.create(model=MODEL, prompt="Hi")
    with pytest.raises(openai.APIError, match="device middle lost"):
        list(client.completions.create(model=MODEL, prompt="Hi", stream=True))
    api.close()
    with pytest.raises(openai.InternalServerError, match="serves nobody"):
        client.completions.create(model=MODEL, prompt="Hi")


def test_a_stream_that_is_closed_early_gives_the_request_up(client, script):
    script.gate.clear()
    with client.completions.create(model=MODEL, prompt="Hi", stream=True) as stream:
        assert next(iter(stream)).choices[0].text == "H"
    wait_for(lambda: script.seen[0].cancelled)
    assert script.seen[0].cancelled[0] == "abandoned"


def test_several_requests_at_once(server):
    async def everybody():
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            asked = [client.completions.create(model=MODEL, prompt="Hi", temperature=0) for _ in range(16)]
            return await asyncio.gather(*asked)

    assert {answer.choices[0].text for answer in asyncio.run(everybody())} == {"Hello, world."}
