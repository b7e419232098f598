"""What puts a board's power back after a reboot in the middle of a lease."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.config.inventory import Host
from testbed.hosts.facts import Facts
from testbed.hosts.payload import host_python, payload_command, shell_path
from testbed.hosts.steps import Command, Step
from testbed.provision.aspect import Change, Finding

__all__ = ["Keeper"]

TIMEOUT_S = 60.0
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Keeper:
    """A unit of systemd that starts the lease's keeper at boot, where a lease has left notes of a board's power.

    A board keeps its power mode over a reboot, and the keeper of before is gone. The unit runs as the user whose notes
    they are, and not as root for them: the notes and the code are that user's.

    Its record: ``unit``, which was not there, or was another.
    """

    item: str = "keeper"

    def changes(self, host: Host, facts: Facts) -> Iterator[Change]:
        """Yield the unit, where a board has power modes and systemd to start it."""
        user = facts.user or host.user
        if not (facts.systemd and facts.sudo and facts.board.nvpmodel and _PLAIN.fullmatch(user)):
            return
        text = _text(user, host)
        if facts.units.keeper == text.strip():
            return
        unit = f"testbed-keeper-{user}.service"
        path = f"/etc/systemd/system/{unit}"
        shell = f"cat >{path}.part && chmod 644 {path}.part && mv {path}.part {path}"
        shell += f" && systemctl daemon-reload && systemctl enable {unit}"
        title = "put the power back after a reboot too"
        yield Change(
            host.name,
            self.item,
            title,
            "a reboot ends what would put the power back",
            "it goes on at boot",
            (Command(host.name, shell, title, TIMEOUT_S, stdin=text.encode(), become=True),),
            recorded={"unit": unit},
        )

    def findings(self, host: Host, facts: Facts, changes: Sequence[Change]) -> Iterator[Finding]:
        """Yield nothing: where there is no unit, the next user puts the board back."""
        yield from ()

    def undo(self, host: Host, facts: Facts, recorded: Mapping[str, Any]) -> Iterator[Step]:
        """Yield the removal of the unit; a keeper that it has started goes on until its lease is over."""
        unit = shell_path(recorded["unit"])
        path = shell_path(f"/etc/systemd/system/{recorded['unit']}")
        gone = f"systemctl disable {unit} && rm -f {path} && systemctl daemon-reload"
        shell = f"rm -f {path}.part; if test -e {path}; then {gone}; fi"
        yield Command(host.name, shell, "start no keeper at boot", TIMEOUT_S, become=True)


def _text(user: str, host: Host) -> str:
    """Return the unit's file."""
    keep = payload_command(host_python(host), "services", "keep")
    # The manager expands $NAME and %X, and takes quotes away; what is left is the shell's.
    words = f'test -d "$HOME/.testbed-lease" || exit 0; {keep}'
    escaped = re.sub(r"[\\'$%]", lambda found: {"$": "$$", "%": "%%"}.get(found[0], f"\\{found[0]}"), words)
    return (
        "[Unit]\n"
        "Description=testbed: puts back what a lease of before this boot has left\n"
        "After=nvpmodel.service remote-fs.target\n\n"
        f"[Service]\nUser={user}\nExecStart=/bin/sh -c '{escaped}'\n\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )
