"""A small random Mixtral, sharded, on real workers behind real sockets on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

from payloads.board.pace import Pace
from payloads.linkd.client import Client
from payloads.wdmoe.bs.model_folder import ModelFolder
from payloads.wdmoe.bs.spec import read_spec
from payloads.wdmoe.bs.station import Station, lay_out_model
from payloads.wdmoe.latency import DeviceSpeed, LatencyModel
from payloads.wdmoe.pace import ExpertShape
from payloads.wdmoe.worker.expert_worker import Worker
from payloads.wdmoe.worker.shards import read_wanted
from payloads.wire.credentials import Credentials, PlainKey, TlsCertificate
from payloads.wire.server import Server, listen
from testbed.artifacts.manifest import Manifest, load_manifest
from testbed.artifacts.shard import shard_model
from testbed.config.inventory import Host
from testbed.hosts.authority import new_authority
from testbed.placement.place import DeviceCapacity, Placement, place_auto, placement_json, wanted_list
from tests.payloads.wire import conftest as wire

serve = wire.serve

UNPACED = Pace(None, None)
#: Three devices that get 4, 3 and 1 of the 8 experts of a layer.
SPEEDS = {"big": 4.0, "middle": 3.0, "small": 1.0}
TEXT = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, "
    "must be in want of a wife. "
)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same random model in the published and in the fused layout."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(3)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    config = MixtralConfig(
        vocab_size=320,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        # A plain initialisation hardly tells experts apart.
        initializer_range=0.3,
    )
    model = MixtralForCausalLM(config).to(torch.float16)
    result = {"published": folder / "published", "fused": folder / "fused"}
    for layout, path in result.items():
        model.save_pretrained(path, save_original_format=layout == "published")
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>"
        ).save_pretrained(path)
    return result


@pytest.fixture(scope="session")
def shards(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both layouts, sharded."""
    result = {}
    for layout, path in checkpoints.items():
        result[layout] = tmp_path_factory.mktemp(f"shards-{layout}")
        shard_model(path, result[layout], name="small")
    return result


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The model that the project ships, and its shards."""
    model = Path(__file__).parents[2] / "payloads" / "models" / "tiny-mixtral"
    if not (model / "model.safetensors").is_file():
        pytest.skip("the shipped model is not here")
    out = tmp_path_factory.mktemp("shards-shipped")
    shard_model(model, out)
    return model, out


def assumed_latency(dtype: str) -> dict[str, Any]:
    """A latency model of the devices, with speeds that differ; the round trips are for pings to find out."""
    shape = ExpertShape(48, 80, 4 if dtype == "float32" else 2)
    speeds = tuple(DeviceSpeed(1e9 * speed, 1e9 * speed, None) for speed in SPEEDS.values())
    return LatencyModel(tuple(SPEEDS), shape, speeds).as_json()


@dataclass
class ThreadWorker:
    """A worker in a thread of this process, behind a real socket."""

    worker: Worker
    server: Server
    stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        try:
            self.server.serve(self.stopped.is_set, poll_s=0.02)
        finally:
            self.server.close()

    def stop(self) -> None:
        self.stopped.set()
        self.thread.join()


def write_certificates(home: Path) -> None:
    """Give the base station and the workers certificates of an authority of their own."""
    now = datetime.now(UTC)
    authority = new_authority("test", now)
    for name in ("bs", *SPEEDS):
        role = "base_station" if name == "bs" else "device"
        (home / "tls" / name).mkdir(parents=True)
        for file, content in authority.files(Host(name=name, role=role, address="127.0.0.1"), now).items():
            (home / "tls" / name / file).write_bytes(content)
            (home / "tls" / name / file).chmod(0o600)


def host_credentials(home: Path, name: str) -> Credentials:
    """Return what a host of a lab proves itself with."""
    return TlsCertificate(home / "tls" / name) if (home / "tls").is_dir() else PlainKey(home / "key")


@dataclass
class Lab:
    """A folder laid out as on hosts, and the workers that serve from it."""

    home: Path
    dtype: str
    workers: dict[str, ThreadWorker]
    start: Callable[..., ThreadWorker]
    stations: list[Station] = field(default_factory=list)

    @property
    def credentials(self) -> Credentials:
        return host_credentials(self.home, "bs")

    def restart(self, name: str, port: int = 0) -> None:
        """Start a worker again, on a new port if none is given, and say so in the devices file."""
        self.workers[name].stop()
        self.workers[name] = self.start(name, port)
        self.write_devices()

    def write_devices(self) -> None:
        placement = json.loads((self.home / "placement.json").read_text())
        devices = [
            {"name": name, "address": "127.0.0.1", "port": worker.server.address[1]}
            for name, worker in self.workers.items()
        ]
        (self.home / "devices.json").write_text(json.dumps({"devices": devices, "placement": placement}))

    def station(self, folder: ModelFolder | None = None, **options: Any) -> Station:
        folder = folder or lay_out_model(self.home / "manifest.json")
        self.stations.append(
            Station(folder, self.home / "devices.json", self.credentials, self.dtype, **options)
        )
        return self.stations[-1]

    def run(
        self, station: Station, bandwidth: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
        """Run a trial whose policy allocates the bandwidth so; return its result, dispatches and texts."""
        path = self.write_spec(bandwidth={"top-2": bandwidth} if bandwidth else {})
        result = station.trial(read_spec(path), "t001", lambda *_: None, lambda: None)
        rows = {
            name: [json.loads(line) for line in (path.parent / "t001" / name).read_text().splitlines()]
            for name in ("dispatches.jsonl", "requests.jsonl")
        }
        return result, rows["dispatches.jsonl"], [row["text"] for row in rows["requests.jsonl"]]

    def write_spec(self, **changes: Any) -> Path:
        folder = self.home / "runs" / "run-1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "text.txt").write_text(TEXT * 20)
        spec: dict[str, Any] = {
            "run": "run-1",
            "model": "small",
            "max_new_tokens": 5,
            "warmup_prompts": 1,
            "prompts": [{"id": "p1", "text": TEXT[:60]}, {"id": "p2", "text": TEXT[40:90]}],
            "policies": {"top-2": {"kind": "top_k", "k": 2}, "top-1": {"kind": "top_k", "k": 1}},
            "quality": {
                "window_tokens": 32,
                "windows": 3,
                "texts": [{"name": "one", "path": str(folder / "text.txt")}],
            },
            "latency": assumed_latency(self.dtype),
            "trials": [
                {"trial": "t001", "policy": "top-2", "scenario": "even", "repeat": 0},
                {"trial": "t002", "policy": "top-1", "scenario": "even", "repeat": 0},
            ],
        }
        (folder / "spec.json").write_text(json.dumps({**spec, **changes}))
        return folder / "spec.json"


@pytest.fixture
def make_lab(shards: dict[str, Path], tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    """A function that starts a worker for each device and returns the lab."""
    labs: list[Lab] = []

    def make(
        layout: str = "published",
        dtype: str = "float32",
        pace: Pace = UNPACED,
        source: Path | None = None,
        place: Callable[[Manifest], Placement] | None = None,
        tls: bool = False,
    ) -> Lab:
        home = tmp_path / f"home-{len(labs)}"
        home.mkdir()
        source = source or shards[layout]
        (home / "objects").symlink_to(source / "objects")
        (home / "manifest.json").write_bytes((source / "manifest.json").read_bytes())
        (home / "key").write_text(hashlib.sha256(b"test").hexdigest())
        (home / "key").chmod(0o600)
        if tls:
            write_certificates(home)
        manifest = load_manifest(home / "manifest.json")
        if place is None:
            placement = place_auto(manifest, [DeviceCapacity(n, 10**9, s) for n, s in SPEEDS.items()], dtype)
        else:
            placement = place(manifest)
        (home / "placement.json").write_text(json.dumps(placement_json(placement)))

        def start(name: str, port: int = 0) -> ThreadWorker:
            path = home / f"{name}.json"
            path.write_text(json.dumps(wanted_list(manifest, placement, name, dtype)))
            worker = Worker(read_wanted(path), home / "objects", pace)
            server = Server(listen("127.0.0.1", port), host_credentials(home, name), worker.handle, name)
            return ThreadWorker(worker, server)

        lab = Lab(home, dtype, {name: start(name) for name in SPEEDS}, start)
        lab.write_devices()
        labs.append(lab)
        return lab

    yield make
    for lab in labs:
        for station in lab.stations:
            station.close()
        for worker in lab.workers.values():
            worker.stop()


class LinkDaemon:
    """A link daemon that only keeps and tells rates, for three links; it needs no root."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "linkd.sock"
        ready = folder / "ready"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "payloads.linkd", "serve", "--backend", "pacing"],
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "TESTBED_HOME": str(folder),
                "TESTBED_READY": str(ready),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def set(self, mbit: float, **changes: Any) -> None:
        link = {"port": 7070, "probe_port": 7071, "downlink_mbit": mbit, "uplink_mbit": mbit, **changes}
        links = [{"device": n, "address": f"10.9.0.{i + 2}", **link} for i, n in enumerate(SPEEDS)]
        with Client(self.socket) as client:
            client.set(links)

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        with Client(self.socket) as client:
            return client.request(op, **arguments)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.communicate(timeout=60)


@pytest.fixture
def linkd(tmp_path: Path) -> Iterator[LinkDaemon]:
    """A real link daemon without links."""
    folder = tmp_path / "linkd"
    folder.mkdir()
    daemon = LinkDaemon(folder)
    yield daemon
    daemon.stop()
