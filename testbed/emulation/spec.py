"""What a lab is to be, as plain data: made from an inventory by ``settings``, read by the keeper from its input.

Only the standard library is needed here, so that the keeper of a lab stays small.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from testbed.boards.model import Board, Release, board_from_json
from testbed.emulation.pythons import Interpreter

__all__ = ["STATE_ROOT", "HostSpec", "LabFiles", "LabSpec"]

STATE_ROOT = Path("/run/testbed/labs")


@dataclass(frozen=True)
class HostSpec:
    """One host of a lab.

    Attributes:
        name: Its name, also its host name.
        address: Its IPv4 address in the lab.
        port: Where its SSH server listens.
        board: The kind of board, or an empty string for a plain machine.
        cpu_cores: How much CPU it may use, in cores of this machine.
        memory_mib: How much memory it may use.
        disk_mib: How much its private overlay may hold; it is memory too.
        noise_percent: The standard deviation of its power readings.
        user: Who logs in.
        sudo: How an ordinary user may use sudo: ``nopasswd``, ``password`` or ``none``.
        jtop: Whether it runs the jtop service.
        systemd: Whether its process 1 is systemd.
        kind: The board with its release; None for a plain machine.
        clock_offset_s: How far its clock is ahead of this machine's.
        release: The release of its system; None on a plain machine.
        python: The interpreter of this machine that it has as ``python3``; None for this machine's own.
    """

    name: str
    address: str
    port: int
    board: str
    cpu_cores: float
    memory_mib: int
    disk_mib: int
    noise_percent: float = 0.0
    user: str = "root"
    sudo: str = "nopasswd"
    jtop: bool = False
    systemd: bool = False
    clock_offset_s: float = 0.0
    kind: Board | None = None
    release: Release | None = None
    python: Interpreter | None = None


@dataclass(frozen=True)
class LabSpec:
    """One lab.

    Attributes:
        lab: Its name.
        prefix: The length of its network's prefix.
        gateway: The bridge's own address.
        tick_hz: How often the power model is brought up to date.
        seed: The seed of all noise.
        interpreter: The Python that ``/opt/testbed/python`` leads to.
        needed: Folders that every host must see, whatever filesystem they are on.
        hosts: Its hosts.
    """

    lab: str
    prefix: int
    gateway: str
    tick_hz: int
    seed: int
    interpreter: str
    needed: tuple[str, ...]
    hosts: tuple[HostSpec, ...]

    @property
    def jtop(self) -> bool:
        """Whether any board runs the jtop service."""
        return any(host.jtop for host in self.hosts)

    @property
    def files(self) -> LabFiles:
        """Where the lab keeps its files."""
        return LabFiles(STATE_ROOT / self.lab)

    def digest(self) -> str:
        """Return a digest of what the inventory says about the lab."""
        own = {key: value for key, value in asdict(self).items() if key not in {"interpreter", "needed"}}
        return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return the lab as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LabSpec:
        """Return the lab of plain data made by :meth:`to_json`."""
        hosts = tuple(_host(host) for host in data["hosts"])
        return cls(**{**data, "needed": tuple(data["needed"]), "hosts": hosts})


def _host(data: dict[str, Any]) -> HostSpec:
    release, python, kind = data["release"], data["python"], data["kind"]
    return HostSpec(
        **{
            **data,
            "kind": kind and board_from_json(kind),
            "release": release and Release(**{**release, "missing": tuple(release["missing"])}),
            "python": python and Interpreter(**python),
        }
    )


@dataclass(frozen=True)
class LabFiles:
    """The files of a running lab, below one folder that only root may enter.

    Attributes:
        root: The folder.
    """

    root: Path

    @property
    def state(self) -> Path:
        """What runs: process numbers, control groups, the lab's description."""
        return self.root / "lab.json"

    @property
    def net(self) -> Path:
        """A link to the lab's network namespace, for the gateway command."""
        return self.root / "net"

    @property
    def control(self) -> Path:
        """The keeper's control socket."""
        return self.root / "control.sock"

    @property
    def key(self) -> Path:
        """The client's private key."""
        return self.root / "id_ed25519"

    @property
    def password(self) -> Path:
        """The password of ordinary users whose sudo asks for one."""
        return self.root / "password"

    @property
    def known_hosts(self) -> Path:
        """The hosts' public keys."""
        return self.root / "known_hosts"

    @property
    def log(self) -> Path:
        """What the keeper has to say."""
        return self.root / "keeper.log"

    def console(self, host: str) -> Path:
        """Return what a host's services have to say."""
        return self.root / f"{host}.console"

    @property
    def boards(self) -> Path:
        """Where the keeper mounts its own tmpfs; empty for everyone else."""
        return self.root / "boards"
