"""The steps that every use of a lab is made of: leases, services, and its links. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from payloads.linkd.channel import Channel
from testbed.campaigns.phases import Kind, Phase
from testbed.config.campaign_base import Power, Verify
from testbed.config.inventory import Host, Inventory
from testbed.hosts.leases import holding_command
from testbed.hosts.payload import host_python, payload_command
from testbed.hosts.steps import Command, Fetch, Put, Step
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

__all__ = ["ASK", "LabSteps", "channel_bytes", "json_bytes"]

#: Where a host holds its certificate.
TLS_FOLDER = "~/.testbed/tls"
#: The module that asks the base station for work, whatever it serves.
ASK = "station.bsctl"
PROBE_TIMEOUT_S = 600.0


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """Return a value as the content of a file; the same value gives the same bytes."""
    return (json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()


def channel_bytes(channel: Channel) -> bytes:
    """Return the content of a channel's file; the same channel gives the same bytes."""
    return (json.dumps(channel.as_json(), separators=(",", ":"), sort_keys=True) + "\n").encode()


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

    def hold(self, purpose: str, owner: str = "") -> Phase:
        """Return the phase that holds every host, the base station first: of two that begin at once, one gets them all.

        Args:
            purpose: What for.
            owner: Who holds them; the operator where left out.
        """
        others = [host for host in self.inventory.hosts.values() if host is not self.bs]
        steps = tuple(holding_command(host, purpose, owner) for host in (self.bs, *others))
        return Phase("hold the hosts", steps, Kind.LEASE, cuts=(1,))

    def powers(self, power: Power) -> Iterator[Step]:
        """Yield what notes how each device is set, sets it for the run, and asks it again.

        Args:
            power: How the devices are to be set.
        """
        for device in self.devices:
            mode = power.mode_of(device.name)
            words = ["--mode", mode] if mode else []
            words += ["--jetson-clocks"] if power.jetson_clocks else []
            if words:
                words += ["--settle", f"{power.settle_s:g}"]
                yield self.payload(
                    device, "services", "power", "set", *words, title="set the power", timeout_s=300
                )

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

    def paced(self, device: Host) -> list[str]:
        """Return the options of a device's part: where it says that it works, and how fast it may where emulated."""
        options = ["--busy-file", "/run/testbed/busy_ns"]
        if device.pace:
            options += ["--pace-ops-per-s", f"{device.pace.ops_per_s:g}"]
            options += ["--pace-bytes-per-s", f"{device.pace.bytes_per_s:g}"]
        return options

    def controlled(self) -> list[str]:
        """Return the options of the base station's part: where it is asked, and what it knows of the links."""
        options = ["--control", "~/.testbed/bs.sock"]
        if self.shapers:
            options += ["--links", "~/.testbed/linkd.sock"]
        if self.inventory.network.shaping == "pacing":
            options.append("--pacing")
        return options

    def metrics(self, host: Host) -> list[str]:
        """Return the options that let a service of a host show its metrics."""
        port = self.inventory.network.metrics_port
        return [] if port is None else ["--metrics", f"{host.address}:{port}"]

    def ask(self, *args: str, title: str, timeout_s: float) -> Command:
        """Return the step that asks the base station for work and waits for its end.

        Args:
            *args: What is asked for.
            title: A few words for people.
            timeout_s: The most seconds that it may take.
        """
        return self.payload(self.bs, ASK, *args, title=title, timeout_s=timeout_s)

    def fetch_records(self, remote: str, folder: Path, name: str) -> Fetch:
        """Return the step that fetches what the base station recorded of a trial or pass.

        Args:
            remote: The run's folder on the base station.
            folder: The run's folder here.
            name: The trial's or pass's name.
        """
        return Fetch(self.bs.name, f"{remote}/{name}", folder / "fetched" / name, "records")

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

    def restore(self, *, power: bool = False) -> Phase:
        """Return the phase that puts the links back and stops all services.

        Args:
            power: Whether power modes and clocks are put back too.
        """
        steps: list[Step] = [clear_command(host) for host in self.shapers]
        for host in self.inventory.hosts.values():
            steps.append(self.payload(host, "services", "stop", "--all", title="stop services"))
            if power and host.is_device:
                words = ("services", "power", "restore")
                steps.append(self.payload(host, *words, title="put the power back", timeout_s=300))
        return Phase("restore", tuple(steps), Kind.RESTORE)
