"""What shapes a lab: which hosts run the link daemon, how it is started, what to do where one cannot. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from testbed.config.inventory import Host, Inventory, Network
from testbed.errors import CommandError, RefusedError
from testbed.hosts.steps import Command, Step

__all__ = [
    "BACKENDS",
    "Trouble",
    "choices",
    "daemon_arguments",
    "explained",
    "is_shaped",
    "planned_backends",
    "planned_leaf",
    "refusal_hint",
    "shaping_hosts",
    "troubles",
]

BACKENDS = (
    "bs-htb-tbf",
    "bs-htb-netem",
    "bs-line",
    "device-htb-tbf",
    "device-htb-netem",
    "socket-pacing",
)
"""The backends in the order in which they are shown; `none` is what a link has that nothing shapes."""

_LEAVES = {"tbf": "htb-tbf", "netem": "htb-netem", "line": "line"}
_REFUSED = RefusedError.exit_code


def is_shaped(inventory: Inventory) -> bool:
    """Return whether anything shapes the links of a lab."""
    return inventory.network.shaping != "none"


def shaping_hosts(inventory: Inventory) -> list[Host]:
    """Return the hosts that run the link daemon, the base station first."""
    if not is_shaped(inventory):
        return []
    devices = inventory.devices if inventory.network.shaping == "device" else []
    return [inventory.base_station, *devices]


def daemon_arguments(host: Host, network: Network) -> tuple[str, ...]:
    """Return what `linkd` is started with on a host."""
    arguments = ["serve", "--socket", "~/.testbed/linkd.sock", "--state", "~/.testbed/linkd.state.json"]
    if network.shaping == "pacing":
        arguments += ["--backend", "pacing"]
    elif (leaf := planned_leaf(network)) != "auto":
        arguments += ["--leaf", leaf]
    if host.is_device:
        arguments += ["--side", "device"]
    elif network.interface:
        arguments += ["--interface", network.interface]
    return tuple(arguments)


def planned_leaf(network: Network) -> str:
    """Return the leaf that every link daemon is started with.

    Where several hosts shape, each knows its own direction only, and the probes must know what to expect of both: so
    there `auto` is the token bucket, which every kernel with htb has.
    """
    return "tbf" if network.shaping == "device" and network.leaf == "auto" else network.leaf


def planned_backends(network: Network) -> dict[str, str]:
    """Return what shapes each direction where several hosts shape."""
    leaf = _LEAVES[planned_leaf(network)]
    return {"downlink": f"bs-{leaf}", "uplink": f"device-{leaf}"}


def choices(host: Host, network: Network) -> tuple[str, ...]:
    """Return the backends that may shape the host's end of the links by the inventory; one of them has to work."""
    if network.shaping == "pacing":
        return ("socket-pacing",)
    if network.shaping == "none" or (host.is_device and network.shaping == "bs"):
        return ()
    side = "device" if host.is_device else "bs"
    leaf = planned_leaf(network)
    wanted = _LEAVES.values() if leaf == "auto" else [_LEAVES[leaf]]
    return tuple(name for one in wanted if (name := f"{side}-{one}") in BACKENDS)


@dataclass(frozen=True)
class Trouble:
    """What a host cannot do and the inventory asks it for.

    Attributes:
        host: The host.
        text: What it cannot do, and why.
        hint: What to put in the inventory instead, or to do on the host.
    """

    host: str
    text: str
    hint: str


def troubles(host: Host, network: Network, capabilities: Mapping[str, Any]) -> Iterator[Trouble]:
    """Yield what keeps a host from what the inventory asks of it.

    Args:
        host: The host.
        network: The inventory's `network`.
        capabilities: What `linkd capabilities` answered there.
    """
    backends = capabilities["backends"]
    asked = choices(host, network)
    if asked and all(backends[name] is not None for name in asked):
        why = "; ".join(f"{name}: {backends[name]}" for name in asked)
        leaf = "" if network.leaf == "auto" else f" with the leaf {network.leaf}"
        text = f"it cannot shape as the inventory says (`network.shaping` is {network.shaping}{leaf}): {why}"
        yield Trouble(host.name, text, refusal_hint(why, host, network))


def explained(error: BaseException, step: Step, inventory: Inventory) -> RefusedError | None:
    """Return what a refusal of the link daemon means for the inventory, or None for any other error.

    Args:
        error: What a step failed with.
        step: The step.
        inventory: The lab.
    """
    if not isinstance(error, CommandError) or not isinstance(step, Command):
        return None
    said = (error.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("linkd: ")
    # A leaf that was asked for by name is not tried out first: then it is the kernel itself that refuses.
    refused = error.exit_status == _REFUSED or "is the kernel module there?" in said
    if not refused or " payloads.linkd set " not in step.shell:
        return None
    host = inventory.host(step.host)
    return RefusedError(f"{host.name}: {said}", hint=refusal_hint(said, host, inventory.network))


def refusal_hint(said: str, host: Host, network: Network) -> str:
    """Return what to put in the inventory where a host refused to shape its links.

    Args:
        said: The daemon's own words.
        host: The host that refused.
        network: The inventory's `network`.
    """
    if "could not be put back" in said or "tc qdisc del" in said:
        return f"`tc qdisc show` on {host.name} shows what somebody else has set there; only they can take it away"
    if host.is_device:
        return "in the inventory: `network: {shaping: bs}`, which needs nothing of the devices"
    if "the user-space line keeps up with" in said:
        return (
            "lower the rates (of a channel: `max_mbit` or `scale`), or leave delay, jitter and loss out and have "
            "`network: {leaf: auto}` in the inventory: then a token bucket gives them"
        )
    if any(word in said for word in ("delay", "jitter", "loss")):
        return (
            f"on {host.name}, one of: modprobe sch_netem; modprobe tun. Or leave delay, jitter and loss out of the "
            "scenario"
        )
    if network.leaf in {"netem", "line"}:
        return "in the inventory: `network: {leaf: auto}` takes what this kernel has"
    if network.shaping == "pacing":
        return "in the inventory: `network: {shaping: bs}`, where the base station's kernel can shape"
    return (
        f"on {host.name}: apt install linux-modules-extra-$(uname -r). Or in the inventory: `network: {{shaping: "
        "pacing}`, which needs no module and no root, and paces the testbed's own traffic"
    )
