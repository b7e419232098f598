"""What an aspect of a host is: one thing that testbed looks after, changes, and puts back. Its terms, all pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from testbed.config.inventory import Host
from testbed.hosts.facts import Facts
from testbed.hosts.steps import Step
from testbed.provision.bundle import Bundle
from testbed.provision.code import PayloadCode

__all__ = ["NEEDS_REBOOT", "Aspect", "Change", "Finding", "Level", "Site"]

NEEDS_REBOOT = 75
"""The status of a step that did nothing, since it would have to reboot the host."""

Level = Literal["failure", "warning", "note"]


@dataclass(frozen=True)
class Change:
    """One difference between a host and what it should be.

    Attributes:
        host: The host's name.
        item: What differs: the name of its aspect.
        title: What is done, in a few words.
        before: What there is.
        after: What there will be.
        steps: What does it, in order.
        recorded: What there was, as JSON has it: all that the aspect's ``undo`` needs. It is noted on the host before
            the first step.
        reconnect: Whether it takes effect with the next login.
        reboots: Whether the host goes down in the last step: it is waited for, and looked at again. Where rebooting is
            not allowed, the change is a failure instead: "TITLE needs a reboot".
    """

    host: str
    item: str
    title: str
    before: str
    after: str
    steps: tuple[Step, ...]
    recorded: Mapping[str, Any] = field(default_factory=dict)
    reconnect: bool = False
    reboots: bool = False


@dataclass(frozen=True)
class Finding:
    """One thing that a person should know of a host.

    Attributes:
        host: The host's name.
        level: A failure keeps the host from being used; a warning may spoil results; a note is good to know.
        item: What it is about, in one word.
        text: What was found.
        hint: What to do about it.
    """

    host: str
    level: Level
    item: str
    text: str
    hint: str = ""


@dataclass(frozen=True)
class Site:
    """What all hosts of a fleet are given alike, and what provisioning may do.

    Attributes:
        code: The payload code that they should have.
        reboot: Whether a host may be rebooted where a change asks for it.
        bundle: Where packages come from instead of the internet.
    """

    code: PayloadCode
    reboot: bool = False
    bundle: Bundle | None = None


class Aspect(Protocol):
    """One thing of a host that testbed looks after."""

    @property
    def item(self) -> str:
        """Its name, one word: the ``item`` of its changes and findings, and of its entries in a host's record."""
        ...

    def changes(self, host: Host, facts: Facts) -> Iterator[Change]:
        """Yield what has to change on a host; nothing where it is as it should be."""
        ...

    def findings(self, host: Host, facts: Facts, changes: Sequence[Change]) -> Iterator[Finding]:
        """Yield what is wrong and no change puts right, each with its remedy.

        Args:
            host: The host.
            facts: What it is.
            changes: What is about to be changed there, by all aspects.
        """
        ...

    def undo(self, host: Host, facts: Facts, recorded: Mapping[str, Any]) -> Iterator[Step]:
        """Yield the steps that bring back what was recorded before one change.

        They must be harmless where the change was never finished, where it was undone already, and where a part of
        it was.

        Args:
            host: The host.
            facts: What it is, before anything is undone.
            recorded: The change's ``recorded``.
        """
        ...
