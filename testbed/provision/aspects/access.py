"""What the user may do on a host: the groups, and becoming root."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.config.inventory import Host
from testbed.hosts.facts import Facts
from testbed.hosts.payload import HOME, shell_path
from testbed.hosts.steps import Command, Step
from testbed.provision.aspect import Change, Finding

__all__ = ["JOURNAL_GROUP", "Access"]

GPU_GROUPS = ("video", "render")
"""JetPack gives the GPU's device nodes to these."""
FILES = "/etc/group /etc/gshadow /etc/group- /etc/gshadow-"
JOURNAL_GROUP = "systemd-journal"
SUDO_GROUPS = frozenset({"sudo", "wheel", "admin"})


@dataclass(frozen=True)
class Access:
    """The groups of the user, and whether the user can become root."""

    item: str = "access"

    def changes(self, host: Host, facts: Facts) -> Iterator[Change]:
        """Yield the groups that the user is to be put in."""
        user, access = facts.user or host.user, facts.system.access
        missing = [
            name for name in _wanted(host, facts) if name in access.groups and name not in access.member
        ]
        if host.is_device and facts.jtop.group and not facts.jtop.member:
            missing = [*missing, *(["jtop"] if "jtop" not in missing else [])]
        if user == "root" or not missing:
            return
        names = ", ".join(missing)
        kept = f"{HOME}/groups.{hashlib.sha256(names.encode()).hexdigest()[:12]}"
        put = f"usermod -aG {shell_path(','.join(missing))} {shell_path(user)}"
        steps = [
            Command(host.name, _keep(kept), "keep what groups there were", become=True),
            Command(host.name, f"{put} && {_note(kept)}", f"put the user in {names}", become=True),
        ]
        if facts.systemd:
            # It began with a login before this, has the groups of then, and gives them to all that it starts.
            again = f'systemctl try-restart "user@$(id -u {shell_path(user)}).service"'
            steps.append(Command(host.name, again, "let the user's services have the groups", become=True))
        yield Change(
            host.name,
            self.item,
            f"put {user} in {names}",
            f"{user} is not in {names}",
            f"{user} is in {names}",
            tuple(steps),
            recorded={"user": user, "groups": missing, "kept": kept},
            reconnect=True,
        )

    def findings(self, host: Host, facts: Facts, changes: Sequence[Change]) -> Iterator[Finding]:
        """Yield groups that there are not, and what becoming root would need."""
        access = facts.system.access
        for name in host.groups if access.groups else ():
            if name not in access.groups:
                hint = f"on the host: sudo groupadd {name}; or take it out of `groups` in the inventory"
                yield Finding(host.name, "failure", self.item, f"there is no group {name}", hint)
        needs = [change for change in changes if any(getattr(step, "become", False) for step in change.steps)]
        if needs and not facts.sudo:
            what = ", ".join(dict.fromkeys(change.item for change in needs))
            text = f"{facts.user} cannot become root without a password, which is needed for: {what}"
            yield Finding(host.name, "failure", self.item, text, _sudo_hint(facts))

    def undo(self, host: Host, facts: Facts, recorded: Mapping[str, Any]) -> Iterator[Step]:
        """Yield what takes the user out of the groups again."""
        # Where no files were kept, there are none to be found.
        user, kept = shell_path(recorded["user"]), shell_path(recorded.get("kept", f"{HOME}/groups.none"))
        parts = []
        for name in recorded["groups"]:
            # Asked on the spot: an earlier step of the same undoing may have done it.
            there = f"id -nG {user} | tr ' ' '\\n' | grep -qxF {shell_path(name)}"
            parts.append(f"if {there}; then gpasswd -d {user} {shell_path(name)}; fi")
        untouched = f"sha256sum --status -c {kept}/after 2>/dev/null"
        shell = f"if {untouched}; then {_give_back(kept)}; else {' && '.join(parts)}; fi && rm -rf {kept} {kept}.part"
        yield Command(host.name, shell, f"take the user out of {', '.join(recorded['groups'])}", become=True)


def _keep(kept: str) -> str:
    """Return the command that keeps the files of groups as they are, for root alone: they may hold passwords.

    Programs that change them write more than the one line: an entry in gshadow that was missing, and backups.
    """
    folder = shell_path(kept)
    copy = f'for file in {FILES}; do test ! -e "$file" || cp -a "$file" {folder}.part/ || exit 1; done'
    make = (
        f"rm -rf {folder}.part && mkdir -m 700 {folder}.part && {{ {copy}; }} && mv -T {folder}.part {folder}"
    )
    return f"test -e {folder} || {{ {make}; }}"


def _note(kept: str) -> str:
    """Return the command that notes what the files are now: while they are that, giving them back costs nobody else."""
    sums = "sha256sum /etc/group; test ! -e /etc/gshadow || sha256sum /etc/gshadow"
    return f"{{ {sums}; }} >{shell_path(kept)}/after"


def _give_back(folder: str) -> str:
    """Return the command that puts the kept files back, each in one go, and removes those that there were not."""
    kept = f'{folder}/"${{file##*/}}"'
    back = f'cp -a {kept} "$file.testbed" && mv "$file.testbed" "$file"'
    return f'for file in {FILES}; do if test -e {kept}; then {back}; else rm -f "$file"; fi || exit 1; done'


def _wanted(host: Host, facts: Facts) -> list[str]:
    board = GPU_GROUPS if host.is_device and facts.l4t else ()
    # What services say is in the journal. It is not worth a failure where nobody can become root.
    journal = (JOURNAL_GROUP,) if facts.systemd and facts.sudo and not facts.units.journal else ()
    return list(dict.fromkeys([*host.groups, *board, *journal]))


def _sudo_hint(facts: Facts) -> str:
    user, access = facts.user, facts.system.access
    rule = f"echo '{user} ALL=(ALL) NOPASSWD: ALL' | sudo tee /etc/sudoers.d/testbed"
    if not access.sudo_program:
        return f"on the host, as root: apt-get install sudo && usermod -aG sudo {user}"
    if access.member and not SUDO_GROUPS & set(access.member):
        return f"on the host, as root: usermod -aG sudo {user}; then --ask-become-password works"
    return f"give the password with --ask-become-password, or on the host: {rule}"
