"""The API under the Pythons of JetPack 5 and 6, where those interpreters exist: a board may be the base station."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

EXERCISE = """
import http.client, json, sys, threading
from payloads.wdmoe.bs.asks import Token
from payloads.wdmoe.serve import api, http as server, language, client
class Language:
    model, vocabulary, context_tokens, stop_tokens = "m", 257, 99, (256,)
    def encode(self, prompt, special=True): return list(prompt.encode()) if isinstance(prompt, str) else list(prompt)
    def decode(self, tokens, skip_special=True): return bytes(tokens).decode(errors="replace")
    def spell(self, token): return bytes([token])
    def info(self): return {}
class Engine:
    def submit(self, name, ask, sink):
        for token in [*b"Hello", 256]: sink.token(Token(token, 1, 1.0, 1.0, 1))
        sink.end("stop", "")
        return self
    def cancel(self, reason=""): pass
one = api.Api(Language()); one.open(Engine())
made = server.HttpServer(one, ("127.0.0.1", 0))
c = client.Client(made.url, "m", 5)
a = c.post("p1", "Hi"); assert a["error"] is None and a["ttft_ms"] > 0, a
conn = http.client.HTTPConnection(*made.address)
body = json.dumps({"model": "m", "prompt": "Hi"})
conn.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
assert json.loads(conn.getresponse().read().decode())["choices"][0]["text"] == "Hello"
conn.close(); c.close()
made.close()
assert not {"torch", "numpy", "transformers"} & set(sys.modules)
"""


@pytest.mark.parametrize("version", ["3.8", "3.10"])
def test_the_api_runs(version, old_python):
    done = subprocess.run(
        [old_python(version), "-B", "-W", "error", "-c", EXERCISE],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
