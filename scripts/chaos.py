#!/usr/bin/env python3
"""Lose devices in the middle of generation, in a seeded order, and see that what was promised is kept.

    sudo python scripts/chaos.py [--policy replica] [--events 50] [--seed 1] [--json]

Workers run as processes, each in a network namespace of its own; the base station runs here. Every event has a trial
of its own: at a random pass through the model a random device is killed (and started again, as a supervisor would),
restarted, stopped (SIGSTOP, later SIGCONT), or its link is cut without a word for five seconds. Then is looked at:

- that every request ended, as the policy says, and within the time that the policy allows;
- that its text is that of the undisturbed model: all of it where nothing was dropped, else up to the first token that
  lost an expert;
- that what happened to the device is in the records, and that nothing else is.

Exit status 1 if a promise was not kept.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from chaos_rack import BACK_S, CUT_S, DEAD_S, EVENTS, PORT, ROOT, STOP_S, Disturbance, Far, prove, rack

from payloads.wdmoe.bs.loss import KINDS, LossPolicy
from payloads.wdmoe.bs.spec import read_spec
from payloads.wdmoe.bs.station import Station, lay_out_model
from payloads.wdmoe.latency import DeviceSpeed, LatencyModel
from payloads.wdmoe.pace import ExpertShape
from payloads.wire.channel import DeviceError
from testbed.artifacts.manifest import load_manifest
from testbed.artifacts.shard import shard_model
from testbed.placement.place import wanted_list

MODEL = ROOT / "payloads" / "models" / "tiny-mixtral"
PROMPTS = (
    "It is a truth universally acknowledged, that",
    "In the beginning God created",
    "There was no",
    "She said",
)
MAX_NEW_TOKENS = 32


class Broken(NamedTuple):
    """A promise that was not kept.

    Attributes:
        trial: The trial.
        text: What was found.
    """

    trial: str
    text: str


class Chaos:
    """The devices, the base station, and what was found."""

    def __init__(self, home: Path, devices: list[Far], settings: dict[str, Any], copies: int) -> None:
        self.home, self.devices, self.settings = home, devices, settings
        self.policy = LossPolicy.of(settings)
        self.broken: list[Broken] = []
        self.longest_s = 0.0
        self.longest_token_s = 0.0
        self.away_s: list[float] = []
        self.events: Counter[str] = Counter()
        self.unasked = self.late_others = self.tokens = self.lost = self.rerouted = self.requests = (
            self.failed
        ) = 0
        manifest = load_manifest(home / "manifest.json")
        names = [device.name for device in devices]
        placement = [
            [
                [names[(layer + expert + copy) % len(names)] for copy in range(copies)]
                for expert in range(manifest.experts_per_layer)
            ]
            for layer in range(manifest.layers)
        ]
        for name in names:
            wanted = wanted_list(manifest, placement, name, "float32")
            (home / f"{name}.json").write_text(json.dumps(wanted))
        named = {str(n): {str(e): held for e, held in enumerate(row)} for n, row in enumerate(placement)}
        hosts = [{"name": one.name, "address": one.address, "port": PORT} for one in devices]
        (home / "devices.json").write_text(json.dumps({"devices": hosts, "placement": named}))
        shape = ExpertShape(manifest.hidden_size, manifest.intermediate_size, 4)
        self.latency = LatencyModel(
            tuple(names), shape, (DeviceSpeed(5e9, 5e9, None),) * len(names)
        ).as_json()
        self.credentials = prove(home, devices)

    def connect(self) -> None:
        """Load the model and find out what it says undisturbed, and how fast."""
        folder = lay_out_model(self.home / "manifest.json")
        self.station = Station(folder, self.home / "devices.json", self.credentials, "float32")
        self.trial("warm", 2, None)
        begun_s = time.monotonic()
        tables = self.trial("undisturbed", len(PROMPTS), None)
        self.prompt_s = (time.monotonic() - begun_s) / len(PROMPTS)
        self.texts = {row["request"]: tokens_of(tables, row["request"]) for row in tables["requests"]}

    def trial(
        self, name: str, prompts: int, disturbance: Disturbance | None
    ) -> dict[str, list[dict[str, Any]]]:
        """Run a trial; return its tables."""
        folder = self.home / "run"
        folder.mkdir(exist_ok=True)
        spec = {
            "run": "chaos",
            "model": "tiny-mixtral",
            "max_new_tokens": MAX_NEW_TOKENS,
            "warmup_prompts": 0,
            "prompts": [{"id": f"p{n}", "text": PROMPTS[n % len(PROMPTS)]} for n in range(prompts)],
            "policies": {"all": {"kind": "top_k", "k": 2}},
            "latency": self.latency,
            "loss": {"all": self.settings},
            "trials": [{"trial": name, "policy": "all"}],
        }
        (folder / "spec.json").write_text(json.dumps(spec))
        check = (lambda: None) if disturbance is None else disturbance.tick
        written = folder / name
        try:
            self.station.trial(read_spec(folder / "spec.json"), name, lambda *_: None, check)
        except DeviceError as error:
            written = folder / f"{name}.failed"
            if not written.exists():
                raise SystemExit(f"trial {name} did not begin: {error}") from error
            self.failed += 1
        tables = {}
        for path in written.glob("*.jsonl"):
            tables[path.stem] = [json.loads(line) for line in path.read_text().splitlines()]
        shutil.rmtree(written)
        return tables

    def disturb(self, number: int, disturbance: Disturbance) -> None:
        """Run one trial with an event in it, and look at what came of it."""
        outage_s = {"cut": CUT_S, "stop": STOP_S}.get(disturbance.kind, DEAD_S + 4.0)
        # So long that the device comes back before the end; what waits takes its time anyway.
        share = 0.0 if self.policy.kind in ("wait", "fail") else outage_s + 2.0
        prompts = len(PROMPTS) + round(share / self.prompt_s)
        name = f"t{number:03d}"
        tables = self.trial(name, prompts, disturbance)
        ended_s = time.monotonic()
        disturbance.finish()
        for text in self._judged(tables, disturbance, prompts, ended_s):
            self.broken.append(Broken(name, f"{disturbance.kind} of {disturbance.device.name}: {text}"))

    def _judged(
        self, tables: dict[str, list[dict[str, Any]]], disturbance: Disturbance, prompts: int, ended_s: float
    ) -> Iterator[str]:
        """Return what is wrong."""
        mine = disturbance.device.name
        self.events.update(row["event"] for row in tables["events"])
        # On a busy machine another device may be late, too; its loss is borne like any other.
        self.late_others += sum(
            row["event"] == "deadline" for row in tables["events"] if row["device"] != mine
        )
        strange = [
            row for row in tables["events"] if row["device"] != mine and row["event"] in ("lost", "refused")
        ]
        if strange:
            yield f"an undisturbed device was lost: {strange[0]}"
        events = [row for row in tables["events"] if row["device"] == mine]
        kinds = [row["event"] for row in events]
        if not kinds and self._unasked(tables, disturbance):
            self.unasked += 1  # with replicas nobody may need it, and what is silent then is not missed
            kinds = ["deadline", "readmitted"]
        if not kinds or kinds[0] not in ("lost", "deadline"):
            yield f"the records do not begin with its loss: {kinds}"
        if self.policy.kind == "fail":
            if kinds[-1:] != ["failed"] or "requests" in tables:
                yield f"the trial did not fail: {kinds}"
            return
        if "requests" not in tables:
            yield f"the trial failed: {events[-1:]}"
            return
        self.away_s += [float(row["detail"].split()[2]) for row in events if row["event"] == "readmitted"]
        if "readmitted" not in kinds and ended_s > disturbance.mended_s + BACK_S:
            yield "it was not re-admitted"
        self.requests += len(tables["requests"])
        if len(tables["requests"]) != prompts:
            yield f"{len(tables['requests'])} of {prompts} requests ended"
        allowed_s = 10 * self.prompt_s + 2 * self.policy.deadline_s(0.1)
        allowed_s += self.policy.wait_s if "wait" in (self.policy.kind, self.policy.then) else 0.0
        for row in tables["requests"]:
            self.longest_s = max(self.longest_s, row["e2el_ms"] / 1e3)
            if row["finish"] not in ("stop", "length"):
                yield f"request {row['request']} ended as {row['finish']}"
            if row["e2el_ms"] > 1e3 * allowed_s:
                yield f"request {row['request']} took {row['e2el_ms']:.0f} ms, more than {allowed_s:.1f} s"
            yield from self._compared(tables, row["request"])

    def _unasked(self, tables: dict[str, list[dict[str, Any]]], disturbance: Disturbance) -> bool:
        """Return whether a device that was only silent was asked nothing, or too late to be late."""
        if disturbance.kind not in ("stop", "cut"):
            return False
        unix_s = self.station.clock.unix_s
        begun_s, mended_s = (unix_s(round(t * 1e9)) for t in (disturbance.begun_s, disturbance.mended_s))
        last_s = mended_s - self.policy.deadline_s(0.0)
        sent_s = (row["t_send_s"] for row in tables["dispatches"] if row["device"] == disturbance.device.name)
        return not any(begun_s <= t_s <= last_s for t_s in sent_s)

    def _compared(self, tables: dict[str, list[dict[str, Any]]], request: str) -> Iterator[str]:
        """Compare a request's tokens with the undisturbed model's."""
        rows = [row for row in tables["tokens"] if row["request"] == request]
        self.tokens += len(rows)
        self.lost += sum(row["lost"] for row in rows)
        self.rerouted += sum(row["rerouted"] for row in rows)
        self.longest_token_s = max(self.longest_token_s, *(row["duration_ms"] / 1e3 for row in rows))
        expected = self.texts[f"p{int(request[1:]) % len(PROMPTS)}"]
        got = [row["token"] for row in rows]
        spoilt = next((number for number, row in enumerate(rows) if row["lost"]), None)
        if spoilt is not None and self.policy.kind != "drop":
            yield f"request {request} lost {rows[spoilt]['lost']} pairs"
        if got[:spoilt] != expected[:spoilt]:
            yield f"request {request} has a wrong token"


def tokens_of(tables: dict[str, list[dict[str, Any]]], request: str) -> list[int]:
    """Return a request's tokens."""
    return [row["token"] for row in tables["tokens"] if row["request"] == request]


