"""Ask a host for its facts, and read the answer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from testbed.config.inventory import Host
from testbed.errors import CommandError, HostError
from testbed.hosts.clock import measure_clock
from testbed.hosts.facts.asked import asked_of
from testbed.hosts.facts.board import board_of
from testbed.hosts.facts.jetpack import jetpack_of, l4t_of
from testbed.hosts.facts.own import records_of
from testbed.hosts.facts.python import Environment, Jtop, Units
from testbed.hosts.facts.system import system_of
from testbed.hosts.facts.whole import Facts
from testbed.hosts.payload import shell_path
from testbed.hosts.probes import probe_text
from testbed.hosts.remembered import recall, remember
from testbed.hosts.steps import Command
from testbed.hosts.transport import Transport

__all__ = ["facts_command", "gather_facts", "parse_facts"]

T = TypeVar("T")
FACTS_TIMEOUT_S = 180.0


def facts_command(
    host: Host,
    modules: Sequence[str] | None = None,
    *,
    known: str = "",
    known_client: str = "",
    seen: str = "",
    known_code: Mapping[str, str] | None = None,
) -> Command:
    """Return the one command that asks a host for everything.

    Args:
        host: The host.
        modules: What to try to import, which takes a while; what the payload code needs where left out.
        known: The fingerprint of an environment where they could be imported; nothing is tried if it is still that.
        known_client: Likewise that of a client of jtop whom the service answered.
        seen: What both were made from.
        known_code: How the payload code's files there looked when they were last read, and their digest.
    """
    interpreter = shell_path(host.python.interpreter)
    # The system's own Python is the quickest to start, more so without its packages. The one that is wanted may be
    # missing: the probe is what says so.
    options = "-I -S -"
    shell = f"command -v python3 >/dev/null && exec python3 {options}; exec {interpreter} {options}"
    asked = asked_of(host, modules, known=known, known_client=known_client, seen=seen, known_code=known_code)
    return Command(host.name, shell, "ask for facts", FACTS_TIMEOUT_S, stdin=probe_text(asked))


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
        client = known.get("client", {})
        command = facts_command(
            host,
            modules,
            known=known.get("fingerprint", ""),
            known_client=client.get("fingerprint", ""),
            seen=known.get("seen", ""),
            known_code=known.get("code"),
        )
        transport.run(command, on_line=lambda line: arrivals.append((clock(), line)))
    except CommandError as error:
        if error.exit_status == 127:
            raise HostError(
                host.name, "there is no Python on the host", hint="install it: `sudo apt install python3`"
            ) from error
        raise
    raw, behind = _raw_facts(host, arrivals)
    if raw["python"]["environment"].get("unchanged"):
        raw["python"]["environment"] = known
    if raw["python"].get("client", {}).get("unchanged"):
        raw["python"]["client"] = client
    facts = _facts(raw, behind)
    limit_s = host.clock.limit_ms / 1000
    if facts.clock_offset_s is not None and abs(facts.clock_offset_s) > limit_s:
        # Off, or late to answer: only questions and answers tell.
        measured = measure_clock(host, transport, good_error_s=limit_s / 4, clock=clock)
        if measured is not None:
            facts = replace(facts, clock_offset_s=measured[0], clock_error_s=measured[1])
    if before is None:
        asked = raw["python"].get("client", {})
        # What failed is asked again.
        kept = {"client": {} if asked.get("error") else asked, "seen": raw["python"].get("seen", "")}
        kept["code"] = raw["own"].get("code", {}).get("seen", {})
        remember(host, raw["python"]["environment"] | kept)
        return facts
    found = before.environment
    environment = replace(
        facts.environment,
        modules=found.modules,
        errors=found.errors,
        torch_built=found.torch_built,
        torch_right=found.torch_right,
        torch_error=found.torch_error,
    )
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
    if "host" in raw["errors"]:
        raise HostError(host.name, f"the probe failed there: {raw['errors']['host']}")
    raw["python"].setdefault("environment", {"error": raw["errors"].get("python", "the probe did not say")})
    return raw, behind


def _facts(raw: Mapping[str, Any], behind: Sequence[float]) -> Facts:
    host, board, system, own = raw["host"], raw["board"], raw["system"], raw["own"]
    found = raw["python"].get("environment", {})
    environment = _of(Environment, {**found, **raw["python"].get("base", {})})
    l4t = l4t_of(board.get("nv_tegra_release"))
    qdiscs = system.get("qdiscs")
    code = own.get("code", {"folders": {}, "current": None})
    names = ["hostname", "machine", "kernel", "boot_id", "user", "cpu_count"]
    names += ["memory_bytes", "memory_free_bytes", "disk_free_bytes"]
    return Facts(
        **{name: host[name] for name in names if name in host},
        board_model=board.get("board_model"),
        power_mode=board.get("power_mode"),
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
        sudo=system.get("sudo", False),
        systemd=system.get("systemd", False),
        jtop=_of(Jtop, {**raw["python"].get("jtop", {}), **raw["python"].get("client", {})}),
        units=_of(Units, raw["python"].get("units", {})),
        environment=environment,
        code=code["folders"],
        code_current=code["current"],
        folders=own.get("folders", {}),
        board=board_of(board),
        system=system_of(system),
        record=records_of(own.get("record", ())),
        sudo_mark=own.get("sudo_mark"),
        left=own.get("left", False),
        errors=raw["errors"],
    )


def _of(kind: type[T], raw: Mapping[str, Any]) -> T:
    """Return a section of the facts from what the probe says of it: what both know by the same name."""
    made: T = kind(**{f.name: raw[f.name] for f in fields(kind) if f.name in raw})  # type: ignore[arg-type]
    return made
