"""What a host is: its board, its software, its clock, and what testbed has put there already."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from typing import Any

from testbed.config.inventory import Host
from testbed.errors import CommandError, HostError
from testbed.hosts.payload import host_python, shell_path
from testbed.hosts.remembered import recall, remember
from testbed.hosts.steps import Command
from testbed.hosts.transport import Transport

__all__ = [
    "Environment",
    "Facts",
    "Jtop",
    "assume_facts",
    "facts_command",
    "gather_facts",
    "jetpack_of",
    "parse_facts",
    "required_modules",
]

FACTS_TIMEOUT_S = 180.0
_JETPACK = {
    "35.1": "5.0.2",
    "35.2": "5.1",
    "35.3": "5.1.1",
    "35.4": "5.1.2",
    "35.5": "5.1.3",
    "35.6": "5.1.4",
    "36.2": "6.0",
    "36.3": "6.0",
    "36.4": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "38.2": "7.0",
}
_JETPACK_MAJOR = {28: "3", 32: "4", 34: "5", 35: "5", 36: "6", 38: "7", 39: "7"}


@dataclass(frozen=True)
class Jtop:
    """The jtop service of a board.

    Attributes:
        program: The path of the jtop program, or None where it is not installed.
        version: The version of jetson-stats that the payload code's Python sees.
        group: Whether there is a group `jtop`.
        member: Whether the user is in that group, or root.
        socket: Whether the service's socket is there.
        unit: Whether systemd knows the service.
    """

    program: str | None = None
    version: str | None = None
    group: bool = False
    member: bool = False
    socket: bool = False
    unit: bool = False


@dataclass(frozen=True)
class Environment:
    """The Python that runs the payload code.

    Attributes:
        version: Its version, or None where it does not run.
        modules: The versions of the modules that it can import, of those asked for.
        errors: Why it cannot import the others.
        recipe: What a managed environment was made from.
        error: Why it does not run.
    """

    version: str | None = None
    modules: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    recipe: Mapping[str, Any] | None = None
    error: str | None = None


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
        environment: The Python that runs the payload code.
        code: The payload code folders: name (the digest that it should have) -> the digest that it has.
        code_current: The name of the one in use.
        folders: The permission bits of the folders in ``~/.testbed``; ``.`` is that folder itself.
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
    jtop: Jtop = Jtop()
    user: str | None = None
    sudo: bool = False
    kernel: str | None = None
    environment: Environment = field(default_factory=Environment)
    code: Mapping[str, str] = field(default_factory=dict)
    code_current: str | None = None
    folders: Mapping[str, int] = field(default_factory=dict)
    assumed: bool = False
    assumed_fields: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the facts as plain data."""
        return asdict(self)

    def describe(self) -> str:
        """Return the facts that matter in one line, each assumed one marked as such."""
        torch = self.torch and f"torch {self.torch} ({f'CUDA {self.cuda}' if self.cuda else 'CPU'})"
        jetpack = self.jetpack and f"JetPack {self.jetpack} (L4T {self.l4t})"
        clock = self.clock_offset_s is not None and f"clock {round(self.clock_offset_s * 1000):+d} ms"
        shown = [
            ("board_model", self.board_model or self.machine),
            ("jetpack", jetpack),
            ("python", self.python and f"Python {self.python}"),
            ("torch", torch),
            ("cpu_count", self.cpu_count and f"{self.cpu_count} CPUs"),
            ("memory_bytes", self.memory_bytes and f"{self.memory_bytes / 2**30:.1f} GiB memory"),
            (
                "memory_free_bytes",
                self.memory_free_bytes is not None and f"{self.memory_free_bytes / 2**30:.1f} GiB of it free",
            ),
            ("disk_free_bytes", self.disk_free_bytes and f"{self.disk_free_bytes / 2**30:.1f} GiB disk free"),
            ("power_mode", self.power_mode and f"power mode {self.power_mode}"),
            ("systemd", "systemd" if self.systemd else "no systemd"),
            ("code", f"payload code {self.code_current or 'none'}"),
            ("clock_offset_s", clock),
        ]
        return ", ".join(
            f"{text} (assumed)" if name in self.assumed_fields else str(text) for name, text in shown if text
        )


def required_modules(host: Host) -> tuple[str, ...]:
    """Return the modules that the payload code of a host imports beyond the standard library."""
    return ("torch",) if host.is_device else ("torch", "transformers")


def facts_command(host: Host, modules: Sequence[str] | None = None, *, known: str = "") -> Command:
    """Return the one command that asks a host for everything.

    Args:
        host: The host.
        modules: What to try to import, which takes a while; what the payload code needs where left out.
        known: The fingerprint of an environment where they could be imported; nothing is tried if it is still that.
    """
    interpreter = shell_path(host.python.interpreter)
    # The probe also runs where the wanted interpreter is missing: it is what says so.
    shell = f'exec "$(command -v {interpreter} || command -v python3 || echo python3)" - '
    wanted = required_modules(host) if modules is None else modules
    shell += " ".join([shell_path(host_python(host)), *wanted])
    probe = resources.files("testbed.hosts").joinpath("probe.py").read_bytes()
    if known:
        probe = probe.replace(b'KNOWN_FINGERPRINT = ""', f"KNOWN_FINGERPRINT = {known!r}".encode(), 1)
    return Command(host.name, shell, "ask for facts", FACTS_TIMEOUT_S, stdin=probe)


