"""A transmitter and the receivers of its users behind real sockets on loopback, with a small random network."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from payloads.board.pace import Pace
from payloads.semcast.klt import Klt
from payloads.semcast.multicast import Group
from payloads.semcast.network import Broadcast
from payloads.semcast.play import play_frame
from payloads.semcast.receiver import Receiver
from payloads.semcast.settings import NetworkSettings
from payloads.semcast.shelf import Shelf
from payloads.semcast.spec import Spec, channel_labels, frames_of, read_spec
from payloads.semcast.transmitter import Transmitter
from payloads.wire.credentials import Credentials, PlainKey, TlsCertificate
from payloads.wire.server import Handler, Server, listen
from testbed.config.inventory import Host
from testbed.hosts.authority import new_authority
from tests.ports import kept_port

USERS = ("strong", "weak")
SCHEMES = ("fusion", "time_division", "superposition")
SIDE = 32
PAIRS = 2


def random_network(scheme: str, *, users: int = 2, seed: int = 5) -> Broadcast:
    """Return a small network whose every weight is random: nothing of it is without effect."""
    torch.manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(192, 192))
    klt = Klt(torch.full((192,), 0.5), basis, torch.linspace(0.3, 0.02, 192))
    settings = NetworkSettings(users=users, slots=16, width=16, blocks=2, scheme=scheme)
    network = Broadcast(settings, klt)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval().requires_grad_(False)


def write_models(home: Path, networks: dict[str, Broadcast]) -> Path:
    """Write a list of models and their weights as a deploy leaves them on a host; return the list."""
    (home / "objects").mkdir(parents=True, exist_ok=True)
    listed = {}
    for name, network in networks.items():
        weights = save({key: tensor.contiguous() for key, tensor in network.state_dict().items()})
        digest = hashlib.sha256(weights).hexdigest()
        (home / "objects" / digest).write_bytes(weights)
        config = {"model_type": "semcast", **network.settings._asdict()}
        listed[name] = {"config": config, "weights": {"object": digest, "bytes": len(weights)}}
    path = home / "models.json"
    path.write_text(json.dumps({"models": listed}))
    return path


@dataclass
class Device:
    """A receiver in a thread of this process, behind a real socket; ``twist`` may change how it answers."""

    receiver: Receiver
    credentials: Credentials
    twist: Callable[[Handler], Handler] = lambda handler: handler
    stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.place = kept_port()  # it comes back where it was
        self.port = int(self.place.getsockname()[1])
        self.begin()

    def begin(self) -> None:
        self.stopped = threading.Event()
        handler = self.twist(self.receiver.handle)
        server = Server(listen("127.0.0.1", self.port), self.credentials, handler, "receiver")
        self.thread = threading.Thread(target=self._serve, args=(server,))
        self.thread.start()

    def _serve(self, server: Server) -> None:
        try:
            server.serve(self.stopped.is_set, poll_s=0.02)
        finally:
            server.close()

    def stop(self) -> None:
        self.stopped.set()
        self.thread.join()
        self.receiver.close()


@dataclass
class Rack:
    """The hosts' folders, and what runs on them."""

    home: Path
    tls: bool
    networks: dict[str, Broadcast]
    users: Sequence[str] = USERS
    devices: dict[str, Device] = field(default_factory=dict)
    transmitters: list[Transmitter] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.tls:
            now = datetime.now(UTC)
            authority = new_authority("test", now)
            for name in ("bs", *self.users):
                role = "base_station" if name == "bs" else "device"
                folder = self.home / "tls" / name
                folder.mkdir(parents=True)
                host = Host(name=name, role=role, address="127.0.0.1")
                for file, content in authority.files(host, now).items():
                    (folder / file).write_bytes(content)
                    (folder / file).chmod(0o600)
        else:
            (self.home / "key").write_text("ab" * 32)
            (self.home / "key").chmod(0o600)
        self.images = torch.randint(
            0,
            256,
            (PAIRS, len(self.users), SIDE, SIDE, 3),
            dtype=torch.uint8,
            generator=torch.Generator().manual_seed(1),
        )
        (self.home / "set.bin").write_bytes(self.images.numpy().tobytes())
        self.models = write_models(self.home, self.networks)

    def credentials(self, name: str) -> Credentials:
        return TlsCertificate(self.home / "tls" / name) if self.tls else PlainKey(self.home / "key")

    def start(self, name: str, *, pace: Pace | None = None, **options: Any) -> Device:
        """Start the receiver of a user."""
        receiver = Receiver(Shelf(self.models), self.home / name, pace or Pace(None, None))
        if name in self.devices:
            self.devices[name].place.close()
        self.devices[name] = Device(receiver, self.credentials(name), **options)
        self.write_devices()
        return self.devices[name]

    def write_devices(self) -> None:
        listed = [
            {"name": name, "address": "127.0.0.1", "port": device.port, "user": place + 1}
            for place, (name, device) in enumerate(self.devices.items())
        ]
        (self.home / "devices.json").write_text(json.dumps({"devices": listed}))

    def transmitter(self, group: Group | None = None, **options: Any) -> Transmitter:
        made = Transmitter(
            Shelf(self.models), self.home / "devices.json", self.credentials("bs"), group=group, **options
        )
        self.transmitters.append(made)
        return made

    def spec(
        self,
        schemes: dict[str, Sequence[str]],
        scenarios: dict[str, dict[str, Any]] | None = None,
        **changes: Any,
    ) -> Path:
        """Write a specification with a trial of each scheme in each scenario; return its file."""
        scenarios = scenarios or {
            "10-1": {"snr_db": [10.0, 1.0]},
            "fading": {"snr_db": [10.0, 1.0], "fading": "rayleigh", "csi_error": 0.05},
        }
        value = {
            "workload": "broadcast",
            "run": "run-1",
            "seed": 7,
            "users": list(self.users),
            "sets": {
                "noise": {"file": str(self.home / "set.bin"), "pairs": PAIRS, "height": SIDE, "width": SIDE}
            },
            "blocks": [
                {"set": "noise", "pair": pair, "slots": slots, "shares": [share, 1 - share]}
                for slots in (16, 8)
                for share in (0.35, 0.8)
                for pair in range(PAIRS)
            ],
            "schemes": {name: list(models) for name, models in schemes.items()},
            "scenarios": scenarios,
            "trials": [
                {"trial": f"t{number:03d}", "scheme": scheme, "scenario": scenario, "repeat": 1}
                for number, (scheme, scenario) in enumerate(
                    ((scheme, scenario) for scheme in schemes for scenario in scenarios), 1
                )
            ],
            **changes,
        }
        path = self.home / "run" / "spec.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value))
        return path

    def rows(self, trial: str, table: str) -> list[dict[str, Any]]:
        text = (self.home / "run" / trial / f"{table}.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def close(self) -> None:
        for transmitter in self.transmitters:
            transmitter.close()
        for device in self.devices.values():
            device.stop()
            device.place.close()


def nothing(*_: object) -> None:
    """Neither tell nor stop anybody."""


def run(rack: Rack, path: Path, trial: str, group: Group | None = None) -> tuple[Spec, dict]:
    spec = read_spec(path)
    return spec, rack.transmitter(group).trial(spec, trial, nothing, nothing)


def check_equals_play(rack: Rack, spec: Spec, trial: str) -> None:
    """Check that what the receivers kept and told is what a local play of the same frames gives."""
    asked = spec.trials[trial]
    scenario = spec.scenarios[asked.scenario]
    received = {(row["frame"], row["user"]): row for row in rack.rows(trial, "received")}
    frames = list(frames_of(spec, asked))
    numbers = range(1, len(rack.users) + 1)
    assert sorted(received) == sorted((frame.number, user) for frame in frames for user in numbers)
    kept = {name: (rack.home / name / trial / "pixels.bin").read_bytes() for name in rack.users}
    assert {len(pixels) for pixels in kept.values()} == {len(frames) * SIDE * SIDE * 3}
    for frame in frames:
        played = play_frame(
            rack.networks[frame.model],
            rack.images[frame.block.pair],
            scenario.snr_db,
            frame.block.shares,
            frame.block.slots,
            fading=scenario.fading,
            csi_error=scenario.csi_error,
            seed=spec.seed,
            labels=channel_labels(asked.repeat, frame.block.pair),
        )
        for user, told in enumerate(played.users, 1):
            row = received[frame.number, user]
            assert (row["digest"], row["noise_seed"]) == (told.digest, told.noise_seed)
            assert row["gain_db"] == pytest.approx(told.gain_db)
            assert row["measured_snr_db"] == pytest.approx(told.measured_snr_db)
            pixels = kept[rack.users[user - 1]][row["offset"] : row["offset"] + SIDE * SIDE * 3]
            assert pixels == told.pixels.numpy().tobytes()
