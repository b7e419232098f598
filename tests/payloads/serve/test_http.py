"""The server itself: who may ask, what is too much, and that one client's mischief is no other's trouble."""

from __future__ import annotations

import collections
import http.client
import json
import random
import socket

import pytest

from payloads.wdmoe.serve.access import AccessError, is_plain_host, parse_address, read_token
from payloads.wdmoe.serve.http import HttpServer, Limits
from tests.payloads.serve.conftest import MODEL, wait_for

TOKEN = "a-token-of-some-length"
JSON = {"Content-Type": "application/json"}


def ask(server, method="GET", path="/healthz", body=None, headers=None):
    connection = http.client.HTTPConnection(*server.address, timeout=10)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def raw(server, data, *, read=True):
    """Send bytes; return all that comes back until the server closes."""
    with socket.create_connection(server.address, 10) as connection:
        connection.sendall(data)
        answer = b""
        while read:
            part = connection.recv(1 << 16)
            if not part:
                break
            answer += part
        return answer


def post(body: bytes, *lines: str, path: str = "/v1/completions") -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: localhost", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def completion(**body):
    return json.dumps({"model": MODEL, "prompt": "Hi", **body}).encode()


@pytest.fixture
def guarded(api):
    made = HttpServer(api, ("127.0.0.1", 0), TOKEN)
    yield made
    made.close()


def test_a_connection_answers_several_requests(server):
    connection = http.client.HTTPConnection(*server.address, timeout=10)
    for _ in range(3):
        connection.request("POST", "/v1/completions", completion(), JSON)
        answer = connection.getresponse()
        assert answer.status == 200
        assert json.loads(answer.read())["choices"][0]["text"] == "Hello, world."
    # A request that was wrong in itself ends nothing either.
    connection.request("GET", "/nowhere")
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["error"]["code"]) == (404, "not_found")
    connection.request("GET", "/healthz")
    assert connection.getresponse().status == 200
    connection.close()


def test_the_name_of_a_request_reaches_the_engine(server, script):
    ask(server, "POST", "/v1/completions", completion(), {**JSON, "X-Request-Id": "p1"})
    ask(server, "POST", "/v1/completions", completion(prompt=["a", "b"]), {**JSON, "X-Request-Id": "p2"})
    assert [one.name for one in script.seen] == ["p1", "p2-0", "p2-1"]
    status, _ = ask(server, "POST", "/v1/completions", completion(), {**JSON, "X-Request-Id": "../p"})
    assert (status, len(script.seen)) == (400, 3)