def main() -> int:
    """Disturb a rack, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--policy", choices=KINDS, default="replica", help="what is done when a device is lost"
    )
    parser.add_argument("--events", type=int, default=50, help="how many events")
    parser.add_argument("--kinds", default=",".join(EVENTS), help="of what kinds")
    parser.add_argument("--devices", type=int, default=4, help="how many devices")
    parser.add_argument("--seed", type=int, default=1, help="of their order")
    parser.add_argument("--security", choices=["tls", "plain"], default="tls", help="of the data plane")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    if options.events < 1 or not 2 <= options.devices <= 16 or set(kinds) - set(EVENTS):
        parser.error(f"expected --events above 0, --devices from 2 to 16, --kinds of {','.join(EVENTS)}")
    if os.geteuid() != 0:
        print("chaos: network namespaces need root", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no namespace stays behind
    torch.set_num_threads(1)
    settings: dict[str, Any] = {"kind": options.policy, "deadline_floor_ms": 1000}
    if options.policy == "replica":
        settings["then"] = "wait"
    order = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        home = Path(folder)
        shard_model(MODEL, home)
        with rack(home, options.devices, options.security) as devices:
            chaos = Chaos(home, devices, settings, 2 if options.policy == "replica" else 1)
            for device in devices:
                device.start()
            for device in devices:
                device.wait_ready()
            chaos.connect()
            chaos.failed = 0
            try:
                for number in range(options.events):
                    passes = order.randrange(len(PROMPTS) * MAX_NEW_TOKENS - 8)
                    one = Disturbance(order.choice(kinds), order.choice(devices), passes)
                    if not options.json:
                        print(f"{number + 1:3d} {one.kind:8s} {one.device.name} at pass {passes}", flush=True)
                    chaos.disturb(number, one)
            finally:
                chaos.station.close()
    report(chaos, options)
    return 1 if chaos.broken else 0


def report(chaos: Chaos, options: argparse.Namespace) -> None:
    """Print what came of it."""
    found = {
        "policy": options.policy,
        "security": options.security,
        "events": options.events,
        "seed": options.seed,
        "recorded": dict(chaos.events),
        "others_late": chaos.late_others,
        "not_missed": chaos.unasked,
        "requests": chaos.requests,
        "tokens": chaos.tokens,
        "pairs_lost": chaos.lost,
        "pairs_rerouted": chaos.rerouted,
        "failed_trials": chaos.failed,
        "longest_request_s": round(chaos.longest_s, 2),
        "longest_token_s": round(chaos.longest_token_s, 2),
        "away_median_s": round(statistics.median(chaos.away_s), 2) if chaos.away_s else None,
        "broken": [one._asdict() for one in chaos.broken],
    }
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        if name != "broken":
            print(f"{name.replace('_', ' '):20s} {value}")
    for one in chaos.broken:
        print(f"BROKEN in {one.trial}: {one.text}")
    print("every promise was kept" if not chaos.broken else f"{len(chaos.broken)} promises were broken")


if __name__ == "__main__":
    sys.exit(main())
