"""A synthetic run of a base station that answers several requests at once, and loses a device now and then.

Made up here by a small model and written through the real writer; nothing of it was measured. Prompts are read in
pieces between the decoding steps of the requests under way, as an engine with continuous batching does it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from testbed.records import RecordWriter, write_manifest

Maker = Callable[..., Path]
DEVICES = {"agx-orin": 0.9, "orin-nx": 1.5, "orin-nano": 2.1}
LAYERS, PIECE, EACH = 3, 8, 2
POLICIES = {"replicas": "{kind: replica, then: drop}", "drop": "{kind: drop}"}
CONCURRENCY = {"one": 1, "two": 2, "four": 4}
CAMPAIGN = """# synthetic: only for tests
campaign: served
dtype: bfloat16
experts: int8
repeats: {repeats}
prompts: {{file: prompts.jsonl, prefill_chunk_tokens: 8}}
policies:
  - {{name: replicas, selection: {{kind: top_k, k: 2}}, on_loss: {{kind: replica, then: drop}}}}
  - {{name: drop, selection: {{kind: top_k, k: 2}}, on_loss: {{kind: drop}}, activations: int8}}
scenarios:
  - {{name: one, links: {{}}}}
  - {{name: two, links: {{}}, concurrency: 2}}
  - {{name: four, links: {{}}, concurrency: 4}}