def test_a_stream_comes_in_chunks_and_to_an_old_client_until_the_end(server):
    new = raw(
        server,
        post(
            completion(stream=True),
            "Content-Type: application/json",
            f"Content-Length: {len(completion(stream=True))}",
            "Connection: close",
        ),
    )
    head, _, body = new.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head
    assert b"text/event-stream" in head
    assert body.endswith(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
    old = raw(
        server,
        post(
            completion(stream=True),
            "Content-Type: application/json",
            f"Content-Length: {len(completion(stream=True))}",
        ).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    )
    head, _, body = old.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_gives_its_request_up(server, script, stream):
    script.gate.clear()
    body = completion(stream=stream)
    raw(server, post(body, "Content-Type: application/json", f"Content-Length: {len(body)}"), read=False)
    wait_for(lambda: script.seen and script.seen[0].cancelled)
    assert script.seen[0].cancelled[0] == "abandoned"
    assert ask(server)[0] == 200


def test_the_token_is_asked_for_everywhere_but_for_the_health(guarded, script):
    assert ask(guarded)[0] == 200
    for headers in (
        {},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer "},
    ):
        status, body = ask(guarded, path="/v1/models", headers=headers)
        assert (status, body["error"]["code"]) == (401, "invalid_api_key")
        status, _ = ask(guarded, "POST", "/v1/completions", completion(), {**JSON, **headers})
        assert status == 401
    assert script.seen == []
    shown = {"Authorization": f"Bearer {TOKEN}"}
    assert ask(guarded, path="/v1/models", headers=shown)[0] == 200
    # With a token, a name of the user's own for the address is fine.
    assert ask(guarded, path="/v1/models", headers={**shown, "Host": "rack.example"})[0] == 200
    assert ask(guarded, "POST", "/v1/completions", completion(), {**JSON, **shown})[0] == 200


def test_without_a_token_only_loopback_is_served_and_only_by_address(api, server):
    with pytest.raises(AccessError, match="not a loopback address, so a token is needed"):
        HttpServer(api, ("0.0.0.0", 0))
    with pytest.raises(AccessError, match="cannot listen on"):
        HttpServer(api, server.address)
    status, body = ask(server, path="/v1/models", headers={"Host": "evil.example:8000"})
    assert (status, body["error"]["type"]) == (403, "permission_error")
    assert all(map(is_plain_host, ["127.0.0.1:8000", "localhost", "[::1]:8000", "10.0.0.1"]))
    assert not any(map(is_plain_host, ["localhost.evil.example", "127.0.0.1.evil.example", "[::1"]))


@pytest.mark.parametrize(
    ("lines", "body", "status"),
    [
        (["Content-Length: 2"], b"{}", 415),
        (["Content-Type: text/plain", "Content-Length: 2"], b"{}", 415),
        (["Content-Type: application/json"], b"", 411),
        (["Content-Type: application/json", "Transfer-Encoding: chunked"], b"2\r\n{}\r\n0\r\n\r\n", 411),
        (["Content-Type: application/json", "Content-Length: 2", "Content-Length: 3"], b"{}", 411),
        (["Content-Type: application/json", "Content-Length: -1"], b"", 400),
        (["Content-Type: application/json", "Content-Length: 4294967296"], b"", 413),
        (["Content-Type: application/json", "Content-Length: 0"], b"", 400),
        (["Content-Type: application/json", "Content-Length: 2"], b"[]", 400),
        (["X: " + "y" * 40_000], b"", 431),
        ([f"X-{n}: y" for n in range(200)], b"", 431),
    ],
)
def test_what_is_wrong_or_too_much_is_refused_and_the_next_one_is_served(server, lines, body, status):
    answer = raw(server, post(body, *lines, "Connection: close"))
    head, _, said = answer.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status, answer
    error = json.loads(said)["error"]
    assert error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert ask(server)[0] == 200


@pytest.mark.parametrize(
    "noise", [b"\x16\x03\x01\x02\x00\x01\x00", b"\0" * 100 + b"\r\n", b"GET / HTTP/9\r\n\r\n", b"X\r\n\r\n"]
)
def test_what_is_no_http_is_refused(server, noise):
    raw(server, noise + b"\r\n\r\n")
    assert ask(server)[0] == 200


def test_mutilated_requests_are_answered_or_dropped_and_never_a_mistake_of_ours(server, script, capsys):
    chance = random.Random(1)
    body = completion(stream=True, logprobs=2)
    whole = post(body, "Content-Type: application/json", f"Content-Length: {len(body)}", "Connection: close")
    statuses = collections.Counter()
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            place = chance.randrange(len(data))
            data[place : place + chance.choice([0, 1, 1, 5])] = bytes(
                chance.randrange(256) for _ in range(chance.choice([0, 1, 1, 3]))
            )
        with socket.create_connection(server.address, 10) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.makefile("rb").readline()
        statuses[answer.split()[1] if answer else b""] += 1
    assert statuses[b"400"] > 20
    assert not statuses[b"500"]
    assert "Error" not in capsys.readouterr().err
    assert ask(server)[0] == 200


def test_who_is_slow_is_not_waited_for(api, capsys):
    server = HttpServer(api, ("127.0.0.1", 0), limits=Limits(arrival_s=0.1))
    try:
        assert raw(server, b"POST /v1/comp") == b""
        assert raw(server, post(b"{", "Content-Type: application/json", "Content-Length: 100")) == b""
        assert raw(server, b"") == b""
        # Somebody in time is served; on a machine with other work it takes more than one try to be that.
        wait_for(lambda: raw(server, b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200"))
    finally:
        server.close()
    assert "Traceback" not in capsys.readouterr().err


def test_more_connections_than_there_are_places_are_told_so(api, script):
    server = HttpServer(api, ("127.0.0.1", 0), limits=Limits(connections=1))
    try:
        with socket.create_connection(server.address, 10) as first:
            first.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert first.recv(100).startswith(b"HTTP/1.1 200")
            refused = raw(server, b"")
            assert refused.startswith(b"HTTP/1.1 503")
            assert json.loads(refused.partition(b"\r\n\r\n")[2])["error"]["code"] == "busy"
        wait_for(lambda: raw(server, b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200"))
    finally:
        server.close()


def test_a_mistake_of_ours_is_told_without_its_words(server, script, capsys):
    script.submit = lambda *_: 1 / 0
    status, body = ask(server, "POST", "/v1/completions", completion(), JSON)
    assert (status, body["error"]["message"]) == (500, "the base station failed: ZeroDivisionError")
    assert "http: POST /v1/completions: ZeroDivisionError: division by zero" in capsys.readouterr().err
    assert ask(server)[0] == 200


def test_addresses_and_token_files(tmp_path):
    assert parse_address("127.0.0.1:8000") == ("127.0.0.1", 8000)
    assert parse_address("[::1]:0") == ("::1", 0)
    assert parse_address("localhost:80") == ("localhost", 80)
    for wrong in ("8000", "127.0.0.1", "host:80", "127.0.0.1:x", "127.0.0.1:70000", ":80"):
        with pytest.raises(ValueError, match="expected ADDRESS:PORT"):
            parse_address(wrong)
    file = tmp_path / "token"
    with pytest.raises(AccessError, match="cannot read the token file"):
        read_token(file)
    file.write_text(TOKEN + "\n")
    file.chmod(0o644)
    with pytest.raises(AccessError, match="others may read the token file"):
        read_token(file)
    file.chmod(0o600)
    assert read_token(file) == TOKEN
    for wrong in ("short", "two words of a token", "ü" * 20):
        file.write_text(wrong, encoding="utf-8")
        with pytest.raises(AccessError, match="expected one word of at least 16 characters"):
            read_token(file)