def gather_facts(
    host: Host,
    transport: Transport,
    *,
    before: Facts | None = None,
    trust_memory: bool = False,
    clock: Callable[[], float] = time.time,
) -> Facts:
    """Ask a host for its facts.

    Args:
        host: The host.
        transport: The way to it.
        before: Facts of a moment ago: what can be imported is taken from them and not tried again.
        trust_memory: Whether what could be imported in an earlier probe is not tried again, where the host says that
            its Python and its packages are as they were, and that it was not booted since.
        clock: Our own clock, in unix seconds.

    Raises:
        HostError: The host cannot be reached or cannot answer.
    """
    arrivals: list[tuple[float, str]] = []
    known = recall(host) if trust_memory and before is None else {}
    try:
        modules = None if before is None else ()
        command = facts_command(host, modules, known=known.get("fingerprint", ""))
        transport.run(command, on_line=lambda line: arrivals.append((clock(), line)))
    except CommandError as error:
        if error.exit_status == 127:
            raise HostError(
                host.name, "there is no Python on the host", hint="install it: `sudo apt install python3`"
            ) from error
        raise
    raw, behind = _raw_facts(host, arrivals)
    if raw["environment"].get("unchanged"):
        raw["environment"] = known
    facts = _facts(raw, behind)
    if before is None:
        remember(host, raw["environment"])
        return facts
    found = before.environment
    environment = replace(facts.environment, modules=found.modules, errors=found.errors)
    return replace(
        facts, environment=environment, torch=before.torch, cuda=before.cuda, capability=before.capability
    )


def parse_facts(host: Host, arrivals: Sequence[tuple[float, str]]) -> Facts:
    """Return the facts in the lines that a host answered.

    Args:
        host: The host.
        arrivals: Each line with our clock's time of its arrival.

    Raises:
        HostError: There are no facts in the lines.
    """
    return _facts(*_raw_facts(host, arrivals))


def _raw_facts(host: Host, arrivals: Sequence[tuple[float, str]]) -> tuple[dict[str, Any], list[float]]:
    """Return what a host answered, and how far its clock was ahead of ours when each reading arrived."""
    behind: list[float] = []
    raw: dict[str, Any] | None = None
    for arrived_s, line in arrivals:
        try:
            answer = json.loads(line)
        except ValueError:
            continue  # a login script of the host may say something too
        if isinstance(answer, dict) and "clock" in answer:
            behind.append(float(answer["clock"]) - arrived_s)
        if isinstance(answer, dict) and "facts" in answer:
            raw = answer["facts"]
    if raw is None:
        raise HostError(host.name, "no facts in the host's answer")
    return raw, behind


def _facts(raw: Mapping[str, Any], behind: Sequence[float]) -> Facts:
    found = raw["environment"]
    environment = Environment(**{f.name: found[f.name] for f in fields(Environment) if f.name in found})
    l4t = _l4t(raw["nv_tegra_release"])
    qdiscs = raw["qdiscs"]
    plain = ["hostname", "machine", "board_model", "memory_bytes", "memory_free_bytes", "disk_free_bytes"]
    plain += ["cpu_count", "kernel", "power_mode", "systemd", "user", "sudo", "folders"]
    return Facts(
        **{name: raw[name] for name in plain},
        l4t=l4t,
        jetpack=jetpack_of(l4t),
        python=environment.version,
        torch=environment.modules.get("torch"),
        cuda=found.get("cuda"),
        capability=found.get("capability"),
        # A line is late by the time it travelled: the least late one says most, and its own delay remains.
        clock_offset_s=max(behind) if behind else None,
        clock_error_s=max(behind) - min(behind) if behind else None,
        qdiscs=None if qdiscs is None else tuple(qdiscs),
        jtop=Jtop(version=found.get("jetson_stats"), **raw["jtop"]),
        environment=environment,
        code=raw["code"]["folders"],
        code_current=raw["code"]["current"],
    )


def _l4t(release: str | None) -> str | None:
    """Return the version in ``/etc/nv_tegra_release``."""
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", release or "")
    return f"{match[1]}.{match[2]}" if match else None


def jetpack_of(l4t: str | None) -> str | None:
    """Return the JetPack that a version of Linux for Tegra belongs to; its major version where in doubt."""
    if l4t is None:
        return None
    parts = l4t.split(".")
    for length in (3, 2):
        name = _JETPACK.get(".".join(parts[:length]))
        if name:
            return name
    return _JETPACK_MAJOR.get(int(parts[0]))


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
