"""The engine behind the API: requests get names and records; the prompts of a trial may come through it, too."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import (
    IO,
    TYPE_CHECKING,
    Any,
    Callable,
    Collection,
    Dict,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
)

from payloads.wdmoe.bs.asks import Ask, Handle, Sink
from payloads.wdmoe.bs.engine import Engine
from payloads.wdmoe.bs.recording import Recording, RequestFailedError, Throughput
from payloads.wdmoe.bs.records import Records
from payloads.wdmoe.bs.spec import Prompt, Spec
from payloads.wdmoe.serve.answering import not_serving
from payloads.wdmoe.serve.api import Api
from payloads.wdmoe.serve.http import LIMITS, HttpServer
from payloads.wdmoe.serve.language import Language

if TYPE_CHECKING:
    from payloads.wdmoe.bs.at_work import AtWork

__all__ = ["Intake", "PostingClient", "explained", "serve", "through_api"]

#: What a serving's records hold at most, since they are kept in memory; what comes then is answered and not recorded.
MOST_ROWS = {"requests": 50_000, "tokens": 200_000}
MOST_DISPATCHES = 200_000
CLIENT_GOES_S = 5.0
TELL_S = 1.0
#: Decisions that are judged between two passes of a serving; more than a pass makes, one for each layer.
JUDGED_AT_ONCE = 100


class Intake:
    """Takes requests of the API: gives each its name, its records and its place in the engine.

    Attributes:
        taken: How many it has taken.
        running: How many of them have not ended.
        newest: The name of the last one.
        full: Whether the records are: what is taken from now on does not go there.
        unrecorded: How many did not.

    Args:
        engine: Who answers.
        records: Where they go.
        decode: Makes text of tokens; only called from the engine's thread.
        warmups: The names of those that are warm-ups.
        known: The names in the records of requests that clients call otherwise.
    """

    def __init__(
        self,
        engine: Engine,
        records: Records,
        decode: Callable[[List[int]], str],
        warmups: Collection[str] = (),
        known: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.taken = self.running = self.unrecorded = 0
        self.newest = ""
        self.full = False
        self._engine = engine
        self._records = records
        self._decode = decode
        self._warmups = frozenset(warmups)
        self._known = known
        self._lock = threading.RLock()  # a request that ends at once says so while it is taken
        self._closed = False
        self._names: Dict[str, int] = {}

    def submit(self, name: Optional[str], ask: Ask, sink: Sink) -> Handle:
        """Take a request; see :class:`payloads.wdmoe.serve.answering.Backend`.

        Raises:
            ApiError: It is closed.
        """
        if name is not None:
            name = self._known.get(name, name)
        with self._lock:
            if self._closed:
                raise not_serving()
            self.taken += 1
            self.running += 1
            own, recorded = f"r{self.taken:06d}", not self.full
            self.newest = named = self._own(name or own) if recorded else own
            self.unrecorded += not recorded
            counted: Sink = _Counted(sink, self._ended)
            if recorded:
                counted = Recording(self._records, named in self._warmups, self._decode, counted)
            return self._engine.submit(ask._replace(id=named), counted)

    def close(self) -> None:
        """Take nothing any more: what comes from now on would change records that are being written."""
        with self._lock:
            self._closed = True

    def _own(self, name: str) -> str:
        """Return a name that no other request has: a client may well use one twice."""
        number = self._names.get(name, 0) + 1
        self._names[name] = number
        return name if number == 1 else self._own(f"{name}.{number}")

    def _ended(self) -> None:
        with self._lock:
            self.running -= 1


class _Counted:
    """A sink that says when its request has ended."""

    def __init__(self, then: Sink, ended: Callable[[], None]) -> None:
        self.begun = then.begun
        self.prompt = then.prompt
        self.token = then.token
        self._then = then
        self._ended = ended

    def end(self, reason: str, message: str) -> None:
        """Hear that the request is over."""
        self._ended()
        self._then.end(reason, message)


class PostingClient:
    """A client in a process of its own that posts a trial's prompts to the API.

    Attributes:
        answers: What it saw of each answer so far, by the request's name.

    Args:
        url: Where the API is.
        token: What the API wants to be shown.
        model: The model's name.
        max_tokens: The most tokens of an answer.
        concurrency: How many prompts are in flight.
        rounds: The prompts; a round begins when the one before has been answered.
    """

    def __init__(
        self,
        url: str,
        token: str,
        model: str,
        max_tokens: int,
        concurrency: int,
        rounds: Sequence[Sequence[Prompt]],
    ) -> None:
        self._names = names_of(rounds)
        called = {name: alias for alias, name in self._names.items()}
        self.answers: Dict[str, Dict[str, Any]] = {}
        plan = {
            "url": url,
            "token": token,
            "model": model,
            "max_tokens": max_tokens,
            "concurrency": concurrency,
            "rounds": [
                [{"id": called[prompt.id], "text": prompt.text} for prompt in prompts] for prompts in rounds
            ],
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "payloads.wdmoe.serve.client"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=str(Path(__file__).resolve().parents[3]),
        )
        self._thread = threading.Thread(target=self._talk, args=(plan,), name="client", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether it has said all that it will."""
        return not self._thread.is_alive()

    def close(self) -> None:
        """End it, whatever it does."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(CLIENT_GOES_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join()

    def _talk(self, plan: Mapping[str, Any]) -> None:
        given, said = self._process.stdin, self._process.stdout
        assert given is not None
        assert said is not None
        try:
            given.write(json.dumps(plan).encode())
            given.close()
            self._hear(said)
        except (OSError, ValueError) as error:
            print(f"base_station: the client of the trial: {error}", file=sys.stderr, flush=True)
        finally:
            said.close()
            with suppress(OSError):
                given.close()

    def _hear(self, said: IO[bytes]) -> None:
        for line in said:
            answer = json.loads(line.decode())
            self.answers[self._names[answer["id"]]] = answer


def names_of(rounds: Sequence[Sequence[Prompt]]) -> Dict[str, str]:
    """Return the prompts' names by what the client calls them: names may hold what a header may not."""
    names = [prompt.id for prompts in rounds for prompt in prompts]
    return {f"q{number}": name for number, name in enumerate(names)}


