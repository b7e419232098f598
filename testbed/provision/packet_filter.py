"""What a packet filter does with a new connection to a TCP port, by its own rules. Pure.

Rules are followed as the kernel follows them. A rule that matches by something else than is known here (a set of
addresses, a limit, a mark) may match or not: then the answer is None, and nobody is told that a port is closed.
"""

from __future__ import annotations

import ipaddress
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Packet", "iptables_lets_in", "nft_lets_in"]

DEPTH = 20
"""Chains that call each other deeper than this are not followed."""
IPTABLES_TABLES = frozenset({"filter", "nat", "mangle", "raw", "security"})


@dataclass(frozen=True)
class Packet:
    """The first packet of a connection from one host of the lab to another.

    Attributes:
        port: The TCP port that it goes to.
        source: The address that it comes from; None where it is not known.
    """

    port: int
    source: str | None = None


Verdict = bool | None
"""Let in, thrown away, or not known."""


@dataclass(frozen=True)
class _Rule:
    """One rule: whether it matches (None: perhaps), and what then: ``accept``, ``drop``, ``return`` or a chain."""

    matches: bool | None
    action: str
    comes_back: bool = True


@dataclass
class _Chains:
    rules: dict[str, list[_Rule]] = field(default_factory=dict)
    policies: dict[str, str] = field(default_factory=dict)


def iptables_lets_in(text: str, packet: Packet) -> Verdict:
    """Return whether the rules that ``iptables-save -t filter`` prints let a packet in.

    Args:
        text: The rules.
        packet: The packet.

    Returns:
        None where that depends on something that is not known here.
    """
    chains = _Chains()
    for line in text.splitlines():
        if line.startswith(":"):
            name, policy = [*line[1:].split(), "-"][:2]
            chains.policies[name] = {"ACCEPT": "accept", "DROP": "drop"}.get(policy, "return")
            chains.rules.setdefault(name, [])
        elif line.startswith("-A "):
            try:
                words = shlex.split(line)
            except ValueError:
                return None
            if len(words) > 1:
                chains.rules.setdefault(words[1], []).append(_iptables_rule(words[2:], packet))
    return _walk(chains, "INPUT", chains.policies.get("INPUT", "accept"))


def nft_lets_in(text: str, packet: Packet, *, skip_iptables: bool = False) -> Verdict:
    """Return whether the rules that ``nft -j list ruleset`` prints let a packet in.

    Args:
        text: The rules, as JSON.
        packet: The packet.
        skip_iptables: Whether to leave out the tables that are iptables' own, which it tells more plainly.

    Returns:
        None where that depends on something that is not known here.
    """
    try:
        entries = json.loads(text)["nftables"]
        return _nft(entries, packet, skip_iptables)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _walk(chains: _Chains, name: str, policy: str) -> Verdict:
    return {"accept": True, "drop": False}.get(_chain(chains, name, 0, policy))


def _chain(chains: _Chains, name: str, depth: int, end: str = "return") -> str:
    """Return what becomes of a packet in a chain: ``accept``, ``drop``, ``return``, or ``unknown``.

    Args:
        chains: All chains.
        name: The chain.
        depth: How many chains have called each other on the way to it.
        end: What becomes of a packet at the chain's end.
    """
    if depth > DEPTH or name not in chains.rules:
        return "unknown"
    maybe: set[str] = set()
    last = end
    for rule in chains.rules[name]:
        if rule.matches is False or rule.action == "go on":
            continue
        action = rule.action
        if action not in {"accept", "drop", "return", "unknown"}:
            action = _chain(chains, action, depth + 1)
            if action == "return" and rule.comes_back:
                continue
        action = end if action == "return" else action
        if rule.matches is None:
            maybe.add(action)
            continue
        last = action
        break
    # What a rule that perhaps matches would have done must not differ from what is done without it.
    return last if maybe <= {last} else "unknown"


def _iptables_rule(words: Sequence[str], packet: Packet) -> _Rule:
    matches: list[bool | None] = []
    action, comes_back = "go on", True
    negated = False
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word == "!":
            negated = True
            continue
        values: list[str] = []
        while position < len(words) and not words[position].startswith("-") and words[position] != "!":
            values.append(words[position])
            position += 1
        value = values[0] if values else ""
        if word in {"-j", "-g"}:
            action = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "drop", "RETURN": "return"}.get(
                value, value
            )
            if value in {
                "LOG",
                "NFLOG",
                "ULOG",
                "MARK",
                "CONNMARK",
                "TRACE",
                "AUDIT",
                "SECMARK",
                "CONNSECMARK",
            }:
                action = "go on"
            comes_back = word == "-j"
            # What follows are the target's own options.
            break
        if word in {"-m", "--comment"}:
            continue
        matched = _iptables_match(word, value, packet)
        matches.append(matched if matched is None else matched != negated)
        negated = False
    return _Rule(_all(matches), action, comes_back)


def _iptables_match(word: str, value: str, packet: Packet) -> bool | None:
    if word in {"-p", "--protocol"}:
        return value in {"tcp", "all", "6", "0"}
    if word in {"--dport", "--dports", "--destination-port"}:
        return any(_in_range(packet.port, part.split(":")) for part in value.split(","))
    if word in {"-s", "--source"}:
        return _within(packet.source, value)
    if word in {"-i", "--in-interface"}:
        return False if value == "lo" else None
    if word in {"--ctstate", "--state"}:
        return "NEW" in value.split(",")
    if word in {"--tcp-flags", "--syn"}:
        return True if word == "--syn" else None
    if word == "--dst-type" and value in {"BROADCAST", "MULTICAST", "ANYCAST"}:
        return False
    if word == "--dst-type" and value == "LOCAL":
        return True
    return None


