"""Posts prompts to the API as any client does, several at a time, and says how long each answer took.

    python -m payloads.wdmoe.serve.client < plan.json

The plan has ``url``, ``token``, ``model``, ``max_tokens``, ``concurrency``, and ``rounds``: lists of
``{"id": ..., "text": ...}``. A round begins when the one before has been answered. A line of JSON is printed for each
answer.
"""

from __future__ import annotations

import http.client
import json
import queue
import sys
import threading
import time
from typing import Any, Dict, Iterator, Mapping, Optional, Sequence, TextIO
from urllib.parse import urlsplit

__all__ = ["Client", "main", "post_all"]

TIMEOUT_S = 3600.0  # the base station has deadlines of its own


class Client:
    """One connection to the API.

    Args:
        url: Where it is, such as ``http://127.0.0.1:8000/v1``.
        model: The model's name.
        max_tokens: The most tokens of an answer.
        token: What it wants to be shown; ``None`` for nothing.
    """

    def __init__(self, url: str, model: str, max_tokens: int, token: Optional[str] = None) -> None:
        parts = urlsplit(url)
        self._path = parts.path.rstrip("/") + "/completions"
        self._connection = http.client.HTTPConnection(
            str(parts.hostname), parts.port or 80, timeout=TIMEOUT_S
        )
        self._shown = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._model = model
        self._max_tokens = max_tokens

    def post(self, name: str, text: str) -> Dict[str, Any]:
        """Post a prompt and read the stream of its answer.

        Returns:
            ``id``; ``ttft_ms``, until the first piece of text (``None`` where none came); ``e2el_ms``, until the last
            piece; ``error``, the error's code, or what went wrong in words (``None`` where nothing did).
        """
        body = {
            "model": self._model,
            "prompt": text,
            "max_tokens": self._max_tokens,
            "temperature": 0,
            "stream": True,
        }
        headers = {"Content-Type": "application/json", "X-Request-Id": name, **self._shown}
        begun_ns = time.monotonic_ns()
        first_ns: Optional[int] = None
        last_ns = begun_ns
        error: Optional[str] = None
        try:
            self._connection.request("POST", self._path, json.dumps(body), headers)
            response = self._connection.getresponse()
            if response.status != 200:
                error = _error(json.loads(response.read().decode()))
            else:
                for event in _events(response):
                    last_ns = time.monotonic_ns()
                    if "error" in event:
                        error = _error(event)
                    elif first_ns is None:
                        first_ns = last_ns
        except (OSError, ValueError, http.client.HTTPException) as problem:
            error = f"{type(problem).__name__}: {problem}"
            self._connection.close()
        return {
            "id": name,
            "ttft_ms": None if first_ns is None else (first_ns - begun_ns) / 1e6,
            "e2el_ms": (last_ns - begun_ns) / 1e6,
            "error": error,
        }

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def post_all(plan: Mapping[str, Any], out: TextIO) -> None:
    """Post all prompts of a plan; write a line for each answer."""
    writing = threading.Lock()
    for prompts in plan["rounds"]:
        left: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        for prompt in prompts:
            left.put(prompt)
        count = min(int(plan["concurrency"]), len(prompts))
        threads = [threading.Thread(target=_work, args=(plan, left, out, writing)) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _work(
    plan: Mapping[str, Any], left: queue.SimpleQueue[Mapping[str, Any]], out: TextIO, writing: threading.Lock
) -> None:
    """Post one prompt after the other until none is left."""
    client = Client(str(plan["url"]), str(plan["model"]), int(plan["max_tokens"]), plan.get("token"))
    while True:
        try:
            prompt = left.get_nowait()
        except queue.Empty:
            break
        answer = client.post(str(prompt["id"]), str(prompt["text"]))
        with writing:
            out.write(json.dumps(answer) + "\n")
            out.flush()
    client.close()


def _events(response: http.client.HTTPResponse) -> Iterator[Dict[str, Any]]:
    """Yield the events of a stream that say something."""
    for line in response:
        if line.startswith(b"data: {"):
            yield json.loads(line[len(b"data: ") :].decode())


def _error(value: Mapping[str, Any]) -> str:
    error = value["error"]
    return str(error.get("code") or error.get("message"))


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Post what standard input asks for; return the exit status."""
    post_all(json.load(sys.stdin), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
