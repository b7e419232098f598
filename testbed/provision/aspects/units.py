"""Whether the services of a host can run under systemd, with its limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.config.inventory import Host
from testbed.hosts.facts import Facts
from testbed.hosts.payload import shell_path
from testbed.hosts.steps import Command, Step
from testbed.provision.aspect import Change, Finding, Level
from testbed.provision.aspects.access import JOURNAL_GROUP

__all__ = ["Units"]


@dataclass(frozen=True)
class Units:
    """Whether the services of a host can run under systemd.

    A user who is not root has a manager of systemd only while logged in, unless it *lingers*. Services must outlive the
    login that starts them, so it should.

    Its record: ``user``, who did not linger before.
    """

    item: str = "units"

    def changes(self, host: Host, facts: Facts) -> Iterator[Change]:
        """Yield what has to change."""
        user = facts.user or host.user
        if not facts.systemd or user == "root" or not facts.sudo or facts.assumed:
            return
        name = shell_path(user)
        if not facts.units.linger:
            there = f'[ -d "/run/user/$(id -u {name})/systemd" ]'
            wait = f"i=0; while ! {there} && [ $i -lt 50 ]; do sleep 0.2; i=$((i+1)); done; {there}"
            shell = f"loginctl enable-linger {name} && {{ {wait}; }}"
            yield Change(
                host.name,
                self.item,
                "let services outlive a login",
                f"systemd ends what {user} started at logout",
                f"{user} lingers",
                (Command(host.name, shell, "let services outlive a login", become=True),),
                recorded={"user": user},
            )

    def findings(self, host: Host, facts: Facts, changes: Sequence[Change]) -> Iterator[Finding]:
        """Yield what no change puts right."""
        if not facts.systemd or any(change.item == self.item for change in changes):
            return
        user, units = facts.user or host.user, facts.units
        if user != "root" and not units.linger:
            text = f"systemd ends what {user} started at logout"
            yield self._finding(host, "warning", text, f"on the host: sudo loginctl enable-linger {user}")
        if not units.journal and not any(change.item == "access" for change in changes):
            text = f"{user} may not read the journal: what services say stays unknown"
            hint = "on the host: sudo mkdir -p /var/log/journal && sudo systemctl restart systemd-journald"
            if JOURNAL_GROUP not in facts.system.access.member:
                hint = f"on the host: sudo usermod -aG {JOURNAL_GROUP} {user}"
            yield self._finding(host, "warning", text, hint)
        if user == "root":
            text = "root logs in, so that services run as root, though with fewer rights"
            hint = "name another user as the host's `user`, one with sudo"
            yield self._finding(host, "note", text, hint)
        if units.manager and not units.memory:
            text = "systemd cannot limit the memory of services here (control groups of version 1)"
            hint = "add systemd.unified_cgroup_hierarchy=1 to the kernel's command line"
            yield self._finding(host, "note", text, hint)

    def _finding(self, host: Host, level: Level, text: str, hint: str) -> Finding:
        return Finding(host.name, level, self.item, text, hint)

    def undo(self, host: Host, facts: Facts, recorded: Mapping[str, Any]) -> Iterator[Step]:
        """Yield what ends the lingering of a user who did not linger before."""
        user = recorded.get("user")
        if not user or not facts.systemd:
            return
        # The folder that notes it is logind's own: without it, that could note nothing until it is started again.
        shell = f"loginctl disable-linger {shell_path(user)}"
        yield Command(host.name, shell, "let systemd end at logout what the user started", become=True)
