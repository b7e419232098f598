"""The link daemon's commands at the base station, as steps."""

from __future__ import annotations

from testbed.config.campaign import Verify
from testbed.config.inventory import Host
from testbed.hosts.payload import host_python, payload_command
from testbed.hosts.steps import Command
from testbed.links.scenario import ShapingPlan, links_argument

__all__ = ["clear_command", "probe_command", "set_command", "show_command"]

KEY_FILE = "~/.testbed/key"


def set_command(base_station: Host, plan: ShapingPlan) -> Command:
    """Return the step that shapes the links of a plan; it does nothing where they are shaped so already."""
    return _command(base_station, f"links: {plan.scenario}", "set", "--links", links_argument(plan))


def probe_command(base_station: Host, verify: Verify) -> Command:
    """Return the step that times messages over the links that are set."""
    sizes = ",".join(str(size) for size in verify.message_bytes)
    args = ("--sizes", sizes, "--repeats", str(verify.repeats), "--tolerance", f"{verify.tolerance:g}")
    return _command(base_station, "verify links", "probe", *args, "--key-file", KEY_FILE, timeout_s=600)


def clear_command(base_station: Host) -> Command:
    """Return the step that puts everything back, whether the daemon lives or not."""
    return _command(base_station, "links back as they were", "clear")


def show_command(base_station: Host) -> Command:
    """Return the step that reads rates and counters."""
    return _command(base_station, "links", "show", "--json")


def _command(host: Host, title: str, *args: str, timeout_s: float = 60.0) -> Command:
    return Command(host.name, payload_command(host_python(host), "linkd", *args), title, timeout_s)
