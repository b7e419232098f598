"""What bringing an emulated lab up would do. Pure."""

from __future__ import annotations

from testbed.emulation.network import bridge_lines, host_lines, link_lines
from testbed.emulation.spec import LabSpec

__all__ = ["plan_lines"]


def plan_lines(spec: LabSpec) -> list[str]:
    """Return what bringing a lab up would do, in lines for people.

    Args:
        spec: The lab.
    """
    lines = [f"lab {spec.lab}: state in {spec.files.root}", "in a new network and mount namespace:"]
    lines += [f"  ip {line}" for line in bridge_lines(spec)]
    for number, host in enumerate(spec.hosts):
        board = host.kind
        what = f"{board.model}, JetPack {board.jetpack} (L4T {board.l4t})" if board else "plain machine"
        lines += [
            f"{host.name}: {what}",
            "  new network, mount, PID, UTS, IPC and cgroup namespaces",
            f"  limits: {host.cpu_cores:g} cores, {host.memory_mib} MiB of memory, {host.disk_mib} MiB written",
            *(f"  ip {line}" for line in link_lines(number, host, 0)[:1]),
            *(f"  inside: ip {line}" for line in host_lines(spec, host)),
            f"  process 1: {'systemd' if host.systemd else 'a supervisor'}; login: {host.user}"
            + (f", sudo: {host.sudo}" if host.user != "root" else ""),
            f"  services: sshd on {host.address}:{host.port}" + (", jtop" if host.jtop else ""),
        ]
    return lines