def through_api(
    language: Language,
    decode: Callable[[List[int]], str],
    at: AtWork,
    spec: Spec,
    rounds: Tuple[Sequence[Prompt], Sequence[Prompt]],
    concurrency: int,
    asked: Callable[[str, int], None],
    check: Callable[[], None],
) -> Throughput:
    """Have a trial's prompts posted to the API by a client, over loopback, and add what the client saw to the records.

    Args:
        language: The model's tokenizer for the threads of the API.
        decode: Makes text of tokens for the records, in the engine's thread.
        at: The policy at work.
        spec: The run's specification.
        rounds: The warm-ups and the prompts.
        concurrency: How many are in flight.
        asked: Told of each request, with its name and how many have ended before.
        check: Called before every iteration; raises to stop.

    Raises:
        RequestFailedError: One of them could not be answered.
        Exception: What the engine raises.
    """
    warmups = {prompt.id for prompt in rounds[0]}
    intake = Intake(at.engine, at.work.records, decode, warmups, names_of(rounds))
    api = Api(language)
    # Nobody else's request may be among the trial's, and all of the trial's find a place.
    token = secrets.token_hex()
    limits = LIMITS._replace(connections=max(LIMITS.connections, 2 * concurrency))
    server = HttpServer(api, ("127.0.0.1", 0), token, limits)
    api.open(intake, spec.serving.request_deadline_s, at.engine.context_tokens)
    client = PostingClient(server.url, token, language.model, spec.max_new_tokens, concurrency, rounds)
    warm = bool(warmups)
    told = 0

    def until() -> bool:
        nonlocal warm, told
        if intake.taken > told:
            told = intake.taken
            asked(intake.newest, told - intake.running)
        # The client begins the prompts when it has all warm-ups, and no iteration is made of them before this.
        done_warming = warm and intake.taken - intake.running >= len(warmups)
        if done_warming or at.judging.due():
            at.judging.settle(warm)
            at.judging.forget()
            warm = warm and not done_warming
        return client.ended

    try:
        at.engine.run(until, check)
        at.judging.settle(warm)
    finally:
        client.close()
        api.close()
        intake.close()
        server.close()
    rows = at.work.records.tables["requests"]
    _add_clients_view(rows, client.answers, [prompt.id for prompts in rounds for prompt in prompts])
    return _throughput([row for row in rows if not row["warmup"]])


