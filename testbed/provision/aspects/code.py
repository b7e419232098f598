"""The payload code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.config.inventory import Host
from testbed.hosts.facts import Facts
from testbed.hosts.payload import CODE, HOME, shell_path
from testbed.hosts.steps import Command, Put, Step
from testbed.provision.aspect import Change, Finding
from testbed.provision.code import PayloadCode

__all__ = ["Code"]


@dataclass(frozen=True)
class Code:
    """The payload code.

    Its record: ``current``, the digest of the code that was in use, or null; ``digest``, that of the code which was
    sent, and whether it was ``there`` before.

    Attributes:
        code: What the host should have.
    """

    code: PayloadCode
    item: str = "code"

    def changes(self, host: Host, facts: Facts) -> Iterator[Change]:
        """Yield what has to change."""
        digest = self.code.digest
        whole = facts.code.get(digest) == digest
        if whole and facts.code_current == digest:
            return
        steps: list[Step] = []
        if not whole:
            packed, folder, fresh = f"{digest}.tar.gz", digest, f"{digest}.new"
            unpack = [
                f"cd {shell_path(CODE)}",
                f"rm -rf {fresh} {folder}",
                f"mkdir {fresh}",
                f"tar -xzf {packed} -C {fresh}",
                f"mv {fresh} {folder}",
                f"rm {packed}",
            ]
            steps.append(Put(host.name, self.code.archive, f"{CODE}/{packed}", "send payload code"))
            steps.append(Command(host.name, " && ".join(unpack), "unpack payload code"))
        link = f"cd {shell_path(HOME)} && ln -sfn code/{digest} current.new && mv -T current.new current"
        steps.append(Command(host.name, link, "switch to the payload code"))
        before = facts.code_current or "none"
        if before == digest:
            before = f"{digest}, damaged"
        recorded = {"current": facts.code_current, "digest": digest, "there": digest in facts.code}
        yield Change(host.name, self.item, "send payload code", before, digest, tuple(steps), recorded)

    def findings(self, host: Host, facts: Facts, changes: Sequence[Change]) -> Iterator[Finding]:
        """Yield nothing: a change puts everything right."""
        yield from ()

    def undo(self, host: Host, facts: Facts, recorded: Mapping[str, Any]) -> Iterator[Step]:
        """Yield the way back to the code that was in use, and the removal of what was sent."""
        home, current = shell_path(HOME), recorded.get("current")
        back = "rm -f current current.new"
        if current:
            folder = shell_path(f"code/{current}")
            back = f"if [ -d {folder} ]; then ln -sfn {folder} current.new && mv -T current.new current; fi"
        parts = [f"cd {home}", back]
        if recorded.get("digest") and not recorded.get("there"):
            folder = shell_path(f"code/{recorded['digest']}")
            parts.append(f"rm -rf {folder} {folder}.new {folder}.tar.gz {folder}.tar.gz.part")
        shell = f"if [ -d {home} ]; then {' && '.join(parts)}; fi"
        yield Command(host.name, shell, "go back to the payload code of before")
