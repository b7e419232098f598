"""What the kernel has that shapes links, and whether we may use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.config.inventory import Host
from testbed.hosts.facts import Facts
from testbed.hosts.facts.system import shapes_links
from testbed.hosts.steps import Step
from testbed.provision.aspect import Change, Finding

__all__ = ["Kernel"]

SHAPING = ("htb", "tbf", "ifb")


@dataclass(frozen=True)
class Kernel:
    """What the kernel has that shapes links, and whether we may use it."""

    item: str = "kernel"

    def changes(self, host: Host, facts: Facts) -> Iterator[Change]:
        """Yield nothing: there is nothing that could be changed from here."""
        yield from ()

    def findings(self, host: Host, facts: Facts, changes: Sequence[Change]) -> Iterator[Finding]:
        """Yield what no change puts right."""
        user = facts.user or host.user
        if shapes_links(host) and user != "root":
            text = f"{user} cannot shape links, as `network.shaping: {host.network.shaping}` asks for: that takes root"
            others = "{shaping: bs} or {shaping: pacing}" if host.is_device else "{shaping: pacing}"
            hint = f"`user: root` for this host in the inventory, or `network: {others}`"
            yield Finding(host.name, "failure", self.item, text, hint)
        if host.is_device or facts.qdiscs is None:
            return
        missing = [name for name in SHAPING if name not in facts.qdiscs]
        if missing:
            text = f"its kernel has no {', '.join(missing)}: links cannot be shaped in the kernel"
            hint = f"on the host: sudo apt install linux-modules-extra-{facts.kernel or '$(uname -r)'}"
            yield Finding(host.name, "warning", "kernel", text, hint)

    def undo(self, host: Host, facts: Facts, recorded: Mapping[str, Any]) -> Iterator[Step]:
        """Yield nothing, since nothing is changed."""
        yield from ()