"""
AWAY = range(8, 20)
"""The passes of a trial of the second repeat without orin-nano, which is lost in layer 1 of the first of them."""


class _Request:
    def __init__(self, name: str, prompt: int, start_s: float) -> None:
        self.name, self.prompt, self.start_s = name, prompt, start_s
        self.read, self.made, self.last_s = 0, 0, start_s
        self.first_s = start_s
        self.pairs = [0, 0, 0]


class ServedRun:
    """Makes one run.

    Args:
        folder: The run's folder.
        repeats: Repeats of each policy and scenario.
        prompts: Prompts of a trial; the first is for warming up.
        tokens: Generated tokens of a prompt.
        losses: Whether a device is lost in the second repeat of each policy and scenario.
        seed: What the devices' times follow from.
    """

    def __init__(
        self,
        folder: Path,
        *,
        repeats: int = 2,
        prompts: int = 6,
        tokens: int = 5,
        losses: bool = True,
        seed: int = 5,
    ) -> None:
        self.folder, self.repeats, self.prompts, self.tokens = folder, repeats, prompts, tokens
        self.losses = losses
        self.random = random.Random(seed)
        self.writer = RecordWriter(folder)
        self.now = 4.0

    def make(self) -> Path:
        number = 0
        for repeat in range(self.repeats):
            for policy in POLICIES:
                for scenario in CONCURRENCY:
                    number += 1
                    self.trial(f"t{number:03d}", number, policy, scenario, repeat)
        hosts: dict[str, Any] = {"bs": {"role": "base_station"}}
        hosts |= {name: {"role": "device"} for name in DEVICES}
        manifest = {
            "run": self.folder.name,
            "state": "completed",
            "started_unix": 1_760_000_000.0,
            "campaign": CAMPAIGN.format(repeats=self.repeats),
            "campaign_name": "served",
            "inventory": {"lab": "synthetic", "hosts": hosts},
            "model": {"name": "tiny-mixtral", "weights": "int8", "layers": LAYERS},
            "links": {"shaping": "none"},
            "security": "tls",
            "emulated": True,
        }
        write_manifest(self.folder, manifest)
        return self.folder

    def trial(self, name: str, order: int, policy: str, scenario: str, repeat: int) -> None:
        self.begun_s, self.name, self.policy = self.now, name, policy
        self.rows: dict[str, list[dict[str, Any]]] = {
            table: [] for table in ("requests", "tokens", "dispatches", "events")
        }
        self.iteration, self.troubled = 0, self.losses and repeat == 1
        self.answer([("p0", 11)], 1, warmup=True)
        rest = [(f"p{number}", 9 + 2 * number) for number in range(1, self.prompts)]
        self.answer(rest, CONCURRENCY[scenario], warmup=False)
        row = {"trial": name, "order": order, "policy": policy, "scenario": scenario, "repeat": repeat}
        row |= {"concurrency": CONCURRENCY[scenario], "state": "completed"}
        row |= {"t_start_s": self.begun_s, "t_end_s": self.now}
        self.writer.write_trial(row, self.rows)
        self.now += 0.8

    def answer(self, waiting: list[tuple[str, int]], most: int, *, warmup: bool) -> None:
        """Answer prompts, so many at once; a piece of a prompt and a decoding step take turns."""
        waiting, active, done = list(waiting), [], []
        while waiting or active:
            while waiting and len(active) < most:
                active.append(_Request(*waiting.pop(0), self.now))
            reading = next((one for one in active if one.read < one.prompt), None)
            if reading is not None:
                piece = min(PIECE, reading.prompt - reading.read)
                reading.read += piece
                self.one_pass([reading], piece)
                if reading.read == reading.prompt:
                    self.token(reading)
            decoding = [one for one in active if 0 < one.made < self.tokens]
            if decoding:
                self.one_pass(decoding, 1)
                for one in decoding:
                    self.token(one)
            done += [one for one in active if one.made == self.tokens]
            active = [one for one in active if one.made < self.tokens]
        for one in done:
            self.rows["requests"].append(
                {"trial": self.name, "request": one.name, "warmup": warmup, "prompt_tokens": one.prompt}
                | {"output_tokens": one.made, "t_start_s": one.start_s, "finish": "length"}
                | {"ttft_ms": (one.first_s - one.start_s) * 1e3, "e2el_ms": (one.last_s - one.start_s) * 1e3}
            )

    def one_pass(self, requests: list[_Request], rows: int) -> None:
        """Take one or several requests through all layers."""
        number, self.iteration = self.iteration, self.iteration + 1
        several = len(requests) > 1
        whose = {"request": None, "step": None} if several else {"request": requests[0].name}
        whose |= {} if several else {"step": requests[0].made}
        total = rows * len(requests)
        away = self.troubled and number in AWAY
        for layer in range(LAYERS):
            self.now += (0.4 + 0.03 * total) / 1e3
            send, ends = self.now, []
            gone = away and not (number == AWAY.start and layer == 0)
            for device, slow_ms in DEVICES.items():
                if gone and device == "orin-nano":
                    continue
                received = send + (0.2 + 0.02 * total) / 1e3
                replied = received + slow_ms * (1 + 0.15 * total) * self.random.uniform(0.97, 1.03) / 1e3
                ends.append(replied + (0.2 + 0.02 * total) / 1e3)
                stamps = {"t_send_s": send, "t_received_s": received, "t_started_s": received}
                stamps |= {"t_computed_s": replied, "t_replied_s": replied, "t_done_s": ends[-1]}
                counts = {
                    "tokens": total,
                    "assignments": total,
                    "dropped": 0,
                    "bytes_out": 64,
                    "bytes_back": 64,
                }
                self.rows["dispatches"].append(
                    {"trial": self.name, **whose, "layer": layer, "device": device, "iteration": number}
                    | {"batch": len(requests), **counts, **stamps}
                )
            self.now = max(ends)
            if away and number == AWAY.start and layer == 1:
                self.now += 0.05
                self.event("lost", whose, layer, "the connection was closed")
                self.event("rerouted" if self.policy == "replicas" else "dropped", whose, layer)
            for one in requests:
                one.pairs[0] += EACH * rows
                if gone:
                    one.pairs[2 if self.policy == "replicas" else 1] += rows
        if self.troubled and number == AWAY.stop:
            self.event("readmitted", {}, None, "as many experts as before")

    def event(self, event: str, whose: dict[str, Any], layer: int | None, detail: str = "") -> None:
        row = {"t_s": self.now, "trial": self.name, **whose, "layer": layer, "device": "orin-nano"}
        self.rows["events"].append(row | {"event": event, "detail": detail})

    def token(self, one: _Request) -> None:
        self.rows["tokens"].append(
            {"trial": self.name, "request": one.name, "position": one.made, "iteration": self.iteration - 1}
            | {"token": 7, "t_s": self.now, "duration_ms": (self.now - one.last_s) * 1e3, "bs_ms": 1.0}
            | dict(zip(("wanted", "lost", "rerouted"), one.pairs, strict=True))
        )
        one.pairs = [0, 0, 0]
        one.made += 1
        one.last_s = self.now
        if one.made == 1:
            one.first_s = self.now


@pytest.fixture(scope="session")
def make_served(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Make such a run: options of :class:`ServedRun`."""

    def make(name: str = "served-0001", **options: object) -> Path:
        return ServedRun(tmp_path_factory.mktemp("results") / name, **options).make()  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def served(make_served: Maker) -> Path:
    """A completed run of two repeats; in the second a device is lost for a while."""
    return make_served()