def _nft(entries: Iterable[Mapping[str, Any]], packet: Packet, skip_iptables: bool) -> Verdict:
    tables: dict[tuple[str, str], _Chains] = {}
    hooks: list[tuple[tuple[str, str], str, str]] = []
    sets: dict[tuple[str, str, str], Any] = {}
    for entry in entries:
        for kind, about in entry.items():
            table = (about.get("family", ""), about.get("table", ""))
            if table[0] not in {"ip", "inet"} or (
                skip_iptables and table[0] == "ip" and table[1] in IPTABLES_TABLES
            ):
                continue
            chains = tables.setdefault(table, _Chains())
            if kind == "set":
                sets[(*table, about["name"])] = about.get("elem", [])
            elif kind == "chain":
                chains.rules.setdefault(about["name"], [])
                if about.get("hook") == "input" and about.get("type") == "filter":
                    hooks.append((table, about["name"], about.get("policy", "accept")))
            elif kind == "rule":
                named = {name: value for (*place, name), value in sets.items() if tuple(place) == table}
                chains.rules.setdefault(about["chain"], []).append(_nft_rule(about["expr"], packet, named))
    answers = [_walk(tables[table], name, policy) for table, name, policy in hooks]
    # Each chain at the hook must let it in.
    return False if False in answers else None if None in answers else True


def _nft_rule(parts: Iterable[Mapping[str, Any]], packet: Packet, sets: Mapping[str, Any]) -> _Rule:
    matches: list[bool | None] = []
    for part in parts:
        ((kind, about),) = part.items()
        if kind == "match":
            matched = _nft_match(about["left"], about["right"], packet, sets)
            matches.append(matched if matched is None or about.get("op") != "!=" else not matched)
            if about.get("op") not in {"==", "in", "!=", None}:
                matches[-1] = None
        elif kind in {"accept", "drop", "return"}:
            return _Rule(_all(matches), kind)
        elif kind == "reject":
            return _Rule(_all(matches), "drop")
        elif kind in {"jump", "goto"}:
            return _Rule(_all(matches), about["target"], kind == "jump")
        elif kind not in {"counter", "log", "mangle"}:
            return _Rule(None, "unknown")
    return _Rule(_all(matches), "go on")


def _nft_match(left: Any, right: Any, packet: Packet, sets: Mapping[str, Any]) -> bool | None:
    ((kind, about),) = left.items() if isinstance(left, Mapping) else (("", ""),)
    key = (
        (about.get("protocol", kind), about.get("field", about.get("key")))
        if isinstance(about, Mapping)
        else ()
    )
    values = _nft_values(right, sets)
    if key in {("tcp", "dport"), ("th", "dport")}:
        ranges = [value["range"] if isinstance(value, Mapping) else [value] for value in values]
        return any(_in_range(packet.port, list(map(str, pair))) for pair in ranges)
    if key[:1] in {("udp",), ("icmp",), ("icmpv6",), ("ip6",), ("sctp",)}:
        return False
    if key in {("meta", "l4proto"), ("ip", "protocol")}:
        return "tcp" in values or 6 in values
    if key == ("meta", "nfproto"):
        return "ipv4" in values
    if key == ("ct", "state"):
        return "new" in values
    if key in {("meta", "iif"), ("meta", "iifname")}:
        return False if values == ["lo"] else None
    if key == ("ip", "saddr"):
        found = [_within(packet.source, _nft_address(value)) for value in values]
        return True if True in found else None if None in found else False
    if key == ("fib", "type") or kind == "fib":
        return None
    return None


def _nft_values(right: Any, sets: Mapping[str, Any]) -> list[Any]:
    if isinstance(right, str) and right.startswith("@"):
        right = {"set": sets[right[1:]]}
    if isinstance(right, Mapping) and "set" in right:
        right = right["set"]
    values = right if isinstance(right, list) else [right]
    return [
        value["elem"]["val"] if isinstance(value, Mapping) and "elem" in value else value for value in values
    ]


def _nft_address(value: Any) -> str:
    if isinstance(value, Mapping) and "prefix" in value:
        return f"{value['prefix']['addr']}/{value['prefix']['len']}"
    if isinstance(value, Mapping) and "range" in value:
        return "-".join(map(str, value["range"]))
    return str(value)


def _in_range(port: int, ends: Sequence[str]) -> bool:
    low, high = ends[0], ends[-1]
    if not (low.isdigit() or not low) or not (high.isdigit() or not high):
        return False
    return int(low or 0) <= port <= int(high or 65535)


def _within(address: str | None, network: str) -> bool | None:
    """Return whether an address lies in a network; None where either is not known as such."""
    try:
        own = ipaddress.ip_address(address or "")
        if "-" in network:
            low, high = (ipaddress.ip_address(end) for end in network.split("-"))
            return int(low) <= int(own) <= int(high)
        found = ipaddress.ip_network(network, strict=False)
    except ValueError:
        return True if network in {"0.0.0.0/0", "::/0"} else None
    return own in found


def _all(matches: Iterable[bool | None]) -> bool | None:
    found = list(matches)
    return False if False in found else None if None in found else True
