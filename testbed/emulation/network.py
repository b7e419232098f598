"""The lab's network as lines for ``ip -batch``: a bridge, and a pair of virtual Ethernet ends for each host.

Pure planners, and one function that runs them.
"""

from __future__ import annotations

import ipaddress
import subprocess
from collections.abc import Sequence

from testbed.emulation.spec import HostSpec, LabSpec

__all__ = ["BRIDGE", "bridge_lines", "host_lines", "link_lines", "mac_address", "port_name", "run_lines"]

BRIDGE = "testbed0"
_NAME_LENGTH = 15


def mac_address(address: str) -> str:
    """Return the hardware address that goes with an IPv4 address."""
    packed = ipaddress.IPv4Address(address).packed
    return ":".join(f"{byte:02x}" for byte in b"\x02\x00" + packed)


def port_name(number: int, host: str) -> str:
    """Return the name of the bridge's end of a host's link."""
    return f"v{number}-{host}"[:_NAME_LENGTH]


def bridge_lines(spec: LabSpec) -> list[str]:
    """Return what makes the lab's bridge, in the lab's namespace."""
    return [
        "link set lo up",
        f"link add {BRIDGE} type bridge stp_state 0 forward_delay 0",
        f"link set {BRIDGE} address {mac_address(spec.gateway)}",
        f"address add {spec.gateway}/{spec.prefix} dev {BRIDGE}",
        f"link set {BRIDGE} up",
    ]


def link_lines(number: int, host: HostSpec, pid: int) -> list[str]:
    """Return what links a host to the bridge, in the lab's namespace.

    Args:
        number: The host's number in the lab.
        host: The host.
        pid: A process in the host's network namespace.
    """
    port = port_name(number, host.name)
    return [
        f"link add {port} type veth peer name eth0 address {mac_address(host.address)} netns {pid}",
        f"link set {port} master {BRIDGE} up",
    ]


def host_lines(spec: LabSpec, host: HostSpec) -> list[str]:
    """Return what sets up a host's end, in the host's namespace."""
    return [
        "link set lo up",
        f"address add {host.address}/{spec.prefix} dev eth0",
        "link set eth0 up",
    ]


def run_lines(lines: Sequence[str]) -> None:
    """Run lines through one ``ip`` process in this network namespace.

    Raises:
        OSError: ``ip`` refused one; the message is its own.
    """
    done = subprocess.run(
        ["/bin/sh", "-c", "exec ip -batch -"],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    if done.returncode != 0:
        raise OSError(f"ip: {done.stderr.strip() or 'failed without a message'}")
