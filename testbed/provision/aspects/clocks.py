"""A board's clocks, locked at their greatest by jetson_clocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.config.inventory import Host
from testbed.hosts.facts import Facts
from testbed.hosts.payload import HOME, shell_path
from testbed.hosts.steps import Command, Step
from testbed.provision.aspect import Change, Finding
from testbed.provision.aspects.power import needs_boot, target_mode

__all__ = ["Clocks"]

TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Clocks:
    """The clocks of a board. What they were is stored on the board itself, before they are locked."""

    item: str = "clocks"

    def changes(self, host: Host, facts: Facts) -> Iterator[Change]:
        """Yield the locking of the clocks."""
        board = facts.board
        target = target_mode(host, facts)
        boots = target is not None and needs_boot(facts, target)
        # A power mode takes the clocks with it; where it needs a boot, they are looked at again afterwards.
        done = board.locked and target is None
        if not host.jetson_clocks or not board.jetson_clocks or boots or done:
            return
        mode = target.id if target else "x" if board.mode_id is None else board.mode_id
        path = f"{HOME}/clocks.{mode}"
        store = f"test -e {shell_path(path)} || jetson_clocks --store {shell_path(path)}"
        yield Change(
            host.name,
            self.item,
            "lock the clocks at their greatest",
            "locked in another power mode" if board.locked else "free",
            "locked",
            (_root(host, store, "store the clocks"), _root(host, "jetson_clocks", "lock the clocks")),
            recorded={"clocks": path},
        )

    def findings(self, host: Host, facts: Facts, changes: Sequence[Change]) -> Iterator[Finding]:
        """Yield clocks that cannot be locked, or are not about to be."""
        if not host.jetson_clocks or not host.is_device:
            return
        if not facts.board.jetson_clocks:
            hint = "on the host: sudo apt-get install nvidia-l4t-tools"
            yield Finding(
                host.name, "failure", self.item, "there is no jetson_clocks to lock its clocks", hint
            )
        elif facts.board.locked is False and not any(
            change.item in {self.item, "power"} for change in changes
        ):
            yield Finding(host.name, "warning", self.item, "its clocks are not locked", "testbed provision")

    def undo(self, host: Host, facts: Facts, recorded: Mapping[str, Any]) -> Iterator[Step]:
        """Yield what gives the clocks back as they were."""
        path = shell_path(recorded["clocks"])
        shell = f"if test -e {path}; then jetson_clocks --restore {path} && rm -f {path}; fi"
        yield _root(host, shell, "give the clocks back")


def _root(host: Host, shell: str, title: str) -> Command:
    return Command(host.name, shell, title, TIMEOUT_S, become=True)
