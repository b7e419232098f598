"""The link daemon's commands on the hosts that shape, as steps."""

from __future__ import annotations

from testbed.config.campaign_base import Verify
from testbed.config.inventory import Host
from testbed.hosts.payload import host_python, payload_command
from testbed.hosts.steps import Command
from testbed.links.scenario import ShapingPlan, links_argument

__all__ = [
    "KEY_FILE",
    "capabilities_command",
    "clear_command",
    "history_command",
    "hold_command",
    "play_command",
    "probe_command",
    "set_command",
    "show_command",
    "watch_command",
]

KEY_FILE = "~/.testbed/key"


def set_command(host: Host, plan: ShapingPlan, channel: str | None = None) -> Command:
    """Return the step that shapes the links of a plan; it does nothing where they are shaped so already.

    Args:
        host: The host that shapes.
        plan: The links as that host sees them (:meth:`ShapingPlan.at`).
        channel: The path of the channel file on that host, where a channel is to be played.
    """
    arguments = ["--links", links_argument(plan)]
    if channel is not None:
        arguments += ["--channel", channel]
    return _command(host, f"links: {plan.scenario}", "set", *arguments)


def probe_command(
    base_station: Host,
    verify: Verify,
    links: str | None = None,
    *,
    busy: bool = False,
    timeout_s: float = 600,
) -> Command:
    """Return the step that times messages over the links that are set.

    Args:
        base_station: Where it runs.
        verify: What is timed.
        links: The links with all their rates, where the base station's daemon does not know them all.
        busy: Whether each size is also timed while all other devices are at full load.
        timeout_s: The most seconds that it may take.
    """
    sizes = ",".join(str(size) for size in verify.message_bytes)
    args = ["--sizes", sizes, "--repeats", str(verify.repeats), "--tolerance", f"{verify.tolerance:g}"]
    if links is not None:
        args += ["--links", links]
    if busy:
        args.append("--busy")
    return _command(base_station, "verify links", "probe", *args, "--key-file", KEY_FILE, timeout_s=timeout_s)


def play_command(host: Host) -> Command:
    """Return the step that starts the channel's clock."""
    return _command(host, "play the channel", "play")


def hold_command(host: Host) -> Command:
    """Return the step that stops the channel's clock."""
    return _command(host, "hold the channel", "hold")


def clear_command(host: Host) -> Command:
    """Return the step that puts everything back, whether the daemon lives or not."""
    return _command(host, "links back as they were", "clear")


def show_command(host: Host) -> Command:
    """Return the step that reads rates and counters."""
    return _command(host, "links", "show", "--json")


def history_command(host: Host) -> Command:
    """Return the step that reads all changes and samples since the links were set."""
    return _command(host, "what the links did", "history", timeout_s=180)


def watch_command(host: Host) -> Command:
    """Return the step that prints changes and samples as they happen."""
    return _command(host, "watch the links", "watch")


def capabilities_command(host: Host) -> Command:
    """Return the step that tries out what a host's kernel can do; it changes nothing that stays."""
    return _command(host, "try what the kernel can do", "capabilities", timeout_s=120)


def _command(host: Host, title: str, *args: str, timeout_s: float = 60.0) -> Command:
    return Command(host.name, payload_command(host_python(host), "linkd", *args), title, timeout_s)
