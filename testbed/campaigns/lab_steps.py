"""The steps that every use of a lab is made of: leases, services, and its links. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from testbed.campaigns.phases import Kind, Phase
from testbed.config.campaign import Verify
from testbed.config.inventory import Host, Inventory
from testbed.hosts.payload import host_python, payload_command
from testbed.hosts.steps import Command, Put, Step
from testbed.links.backends import daemon_arguments, planned_backends, shaping_hosts
from testbed.links.commands import (
    KEY_FILE,
    clear_command,
    hold_command,
    play_command,
    probe_command,
    set_command,
    show_command,
)
from testbed.links.estimate import probe_seconds
from testbed.links.scenario import ShapingPlan, links_argument

__all__ = ["LabSteps", "json_bytes"]

#: Where a host holds its certificate.
TLS_FOLDER = "~/.testbed/tls"
LEASE_TTL_S = 8.0
PROBE_TIMEOUT_S = 600.0


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """Return a value as the content of a file; the same value gives the same bytes."""
    return (json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()


class LabSteps:
    """Makes the steps; every method is a function of the inventory and its arguments alone.

    Args:
        inventory: The lab.
    """

    def __init__(self, inventory: Inventory) -> None:
        self.inventory = inventory
        self.bs = inventory.base_station
        self.devices = inventory.devices
        self.shapers = shaping_hosts(inventory)

    def payload(self, host: Host, module: str, *args: str, title: str, timeout_s: float = 60.0) -> Command:
        """Return the step that runs a payload module."""
        return Command(host.name, payload_command(host_python(host), module, *args), title, timeout_s)

    def service(self, host: Host, name: str, module: str, *args: str) -> Command:
        """Return the step that starts a service, and waits until it serves."""
        start = ["start", name, "--ready-timeout", "90", "--restart"]
        argv = [host_python(host), "-m", f"payloads.{module}", *args]
        return self.payload(host, "services", *start, "--", *argv, title=f"start {name}", timeout_s=120)

    def leases(self) -> Iterable[Step]:
        """Yield what holds every host."""
        for host in self.inventory.hosts.values():
            yield self.payload(host, "services", "hold", "--ttl", f"{LEASE_TTL_S:g}", title="hold")

    def keys(self, key: str) -> Iterable[Step]:
        """Yield what gives every host the key (in hexadecimal) of probes, pulls and the plain data plane."""
        for host in self.inventory.hosts.values():
            yield Put(host.name, key.encode(), KEY_FILE, "key", 0o600, secret=True)

    def certificates(self, files: Mapping[str, Mapping[str, bytes]]) -> Iterable[Step]:
        """Yield what gives every host its certificate for the data plane.

        Args:
            files: The content of each host's files, by the names of host and file.
        """
        for host, contents in files.items():
            for name, content in contents.items():
                yield Put(host, content, f"{TLS_FOLDER}/{name}", "data plane certificate", 0o600, secret=True)

    def credentials(self) -> list[str]:
        """Return the options that say what a program of the data plane proves itself with."""
        if self.inventory.network.security == "tls":
            return ["--tls", TLS_FOLDER]
        return ["--key-file", KEY_FILE]

    def responder(self, device: Host) -> Step:
        """Return what starts a device's end of the probes."""
        listen = f"0.0.0.0:{self.inventory.network.probe_port}"
        return self.service(device, "probe", "linkd", "respond", "--listen", listen, "--key-file", KEY_FILE)

    def link_daemon(self, host: Host) -> Iterator[Step]:
        """Yield what starts the link daemon on a host, where one has to run."""
        if host in self.shapers:
            yield self.service(host, "linkd", "linkd", *daemon_arguments(host, self.inventory.network))

    def set_links(self, plan: ShapingPlan, channel: str | None = None) -> tuple[Step, ...]:
        """Return what shapes the links on every host that does.

        Args:
            plan: The links.
            channel: The path of the channel file on those hosts, where a channel is to be played.
        """
        return tuple(set_command(host, plan.at(host, self.inventory), channel) for host in self.shapers)

    def verify(self, plan: ShapingPlan, verify: Verify, *, busy: bool = False) -> Step:
        """Return what times messages over the links that are set.

        Args:
            plan: The links.
            verify: What is timed.
            busy: Whether each size is also timed while all other devices are at full load.
        """
        # Who shapes one direction only does not know what the other is to be.
        several = self.inventory.network.shaping == "device"
        links = links_argument(plan, planned_backends(self.inventory.network)) if several else None
        # What is off is measured up to two times more.
        timeout_s = max(PROBE_TIMEOUT_S, 60 + 4 * probe_seconds(plan, verify, busy=busy))
        return probe_command(self.bs, verify, links, busy=busy, timeout_s=timeout_s)

    def shows(self) -> tuple[Step, ...]:
        """Return what reads the counters of every host that shapes."""
        return tuple(show_command(host) for host in self.shapers)

    def plays(self) -> tuple[Step, ...]:
        """Return what starts the channel's clock on every host that shapes."""
        return tuple(play_command(host) for host in self.shapers)

    def holds(self) -> tuple[Step, ...]:
        """Return what stops the channel's clock on every host that shapes."""
        return tuple(hold_command(host) for host in self.shapers)

    def restore(self) -> Phase:
        """Return the phase that puts the links back and stops all services."""
        steps: list[Step] = [clear_command(host) for host in self.shapers]
        for host in self.inventory.hosts.values():
            steps.append(self.payload(host, "services", "stop", "--all", title="stop services"))
        return Phase("restore", tuple(steps), Kind.RESTORE)
