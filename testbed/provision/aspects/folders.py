"""The folders of testbed in the user's home."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.config.inventory import Host
from testbed.hosts.facts import Facts
from testbed.hosts.payload import HOME, shell_path
from testbed.hosts.steps import Command, Step
from testbed.provision.aspect import Change, Finding

__all__ = ["FOLDERS", "Folders"]

FOLDERS = {".": 0o700, "code": 0o755, "objects": 0o755, "services": 0o755, "runs": 0o755, "models": 0o755}


@dataclass(frozen=True)
class Folders:
    """The folders of testbed in the user's home.

    Its record: ``made``, the folders that were missing, ``modes``, the permission bits of the others, and
    ``sudo_mark``, whether sudo had noted that the user uses it. Where ``.`` was made, the whole of ``~/.testbed`` goes
    at the end of an undoing.
    """

    item: str = "folders"

    def changes(self, host: Host, facts: Facts) -> Iterator[Change]:
        """Yield what has to change."""
        wrong = {name: mode for name, mode in FOLDERS.items() if facts.folders.get(name) != mode}
        if not wrong:
            return
        paths = {name: _path(name) for name in wrong}
        parts = [f"mkdir -p {' '.join(paths.values())}"]
        for mode in sorted(set(wrong.values())):
            chosen = " ".join(paths[name] for name in wrong if wrong[name] == mode)
            parts.append(f"chmod {mode:o} {chosen}")
        modes = {name: facts.folders[name] for name in wrong if name in facts.folders}
        before = "other permissions" if modes else "missing"
        names = ", ".join("~/.testbed" if name == "." else name for name in wrong)
        command = Command(host.name, " && ".join(parts), "make folders")
        made = [name for name in wrong if name not in modes]
        recorded = {"made": made, "modes": modes, "sudo_mark": facts.sudo_mark}
        yield Change(host.name, self.item, "make folders", before, names, (command,), recorded)

    def findings(self, host: Host, facts: Facts, changes: Sequence[Change]) -> Iterator[Finding]:
        """Yield nothing: a change puts everything right."""
        yield from ()

    def undo(self, host: Host, facts: Facts, recorded: Mapping[str, Any]) -> Iterator[Step]:
        """Yield the removal of the folders that were missing, and the permissions of the others."""
        made = [_path(name) for name in recorded.get("made", ()) if name != "."]
        if made:
            yield Command(host.name, f"rm -rf {' '.join(made)}", "remove folders", 600.0)
        for name, mode in recorded.get("modes", {}).items():
            shell = f"if [ -d {_path(name)} ]; then chmod {mode:o} {_path(name)}; fi"
            yield Command(host.name, shell, "give a folder its permissions back")


def _path(name: str) -> str:
    return shell_path(HOME if name == "." else f"{HOME}/{name}")
