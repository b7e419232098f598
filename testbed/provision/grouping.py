"""Problems of many hosts, equal ones told once. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.config.inventory import Host
from testbed.errors import ConnectError, DeadlineError, HostKeyError
from testbed.provision.aspect import Finding, Level

__all__ = ["Problem", "Told", "group_problems", "told_error", "told_finding"]

_LEVELS: tuple[Level, ...] = ("failure", "warning", "note")
# A quantity with its unit: it differs from host to host where the problem is the same.
_QUANTITY = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)(?= ?(?:ms|s|GiB|MiB|GB|MB|%)(?!\w))")

# A key that nobody has recorded yet; one that has changed is each host's own matter.
_UNRECORDED = re.compile(r"key is not recorded in .*: (\S+ SHA256:\S+)$")


@dataclass(frozen=True)
class Told:
    """One problem of one host.

    Attributes:
        host: The host's name.
        level: How bad it is.
        item: What it is about, in one word.
        text: What is wrong.
        hint: What to do about it.
        own: What stands for a word of the host's own where several hosts are told of at once, and that word.
    """

    host: str
    level: Level
    item: str
    text: str
    hint: str = ""
    own: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Problem:
    """A problem that some hosts have.

    Attributes:
        level: How bad it is.
        item: What it is about, in one word.
        text: What is wrong; quantities that differ are given as a range.
        hint: What to do about it.
        hosts: The hosts that have it.
    """

    level: Level
    item: str
    text: str
    hint: str
    hosts: tuple[str, ...]

    @property
    def whose(self) -> str:
        """The hosts for people: one by its name, several with their number before."""
        if len(self.hosts) == 1:
            return self.hosts[0]
        return f"{len(self.hosts)} hosts ({', '.join(self.hosts)})"

    def as_json(self) -> dict[str, Any]:
        """Return the problem as plain data."""
        return {
            "level": self.level,
            "item": self.item,
            "text": self.text,
            "hint": self.hint,
            "hosts": list(self.hosts),
        }

    def lines(self) -> Iterator[str]:
        """Yield the problem for people: what is wrong, and the hint beneath."""
        yield f"{self.level}: {self.whose}: {self.text}"
        if self.hint:
            yield f"  hint: {self.hint}"


def told_finding(host: Host, finding: Finding) -> Told:
    """Return a finding as one host's problem."""
    return Told(host.name, finding.level, finding.item, finding.text, finding.hint, _own(host))


def told_error(host: Host, error: Exception) -> Told:
    """Return the error that a host could not be asked or changed for as its problem."""
    item = "host"
    if isinstance(error, HostKeyError):
        item = "host key"
    elif isinstance(error, ConnectError | DeadlineError):
        item = "connection"
    text, own = str(error).removeprefix(f"{host.name}: "), _own(host)
    if found := _UNRECORDED.search(text):
        own = ("KEY", found[1]), *own
    return Told(host.name, "failure", item, text, getattr(error, "hint", ""), own)


def group_problems(told: Iterable[Told]) -> list[Problem]:
    """Return the problems with equal ones as one: the worst first, then those of the most hosts.

    Two are equal where only the host's own name, its address and quantities with a unit differ.

    Args:
        told: The problems of all hosts.
    """
    groups: dict[tuple[str, str, str, str], list[Told]] = {}
    for one in dict.fromkeys(told):
        key = (one.level, one.item, _skeleton(one.text, one.own), _skeleton(one.hint, one.own))
        groups.setdefault(key, []).append(one)
    problems = [_joined(group) for group in groups.values()]
    return sorted(problems, key=lambda problem: (_LEVELS.index(problem.level), -len(problem.hosts)))


def _own(host: Host) -> tuple[tuple[str, str], ...]:
    return ("ADDRESS", host.address), ("HOST", host.name)


def _without_own(text: str, own: Sequence[tuple[str, str]]) -> str:
    for stand_in, word in own:
        text = re.sub(rf"(?<![\w.-]){re.escape(word)}(?![\w-]|\.\w)", stand_in, text)
    return text


def _skeleton(text: str, own: Sequence[tuple[str, str]]) -> str:
    return _QUANTITY.sub("\0", _without_own(text, own))


def _joined(group: Sequence[Told]) -> Problem:
    first = group[0]
    hosts = tuple(dict.fromkeys(one.host for one in group))
    text, hint = first.text, first.hint
    if len(group) > 1:
        text = _ranged([_without_own(one.text, one.own) for one in group])
        hint = _ranged([_without_own(one.hint, one.own) for one in group])
    return Problem(first.level, first.item, text, hint, hosts)


def _ranged(texts: Sequence[str]) -> str:
    """Return texts of one skeleton as one text, each quantity as the range of all."""
    columns = list(zip(*(_QUANTITY.findall(text) for text in texts), strict=True))
    ranges = iter([_range(column) for column in columns])
    return _QUANTITY.sub(lambda _match: next(ranges), texts[0])


def _range(numbers: Sequence[str]) -> str:
    least, most = min(numbers, key=float), max(numbers, key=float)
    return least if float(least) == float(most) else f"{least} to {most}"
