"""The API in front of a real engine and real workers: what clients get, and what the records say of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from payloads.station.control import Control
from payloads.wdmoe.bs.asks import Ask
from payloads.wdmoe.bs.kv_cache import _SlotLayer
from payloads.wdmoe.bs.recording import Judging, RequestFailedError
from payloads.wdmoe.bs.records import Records
from payloads.wdmoe.bs.serving import Intake, PostingClient
from payloads.wdmoe.bs.spec import read_spec
from payloads.wdmoe.bs.station import Station
from payloads.wdmoe.serve import client as posting
from payloads.wdmoe.serve.api import Api
from payloads.wdmoe.serve.errors import ApiError
from payloads.wdmoe.serve.http import HttpServer
from payloads.wire.clock import BSClock
from tests.ports import kept_port
from tests.runtime.conftest import TEXT, Lab

openai = pytest.importorskip("openai")
PROMPT = TEXT[:60]


class Served:
    """A station that serves in a thread of its own."""

    def __init__(self, lab: Lab, station: Station, concurrency: int, **changes: Any) -> None:
        path = lab.write_spec(**changes)
        self.folder = path.parent / "serve-001"
        self.over = threading.Event()
        self.told: list[int] = []
        self.result: dict[str, Any] = {}
        self.api = Api(station.language())
        self.server = HttpServer(self.api, ("127.0.0.1", 0))
        asked = (
            read_spec(path),
            "top-2",
            "serve-001",
            concurrency,
            self.api,
            self.over.is_set,
            self.told.append,
        )
        self._thread = threading.Thread(target=lambda: self.result.update(station.serve(*asked)))
        self._thread.start()

    def end(self) -> dict[str, list[dict[str, Any]]]:
        """End it; return the records."""
        self.over.set()
        self._thread.join(30)
        self.server.close()
        assert self.result, "it failed: see above"
        return {
            file.stem: [json.loads(line) for line in file.read_text().splitlines()]
            for file in self.folder.glob("*.jsonl")
        }


@contextmanager
def served(lab: Lab, concurrency: int = 1, **changes: Any) -> Iterator[tuple[Any, Served]]:
    one = Served(lab, lab.station(), concurrency, **changes)
    try:
        with openai.OpenAI(base_url=one.server.url, api_key="none", max_retries=0, timeout=30) as client:
            deadline = time.monotonic() + 30
            while one.api._backend is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield client, one
    finally:
        if not one.over.is_set():
            one.end()


def complete(client: Any, prompt: Any = PROMPT, **options: Any) -> Any:
    asked = {"model": "small", "prompt": prompt, "max_tokens": 5, "temperature": 0, **options}
    return client.completions.create(**asked)


def test_clients_get_what_a_trial_gets_alone_and_together(make_lab):
    lab = make_lab()
    _, _, texts = lab.run(lab.station())
    expected = {"p1": texts[1], "p2": texts[2]}
    prompts = {"p1": TEXT[:60], "p2": TEXT[40:90]}

    with served(lab, concurrency=4) as (client, one):
        alone = {name: complete(client, prompt).choices[0].text for name, prompt in prompts.items()}
        assert alone == expected
        with ThreadPoolExecutor(6) as pool:
            asked = [("p1", "p2")[number % 2] for number in range(6)]
            headers = [{"X-Request-Id": f"{name}-{number}"} for number, name in enumerate(asked)]
            answers = list(
                pool.map(lambda n, h: complete(client, prompts[n], extra_headers=h), asked, headers)
            )
        assert [answer.choices[0].text for answer in answers] == [expected[name] for name in asked]
        pieces = list(complete(client, stream=True))
        assert "".join(piece.choices[0].text for piece in pieces) == expected["p1"]
        stopped = complete(client, stop=expected["p1"][2:4], max_tokens=400)
        assert stopped.choices[0].text == expected["p1"][:2]
        first = complete(client, temperature=1.0, seed=5, max_tokens=8).choices[0].text
        assert complete(client, temperature=1.0, seed=5, max_tokens=8).choices[0].text == first
        tables = one.end()

    requests = {row["request"]: row for row in tables["requests"]}
    assert len(requests) == one.result["requests_taken"] == 2 + 6 + 1 + 1 + 2
    assert {f"{name}-{number}" for number, name in enumerate(asked)} <= set(requests)
    finishes = [row["finish"] for row in tables["requests"]]
    assert finishes.count("stop") == 1
    assert set(finishes) == {"length", "stop"}
    assert not any(row["warmup"] for row in tables["requests"])
    for name, row in requests.items():
        tokens = [token for token in tables["tokens"] if token["request"] == name]
        assert len(tokens) == row["output_tokens"]
    assert max(row["batch"] for row in tables["dispatches"]) > 1
    assert one.result["rows"]["dispatches"] == len(tables["dispatches"]) > 0
    assert one.result["unrecorded"] == {"requests": 0, "dispatches": 0}
    assert sum(row["dropped"] for row in tables["selection"]) == 0


def test_the_likelihoods_are_the_models_own(make_lab, checkpoints):
    with served(make_lab()) as (client, _):
        answer = complete(client, prompt=[5, 9, 100, 7, 3, 8], max_tokens=1, echo=True, logprobs=3)
        said = answer.choices[0].logprobs
        prompt_only = client.completions.create(
            model="small", prompt=[5, 9, 100, 7, 3, 8], max_tokens=0, echo=True, logprobs=1
        )
    model = AutoModelForCausalLM.from_pretrained(checkpoints["published"], dtype=torch.float32)
    with torch.inference_mode():
        scores = model(input_ids=torch.tensor([[5, 9, 100, 7, 3, 8]])).logits[0].log_softmax(-1)
    expected = [float(scores[place, token]) for place, token in enumerate([9, 100, 7, 3, 8])]
    assert said.token_logprobs[0] is None
    assert said.token_logprobs[1:6] == pytest.approx(expected, abs=1e-4)
    assert said.token_logprobs[6] == pytest.approx(float(scores[-1].max()), abs=1e-4)
    assert len(said.tokens) == 7
    best = [float(row.max()) for row in scores]
    assert [max(top.values()) for top in said.top_logprobs[1:]] == pytest.approx(best, abs=1e-4)
    assert prompt_only.choices[0].logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)
    assert prompt_only.usage.completion_tokens == 0


def test_a_lost_device_fails_its_requests_and_not_the_service(make_lab):
    lab = make_lab()
    with served(lab) as (client, one):
        complete(client)
        lab.workers["middle"].stop()
        with pytest.raises(openai.InternalServerError, match="device middle lost"):
            complete(client)
        assert client.models.list().data[0].id == "small"
        tables = one.end()
    assert [row["finish"] for row in tables["requests"]] == ["length", "failed"]
    assert "middle" in {row["device"] for row in tables["events"]}


def test_memory_that_is_not_had_fails_a_request_and_not_the_service(make_lab, monkeypatch):
    def roomy(layer, held, like):
        if layer._cache.length > 400:
            return torch.zeros(1 << 50)
        return room(layer, held, like)

    room = _SlotLayer._roomy
    monkeypatch.setattr(_SlotLayer, "_roomy", roomy)
    with served(make_lab()) as (client, one):
        with pytest.raises(openai.InternalServerError, match="the base station is short of memory: "):
            complete(client, [5] * 420)
        assert complete(client).usage.completion_tokens == 5
        tables = one.end()
    assert [row["finish"] for row in tables["requests"]] == ["failed", "length"]
    assert tables["events"] == []


@pytest.mark.parametrize("kind", ["fail", "drop"])
def test_a_device_that_restarts_while_nobody_asks_costs_no_request_anything(make_lab, kind):
    lab = make_lab()

    def happened(what):
        return (
            f'testbed_device_events_total{{device="middle",event="{what}"}} 1'
            in lab.stations[0].metrics.text()
        )

    with kept_port() as place:
        lab.restart("middle", place.getsockname()[1])  # where it comes back, too
        with served(lab, loss={"top-2": {"kind": kind}}) as (client, one):
            before = complete(client).choices[0].text
            lab.restart("middle", place.getsockname()[1])
            deadline = time.monotonic() + 30
            while not happened("readmitted"):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert happened("lost")
            assert complete(client).choices[0].text == before
            tables = one.end()
    assert [(row["event"], row["device"], row["request"]) for row in tables["events"]] == [
        ("lost", "middle", None),
        ("readmitted", "middle", None),
    ]
    assert [row["finish"] for row in tables["requests"]] == ["length", "length"]
    assert not any(row["lost"] for row in tables["tokens"])


def test_a_request_has_its_time(make_lab):
    serving = {"request_deadline_s": 0.001}
    with served(make_lab(), serving=serving) as (client, one):
        with pytest.raises(openai.InternalServerError, match="is up") as caught:
            complete(client, max_tokens=200)
        assert caught.value.code == "deadline_exceeded"
        tables = one.end()
    assert [row["finish"] for row in tables["requests"]] == ["deadline"]


def test_full_records_end_and_the_service_does_not(make_lab, monkeypatch):
    monkeypatch.setattr("payloads.wdmoe.bs.serving.MOST_DISPATCHES", 20)
    monkeypatch.setattr("payloads.station.devices.PINGS_MOST", 12)  # few bytes beside those that are left out
    with served(make_lab()) as (client, one):
        texts = {complete(client, max_tokens=8).choices[0].text for _ in range(3)}
        tables = one.end()
    assert len(texts) == 1
    assert len(tables["dispatches"]) == 20
    assert [row["request"] for row in tables["requests"]] == ["r000001"]
    assert (one.result["requests_taken"], one.result["unrecorded"]["requests"]) == (3, 2)
    assert one.result["unrecorded"]["dispatches"] > 20
    # Handshakes, pings and descriptions, as in any trial: not what was left out.
    assert all(
        0 < count < 3000 for device in one.result["control_bytes"].values() for count in device.values()
    )
    assert min(ways["out"] for ways in one.result["unrecorded_bytes"].values()) > 0


def test_what_is_under_way_at_the_end_is_given_up_and_recorded(make_lab):
    with served(make_lab()) as (client, one):
        stream = iter(complete(client, max_tokens=400, stream=True))
        next(stream)
        tables = one.end()
        with pytest.raises(openai.APIError):
            list(stream)
    (row,) = tables["requests"]
    assert (row["finish"], 0 < row["output_tokens"] < 400) == ("abandoned", True)


@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_trials_prompts_may_come_through_the_api(make_lab, concurrency, monkeypatch):
    refused = []

    class Meddled(PostingClient):
        def __init__(self, url, *others):
            with pytest.raises(openai.AuthenticationError) as caught:  # nobody else's request is in the trial
                openai.OpenAI(base_url=url, api_key="none", max_retries=0).completions.create(
                    model="small", prompt="x"
                )
            refused.append(caught.value.status_code)
            super().__init__(url, *others)

    monkeypatch.setattr("payloads.wdmoe.bs.serving.PostingClient", Meddled)
    lab = make_lab()
    station = lab.station()
    _, plain, texts = lab.run(station)
    trials = [{"trial": "t001", "policy": "top-2", "concurrency": concurrency}]
    # A name that no header may have.
    prompts = [{"id": "p1", "text": TEXT[:60]}, {"id": "p 2\n\N{SNOWMAN}", "text": TEXT[40:90]}]
    path = lab.write_spec(serving={"through": "api"}, trials=trials, prompts=prompts)
    steps = []
    result = station.trial(read_spec(path), "t001", lambda *step: steps.append(step), lambda: None)
    rows = [json.loads(line) for line in (path.parent / "t001" / "requests.jsonl").read_text().splitlines()]
    assert {row["request"]: row["text"] for row in rows} == dict(
        zip(["warmup-0-p1", "p1", prompts[1]["id"]], texts, strict=True)
    )
    assert [row["request"] for row in rows if row["warmup"]] == ["warmup-0-p1"]
    for row in rows:
        assert 0 < row["ttft_ms"] < row["e2el_ms"] < row["client_e2el_ms"]
        assert 0 < row["client_ttft_ms"] < row["client_e2el_ms"]
    assert refused == [401]
    assert (steps[0][1], steps[-1]) == (3, (3, 3, "records"))
    assert result["output_tokens"] == sum(row["output_tokens"] for row in rows if not row["warmup"])
    assert result["output_tokens_per_s"] > 0
    if concurrency == 1:
        dispatches = (path.parent / "t001" / "dispatches.jsonl").read_text().splitlines()
        assert len(dispatches) == len(plain)


def test_a_trial_through_the_api_fails_with_what_the_client_was_told(make_lab):
    lab = make_lab()
    path = lab.write_spec(
        serving={"through": "api"}, warmup_prompts=0, prompts=[{"id": "long", "text": "words " * 600}]
    )
    with pytest.raises(
        RequestFailedError, match="request long: the client was told: context_length_exceeded"
    ):
        lab.station().trial(read_spec(path), "t001", lambda *_: None, lambda: None)


def test_the_client_says_what_went_wrong_when_nobody_answers(capsys):
    with kept_port() as nobody:
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
        plan = {"url": url, "model": "m", "max_tokens": 1, "concurrency": 2}
        posting.post_all({**plan, "rounds": [[{"id": "a", "text": "x"}]]}, posting.sys.stdout)
    answer = json.loads(capsys.readouterr().out)
    assert answer["ttft_ms"] is None
    assert answer["error"].startswith("ConnectionRefusedError")


def test_what_comes_when_the_records_are_written_is_refused():
    asked, sinks = Ask("", lambda: [1], 1), []
    engine = SimpleNamespace(submit=lambda ask, sink: sinks.append((ask.id, sink)))
    intake = Intake(engine, Records("t", BSClock()), lambda _: "")
    intake.submit("mine", asked, SimpleNamespace(begun=None, prompt=None, token=None))
    intake.close()
    with pytest.raises(ApiError, match="serves nobody") as caught:
        intake.submit("late", asked, SimpleNamespace())
    assert caught.value.status == 503
    assert ([name for name, _ in sinks], intake.taken, intake.running) == (["mine"], 1, 1)


def test_decisions_are_judged_in_time_however_long_their_prompts_are(monkeypatch):
    monkeypatch.setattr("payloads.wdmoe.bs.recording.MOST_DECIDED", 5)
    monkeypatch.setattr("payloads.wdmoe.bs.recording.MOST_DECIDED_TOKENS", 100)
    dispatcher, judged = SimpleNamespace(decided=None), []
    judging = Judging(SimpleNamespace(add=lambda *one: judged.append(one)), dispatcher)

    def decide(tokens):
        dispatcher.decided.append(SimpleNamespace(routing=SimpleNamespace(index=[0] * tokens)))
        return judging.due()

    assert [decide(tokens) for tokens in (1, 60, 39, 1)] == [False, False, False, True]
    judging.settle(False)
    judging.forget()
    assert len(judged) == 4
    assert [decide(tokens) for tokens in (50, 2, 3, 4, 5, 6)] == [False] * 5 + [True]
    judged.clear()
    kept = list(dispatcher.decided)
    judging.settle_some(2)
    assert [(one, after) for one, _, after in judged] == [(kept[0], kept[1]), (kept[1], kept[2])]
    assert dispatcher.decided == kept[2:]
    assert [decide(40), decide(40), decide(1)] == [
        False,
        True,
        True,
    ]  # 18 tokens were left, then too many decisions
    judging.settle_some(100)
    assert (dispatcher.decided, len(judged), judging.due()) == ([], 9, False)
    dispatcher.decided = None  # nobody wants them any more
    judging.settle_some(100)
    assert not judging.due()


def test_only_a_serving_can_be_stopped(tmp_path):
    from tests.payloads.station.test_control import _ask

    control = Control(tmp_path / "bs.sock", lambda: {})
    jobs = []
    try:
        stop = b'{"do": "stop"}'
        assert json.loads(_ask(control.path, stop)) == {"error": "the base station serves nobody"}
        waiting = threading.Thread(
            target=lambda: jobs.append(_ask(control.path, b'{"do": "serve", "policy": "p"}'))
        )
        waiting.start()
        job = control.next_job()
        assert not job.over
        assert json.loads(_ask(control.path, stop)) == {"result": {"stopping": "serve p"}}
        assert job.over
        control.done()
        job.end({"result": {}})
        waiting.join(10)
        assert jobs == [b'{"result":{}}\n']
    finally:
        control.close()
