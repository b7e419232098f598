"""All facts of a host."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from testbed.config.inventory import Host
from testbed.hosts.facts.board import Board
from testbed.hosts.facts.own import Recorded
from testbed.hosts.facts.python import Environment, Jtop, Units, required_modules
from testbed.hosts.facts.system import System
from testbed.hosts.payload import host_python

__all__ = ["Facts", "assume_facts"]

# What every board's name has and says nothing.
_NEEDLESS = re.compile(r"^NVIDIA (?:Jetson )?| (?:Engineering Reference )?Developer Kit")


@dataclass(frozen=True)
class Facts:
    """What a host is.

    Attributes:
        hostname: Its own name for itself.
        machine: Its processor architecture.
        board_model: The kind of board or machine.
        l4t: The version of NVIDIA's Linux for Tegra, such as ``36.4.3``; None where it is no Jetson.
        jetpack: The JetPack that the former belongs to; only its major version where the table ends.
        python: The version of the Python that runs the payload code.
        torch: The version of torch there.
        cuda: The version of CUDA that torch uses; None where it computes on the CPU.
        capability: The compute capability of the GPU.
        memory_bytes: The memory that processes may use.
        memory_free_bytes: How much of it is free.
        disk_free_bytes: The free space in the user's home.
        cpu_count: The processors that processes may use.
        power_mode: The name of the power mode.
        clock_offset_s: Its clock minus ours.
        clock_error_s: How far off that may be.
        qdiscs: Which of htb, tbf, netem, ingress and ifb its kernel has; None where that cannot be seen.
        systemd: Whether services run under systemd.
        jtop: The jtop service.
        user: The user who is logged in.
        sudo: Whether this user can become root without a password.
        kernel: The kernel's release.
        boot_id: What the kernel drew at this boot.
        environment: The Python that runs the payload code.
        code: The payload code folders: name (the digest that it should have) -> the digest that it has, where it is in
            use; else empty.
        code_current: The name of the one in use.
        folders: The permission bits of the folders in ``~/.testbed``; ``.`` is that folder itself.
        units: How far services run under systemd.
        board: What its board is, in more detail.
        system: What its system has, in more detail.
        record: What testbed noted before each of its changes, oldest first.
        sudo_mark: Whether sudo's note that the user has used it was there before it was asked; None where nobody knows.
        left: Whether an undoing was cut off at its very end.
        errors: Why a part of the probe failed, by the part's name.
        assumed: Whether nobody has asked the host.
        assumed_fields: The names of the facts that are only assumed.
    """

    hostname: str
    machine: str | None = None
    board_model: str | None = None
    l4t: str | None = None
    jetpack: str | None = None
    python: str | None = None
    torch: str | None = None
    cuda: str | None = None
    capability: str | None = None
    memory_bytes: int | None = None
    memory_free_bytes: int | None = None
    disk_free_bytes: int | None = None
    cpu_count: int | None = None
    power_mode: str | None = None
    clock_offset_s: float | None = None
    clock_error_s: float | None = None
    qdiscs: tuple[str, ...] | None = None
    systemd: bool = False
    jtop: Jtop = field(default_factory=Jtop)
    user: str | None = None
    sudo: bool = False
    kernel: str | None = None
    boot_id: str | None = None
    environment: Environment = field(default_factory=Environment)
    code: Mapping[str, str] = field(default_factory=dict)
    code_current: str | None = None
    folders: Mapping[str, int] = field(default_factory=dict)
    units: Units = field(default_factory=Units)
    board: Board = field(default_factory=Board)
    system: System = field(default_factory=System)
    record: tuple[Recorded, ...] = ()
    sudo_mark: bool | None = None
    left: bool = False
    errors: Mapping[str, str] = field(default_factory=dict)
    assumed: bool = False
    assumed_fields: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the facts as plain data: the record without its content, which may be whole files."""
        record = [{"item": entry.item, "unix_s": entry.unix_s} for entry in self.record]
        return asdict(replace(self, record=())) | {"record": record}

    @property
    def board_name(self) -> str | None:
        """What kind of board it is, or of processor, without what every board's name has."""
        return _NEEDLESS.sub("", self.board_model or self.machine or "") or None

    def describe(self) -> str:
        """Return the facts that matter in one line, each assumed one marked as such."""
        torch = self.torch and f"torch {self.torch} ({f'CUDA {self.cuda}' if self.cuda else 'CPU'})"
        jetpack = self.jetpack and f"JetPack {self.jetpack} (L4T {self.l4t})"
        memory = self.memory_bytes and f"{self.memory_bytes / 2**30:.1f} GiB memory"
        if memory and self.memory_free_bytes is not None:
            memory += f" ({self.memory_free_bytes / 2**30:.1f} free)"
        clock = self.clock_offset_s is not None and f"clock {round(self.clock_offset_s * 1000):+d} ms"
        shown = [
            ("board_model", self.board_name),
            ("jetpack", jetpack),
            ("python", self.python and f"Python {self.python}"),
            ("torch", torch),
            ("cpu_count", self.cpu_count and f"{self.cpu_count} CPUs"),
            ("memory_bytes", memory),
            ("disk_free_bytes", self.disk_free_bytes and f"{self.disk_free_bytes / 2**30:.1f} GiB disk free"),
            ("power_mode", self.power_mode and f"power mode {self.power_mode}"),
            ("systemd", "systemd" if self.systemd else "no systemd"),
            ("clock_offset_s", clock),
        ]
        return ", ".join(
            f"{text} (assumed)" if name in self.assumed_fields else str(text) for name, text in shown if text
        )


def assume_facts(host: Host) -> Facts:
    """Return what can be assumed of a host that nobody can ask: that testbed has never been there.

    Args:
        host: The host.
    """
    memory = re.search(r"-(\d+)gb$", host.board or "")
    facts = Facts(
        hostname=host.name,
        board_model=host.board,
        memory_bytes=int(memory[1]) << 30 if memory else None,
        power_mode=host.power_mode,
        user=host.user,
        sudo=True,
        systemd=True,
        jtop=Jtop("jtop", None, group=True, member=host.user == "root", socket=True, unit=True),
        environment=Environment(
            version=None if host.python.manage else "3",
            modules={} if host.python.manage else dict.fromkeys(required_modules(host), ""),
            error=f"{host_python(host)}: not made yet" if host.python.manage else None,
        ),
        assumed=True,
    )
    names = [f.name for f in fields(facts) if getattr(facts, f.name) != f.default and f.name != "assumed"]
    return Facts(**{f.name: getattr(facts, f.name) for f in fields(facts)} | {"assumed_fields": tuple(names)})