def _add_clients_view(
    rows: Sequence[Dict[str, Any]], answers: Mapping[str, Mapping[str, Any]], names: Sequence[str]
) -> None:
    """Add what the client saw to the requests.

    Raises:
        RequestFailedError: It saw one fail, or did not see one at all.
    """
    for name in names:
        seen = answers.get(name)
        if seen is None:
            raise RequestFailedError(f"request {name}: the client ended before it was answered")
        if seen["error"] is not None and seen["error"] != "deadline_exceeded":
            raise RequestFailedError(f"request {name}: the client was told: {seen['error']}")
    for row in rows:
        seen = answers[row["request"]]
        row["client_ttft_ms"], row["client_e2el_ms"] = seen["ttft_ms"], seen["e2el_ms"]


def _throughput(rows: Sequence[Mapping[str, Any]]) -> Throughput:
    """Return what came out, from the first request's submission to the last one's end."""
    begun_s = min(row["t_start_s"] for row in rows)
    ended_s = max(row["t_start_s"] + row["e2el_ms"] / 1e3 for row in rows)
    return Throughput(sum(row["output_tokens"] for row in rows), ended_s - begun_s)


def serve(
    api: Api,
    decode: Callable[[List[int]], str],
    at: AtWork,
    deadline_s: Optional[float],
    over: Callable[[], bool],
    tell: Callable[[int], None],
) -> Dict[str, Any]:
    """Answer requests of the API until that is over; those that are not answered then are given up.

    Args:
        api: The API.
        decode: Makes text of tokens for the records, in the engine's thread.
        at: The policy at work.
        deadline_s: The most time of each request; ``None`` for any.
        over: Whether it is over.
        tell: Told now and then how many requests were taken.

    Returns:
        ``requests_taken``; ``unrecorded``, how many ``requests`` and ``dispatches`` are not in the records; and
        ``unrecorded_bytes``, ``out`` and ``back``, of these dispatches by device.
    """
    intake = Intake(at.engine, at.work.records, decode)
    told, told_s = -1, 0.0
    unrecorded = 0
    left_out = {name: {"out": 0, "back": 0} for name in at.dispatcher.devices}

    def until() -> bool:
        nonlocal told, told_s, unrecorded
        if intake.taken != told and time.monotonic() - told_s >= TELL_S:
            told, told_s = intake.taken, time.monotonic()
            tell(told)
        if at.judging.due() or at.engine.load == (0, 0):
            at.judging.settle_some(JUDGED_AT_ONCE)
        rows, tables = at.dispatcher.booking.rows, at.work.records.tables
        if not intake.full and (
            len(rows) >= MOST_DISPATCHES or any(len(tables[name]) >= most for name, most in MOST_ROWS.items())
        ):
            intake.full = True
            at.judging.settle(False)
            at.dispatcher.decided = None
        if len(rows) > MOST_DISPATCHES:
            unrecorded += len(rows) - MOST_DISPATCHES
            for row in rows[MOST_DISPATCHES:]:
                left_out[row.device]["out"] += row.bytes_out
                left_out[row.device]["back"] += row.bytes_back
            del rows[MOST_DISPATCHES:]
        return over()

    api.open(intake, deadline_s, at.engine.context_tokens)
    try:
        at.engine.run(until, lambda: None)
    finally:
        api.close()
        intake.close()
        at.engine.close()
    at.judging.settle(False)
    return {
        "requests_taken": intake.taken,
        "unrecorded": {"requests": intake.unrecorded, "dispatches": unrecorded},
        "unrecorded_bytes": left_out,
    }


def explained(summary: Mapping[str, Any], served: Mapping[str, Any]) -> Dict[str, Any]:
    """Return a serving's summary: what is in no record is not control traffic for that.

    Args:
        summary: The summary of the records.
        served: What :func:`serve` returned.
    """
    left_out = served["unrecorded_bytes"]
    control = {
        device: {way: count - left_out.get(device, {}).get(way, 0) for way, count in ways.items()}
        for device, ways in summary["control_bytes"].items()
    }
    return {**summary, "control_bytes": control, **served}
