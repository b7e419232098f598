"""Debian packages: those that the inventory names and those that testbed itself needs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.config.inventory import Host
from testbed.hosts.facts import Facts
from testbed.hosts.facts.system import package_name, venv_package, wanted_packages
from testbed.hosts.payload import HOME, shell_path
from testbed.hosts.steps import Command, Step
from testbed.provision.aspect import Change, Finding, Level
from testbed.provision.bundle import REMOTE, Bundle, taken_away

__all__ = ["Packages", "missing_packages"]

TIMEOUT_S = 3600.0
NOTES = f"{HOME}/packages"
DEBS = f"{REMOTE}/debs"
INSTALL = "--no-install-recommends --allow-downgrades"
# In a session of its own: what ends a step whose controller has gone must not end dpkg in the middle of a package.
APT = (
    "DEBIAN_FRONTEND=noninteractive APT_LISTCHANGES_FRONTEND=none setsid -w apt-get -q -y -o DPkg::Lock::Timeout=300 "
    "-o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold"
)
# An apt that says something where nobody reads it any more ends: it says it to a file first.
_APART = 'apart() { "$@" >"$note.log" 2>&1 </dev/null || { cat "$note.log" >&2; false; }; }'
#: Undoes an installation, in shell: is given its ``note`` and what ``apt`` is.
_UNDO = (
    _APART,
    'there() { dpkg-query -W -f "\\${db:Status-Abbrev}" "$1" 2>/dev/null | grep -q "^.[^n]"; }',
    'came() { for name in $(grep -v = "$note"); do if there "$name"; then echo "$name"; fi; done; }',
    # dpkg, not apt: apt would take along whatever was installed later and needs one of these. What a cut-off dpkg left
    # half done goes too.
    "remove() { apart env LC_ALL=C setsid -w dpkg --purge --force-remove-reinstreq $all; }",
    # apt waits by itself for another that is at work, dpkg does not.
    'busy() { grep -q "lock [a-z]* locked by another" "$note.log"; }',
    "patiently() { for _ in $(seq 60); do remove && return; busy || return 0; sleep 5; done; false; }",
    # apt would keep a mark for each that came along; it has none for those that are wanted for themselves. Where apt
    # cannot take it away, the mark stays and does no harm: the packages go all the same.
    "unmark() { apt-mark manual $come >/dev/null 2>&1 || true; }",
    # dpkg is given all that was to come: an apt that was left alone may still fetch it, and is waited for by this.
    'purge() { all="$(grep -v = "$note")"; test -z "$all" && return; come="$(came)"; test -z "$come" || unmark; '
    'patiently && come="$(came)" && test -z "$come"; }',
    f"install() {{ apart apt install {INSTALL} $old; }}",
    'back() { old="$(grep = "$note")"; test -z "$old" || install || { apt update && install; }; }',
    'give_up() { echo "$1, or leave them as they are by: sudo rm $note" >&2; exit 1; }',
    # First what came, which may be in the way of what went for it. A package that was upgraded may need what came:
    # that goes when the old version is there again.
    'undo() { purge || again=1; back || give_up "apt cannot bring back $(echo $old): let it have them"; '
    'test -z "$again" || purge || give_up "dpkg does not remove $(echo ${come:-$all}): remove what needs them now"; }',
    'again=; if test -e "$note"; then undo && rm -f "$note"; fi',
)


@dataclass(frozen=True)
class Packages:
    """Debian packages. Only missing ones are installed, and undoing removes exactly what came with them.

    What comes is only known to apt, so it is asked on the host, right before: the names go into a note there, and
    so do the versions of packages that have to be upgraded for it, or to go (chrony takes the place of timesyncd).

    Attributes:
        bundle: Where the packages come from instead of the host's own sources.
    """

    bundle: Bundle | None = None
    item: str = "packages"

    def changes(self, host: Host, facts: Facts) -> Iterator[Change]:
        """Yield the installing of what is missing."""
        missing = missing_packages(host, facts)
        files = self.bundle.debs_for(facts) if self.bundle else ()
        if not missing or facts.system.packages.interrupted or (self.bundle and not files):
            return
        note = f"{NOTES}/{hashlib.sha256(' '.join(missing).encode()).hexdigest()[:12]}"
        words = " ".join(shell_path(package) for package in missing)
        path, install = shell_path(note), f"apt install {INSTALL} {words}"
        foresee = f"{install} --dry-run >{path}.said"
        # "Inst NAME (NEW ...)" is said of what comes, "Inst NAME [OLD] (NEW ...)" of what is upgraded, and
        # "Remv NAME [OLD] ..." of what must go for it.
        read = (
            r"sed -n -e 's/^\(Inst\|Remv\) \([^ ]*\) \[\([^]]*\)\].*/\2=\3/p' -e 's/^Inst \([^ ]*\) (.*/\1/p'"
        )
        # A note that is there is of an attempt that was cut off: what it names may have come already.
        look = f"{{ {foresee} || {{ apt update && {foresee}; }}; }} && {read} {path}.said >{path}.part"
        keep = f"rm {path}.said && mv {path}.part {path}"
        folder = f"mkdir -p {shell_path(NOTES)} && {self._index()}"
        prepare = f"{self._apt()}{folder}{{ test -e {path} || {{ {look} && {keep}; }}; }}"
        install = (
            f"{self._apt()}note={path}; {_APART}; apart {install} || {{ apt update && apart {install}; }}"
        )
        install += f" && rm -f {path}.log"
        old = [package for package in missing if package_name(package) in facts.system.packages.installed]
        yield Change(
            host.name,
            self.item,
            f"install {', '.join(missing)}",
            "other versions" if old else "missing",
            ", ".join(missing),
            (
                *(self.bundle.puts(host.name, files, DEBS) if self.bundle else ()),
                Command(host.name, prepare, "ask apt what it would install", TIMEOUT_S, become=True),
                Command(host.name, install, f"install {', '.join(missing)}", TIMEOUT_S, become=True),
                *([Command(host.name, taken_away(DEBS), become=True)] if self.bundle else []),
            ),
            recorded={"packages": missing, "note": note},
        )

    def findings(self, host: Host, facts: Facts, changes: Sequence[Change]) -> Iterator[Finding]:
        """Yield what is missing and cannot be installed from here."""
        packages = facts.system.packages
        missing = missing_packages(host, facts)
        if packages.interrupted:
            level: Level = "failure" if missing else "warning"
            hint = "on the host: sudo dpkg --configure -a"
            yield Finding(host.name, level, self.item, "dpkg was cut off in the middle", hint)
        elif host.packages and not packages.apt and facts.system.access.groups:
            text = f"it has no apt to install {', '.join(host.packages)} with"
            yield Finding(
                host.name, "failure", self.item, text, "take `packages` out of the inventory for it"
            )
        elif missing and self.bundle and not self.bundle.debs_for(facts):
            text = f"the bundle has no packages for it, and {', '.join(missing)} is missing"
            yield Finding(host.name, "failure", self.item, text, "testbed bundle")
        elif missing and not any(change.item == self.item for change in changes):
            text, hint = f"{', '.join(missing)} is missing", "testbed provision"
            yield Finding(host.name, "warning", self.item, text, hint)

    def undo(self, host: Host, facts: Facts, recorded: Mapping[str, Any]) -> Iterator[Step]:
        """Yield what removes the packages that came, and brings the old versions of others back."""
        note = shell_path(recorded["note"])
        shell = f"{Packages()._apt()}note={note}; {'; '.join(_UNDO)}"
        yield Command(host.name, shell, "remove the packages that came", TIMEOUT_S, become=True)
        folder = shell_path(NOTES)
        shell = f"rm -f {note}.part {note}.said {note}.log; "
        shell += f"! test -d {folder} || rmdir --ignore-fail-on-non-empty {folder}"
        yield Command(host.name, shell, "remove the note of them", become=True)

    def _apt(self) -> str:
        """Return the definition of how apt is called; with a bundle, it takes packages from there alone."""
        options = APT
        if self.bundle is not None:
            folder = shell_path(DEBS)
            options += (
                f" -o APT::Sandbox::User=root -o Dir::Etc::sourcelist={folder}/testbed.list "
                f"-o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists={folder}/lists -o Dir::Cache={folder}/cache"
            )
        return f'apt() {{ {options} "$@"; }}; '

    def _index(self) -> str:
        """Return the command that makes apt read the bundle's index; without one, apt's own lists are tried first."""
        if self.bundle is None:
            return ""
        folder = shell_path(DEBS)
        # What is in the folder was checked against the bundle's digests.
        source = f'echo "deb [trusted=yes] file:"{folder}" ./" >{folder}/testbed.list'
        return (
            f"mkdir -p {folder}/lists/partial {folder}/cache/archives/partial && {source} && apt update && "
        )


def missing_packages(host: Host, facts: Facts) -> list[str]:
    """Return the packages that are to be installed, as the inventory spells them."""
    packages = facts.system.packages
    if not packages.apt:
        return []
    wanted = list(wanted_packages(host))
    venv = venv_package(host)
    # Debian's Python makes an environment only with this; one that is there needs it no more.
    if venv and facts.environment.recipe is None and venv.removesuffix("-venv") in packages.installed:
        wanted.append(venv)
    missing = []
    for package in dict.fromkeys(wanted):
        name, _, version = package.partition("=")
        there = packages.installed.get(name)
        if there is None or (version and there != version):
            missing.append(package)
    return missing
