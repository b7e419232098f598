"""Why a step failed, where a service that it needs has ended: what that service said last belongs to the error.

``bsctl`` says that it cannot reach the base station; only the base station's own last line says why.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from testbed.config.inventory import Host
from testbed.errors import CommandError
from testbed.hosts.fleet import Fleet
from testbed.hosts.payload import host_python, payload_command
from testbed.hosts.steps import Command, Step
from testbed.hosts.transport import Transport

__all__ = ["StartedServices", "ended_services", "started_service", "status_command"]

STATUS_TIMEOUT_S = 10.0
_LEASE_ENDED = "the lease ended"
_START = re.compile(r" payloads\.services start (\S+) ")


def started_service(step: Step) -> str | None:
    """Return the name of the service that a step starts, or None."""
    match = _START.search(step.shell) if isinstance(step, Command) else None
    return match[1] if match else None


def status_command(host: Host) -> Command:
    """Return the step that asks a host how its services are."""
    shell = payload_command(host_python(host), "services", "status", "--json")
    return Command(host.name, shell, "look at the services", STATUS_TIMEOUT_S)


def ended_services(host: str, answer: str, started: Mapping[str, int]) -> Iterator[tuple[str, int, str]]:
    """Yield the services that have ended since they were started, also those that run again.

    Args:
        host: The host's name.
        answer: What ``payloads.services status --json`` answered there.
        started: The services that count, each with the number of its restarts that is known already.

    Yields:
        The service's name, how often it was restarted, and what became of it in one line.
    """
    for service in _services(answer):
        name, restarts = str(service.get("name")), service.get("restarts")
        restarts = restarts if isinstance(restarts, int) else 0
        state = str(service.get("state"))
        well = state == "running" and service.get("ready", True)
        if name not in started or (well and restarts <= started[name]):
            continue
        if well:
            what = f"{name} on {host} had to be started again"
        elif state == "running":
            what = f"{name} on {host} is being started{' again' if restarts else ''}"
        else:
            what = f"{name} on {host}: {state}"
        reason = str(service.get("last_reason") or service.get("reason") or "")
        if reason.startswith(_LEASE_ENDED):  # that all services were stopped then says nothing more
            yield name, restarts, reason
            continue
        what += f" ({reason})" if reason else ""
        line = str(service.get("last_line") or "")
        yield name, restarts, f"{what}, its last line: {line}" if line else what


def _services(answer: str) -> list[dict[str, Any]]:
    try:
        # A login script of the host may say something before.
        services = json.loads(answer.strip().rpartition("\n")[2])["services"]
    except (ValueError, KeyError, TypeError):
        return []
    return [each for each in services if isinstance(each, dict)] if isinstance(services, list) else []


class StartedServices:
    """The services that one plan has started, and what became of them; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._restarts: dict[str, dict[str, int]] = {}

    def note(self, step: Step) -> None:
        """Note that a step was done."""
        name = started_service(step)
        if name is not None:
            with self._lock:
                self._restarts.setdefault(step.host, {})[name] = 0

    def explain(self, error: BaseException, fleet: Fleet) -> None:
        """Add to the error of a command what services have ended, and their last lines.

        Hosts that do not answer are passed over: the error stands as it is.

        Args:
            error: The error.
            fleet: The hosts.
        """
        with self._lock:
            started = {host: dict(names) for host, names in self._restarts.items()}
        if not isinstance(error, CommandError) or not started:
            return

        def ask(host: Host, transport: Transport) -> str:
            return transport.run(status_command(host)).stdout

        hosts = [host for host in fleet.inventory.hosts.values() if host.name in started]
        told: dict[str, list[str]] = {}
        for outcome in fleet.each(ask, hosts):
            host = outcome.host.name
            for name, restarts, words in ended_services(host, outcome.value or "", started[host]):
                with self._lock:
                    self._restarts[host][name] = restarts
                told.setdefault(words, []).append(host)
        for words, where in told.items():
            whose = f"on {', '.join(dict.fromkeys(where))}: " if words.startswith(_LEASE_ENDED) else ""
            error.add(whose + words)
