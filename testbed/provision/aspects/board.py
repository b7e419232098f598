"""The kind of board: whether its JetPack is one that testbed can use, and its name one that testbed knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.boards.kinds import unknown
from testbed.config.inventory import Host
from testbed.hosts.facts import Facts
from testbed.hosts.steps import Step
from testbed.provision.aspect import Change, Finding

__all__ = ["BoardKind"]


@dataclass(frozen=True)
class BoardKind:
    """The kind of board: whether its JetPack is one that testbed can use, and its name one that testbed knows."""

    item: str = "board"

    def changes(self, host: Host, facts: Facts) -> Iterator[Change]:
        """Yield nothing: there is nothing that could be changed from here."""
        yield from ()

    def findings(self, host: Host, facts: Facts, changes: Sequence[Change]) -> Iterator[Finding]:
        """Yield what no change puts right."""
        if facts.jetpack is not None and int(facts.jetpack.split(".")[0]) < 5:
            text = f"JetPack {facts.jetpack} (L4T {facts.l4t}) is not supported; its Python is too old"
            yield Finding(host.name, "failure", "board", text, "flash the board with JetPack 5, 6 or 7")
        if host.board and (said := unknown(host.board)):
            yield Finding(host.name, "note", "board", *said)

    def undo(self, host: Host, facts: Facts, recorded: Mapping[str, Any]) -> Iterator[Step]:
        """Yield nothing, since nothing is changed."""
        yield from ()
