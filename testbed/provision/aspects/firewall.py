"""A host's packet filter, where it keeps the other hosts of the lab away from our ports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.config.inventory import Host
from testbed.hosts.facts import Facts
from testbed.hosts.steps import Step
from testbed.provision.aspect import Change, Finding
from testbed.provision.packet_filter import Packet, iptables_lets_in, nft_lets_in

__all__ = ["Firewall", "ports_of"]


@dataclass(frozen=True)
class Firewall:
    """A host's packet filter. It is its administrator's: nothing is changed there, the remedy is only named."""

    item: str = "firewall"

    def changes(self, host: Host, facts: Facts) -> Iterator[Change]:
        """Yield nothing: who may reach a host is not ours to decide."""
        yield from ()

    def findings(self, host: Host, facts: Facts, changes: Sequence[Change]) -> Iterator[Finding]:
        """Yield the ports that its rules certainly keep closed."""
        closed = [port for port in ports_of(host) if lets_in(facts, Packet(port)) is False]
        if not closed:
            return
        ports, listed = ",".join(map(str, closed)), ", ".join(map(str, closed))
        text = f"its packet filter keeps other hosts from TCP port {listed}"
        if facts.system.firewall.ufw:
            hint = f"on the host: sudo ufw allow proto tcp to any port {ports}"
        elif "iptables" in facts.system.firewall.rules and _iptables(facts, Packet(closed[0])) is False:
            hint = f"on the host: sudo iptables -I INPUT -p tcp -m multiport --dports {ports} -j ACCEPT"
        else:
            hint = f"on the host: a rule `tcp dport {{ {listed} }} accept` in nft's input chain"
        yield Finding(host.name, "failure", self.item, text, hint)

    def undo(self, host: Host, facts: Facts, recorded: Mapping[str, Any]) -> Iterator[Step]:
        """Yield nothing, since nothing is changed."""
        yield from ()


def ports_of(host: Host) -> list[int]:
    """Return the TCP ports at which other hosts of the lab reach a host."""
    network = host.network
    own = [network.data_port, network.probe_port] if host.is_device else []
    if not host.is_device or host.name in network.artifact_mirrors:
        own.append(network.artifact_port)
    return sorted({*own, *([network.metrics_port] if network.metrics_port else [])})


def lets_in(facts: Facts, packet: Packet) -> bool | None:
    """Return whether a host's packet filter lets a packet in; None where that is not known."""
    rules = facts.system.firewall.rules
    answers = [_iptables(facts, packet)]
    if "nft" in rules:
        answers.append(nft_lets_in(rules["nft"], packet, skip_iptables="iptables" in rules))
    return False if False in answers else None if None in answers else True


def _iptables(facts: Facts, packet: Packet) -> bool | None:
    rules = facts.system.firewall.rules
    return iptables_lets_in(rules["iptables"], packet) if "iptables" in rules else True
