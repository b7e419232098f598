"""What the verbs share: options, progress, and output (data to standard output, the rest to standard error)."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Self

import typer

if TYPE_CHECKING:
    from rich.status import Status

    from testbed.hosts.fleet import Outcome

__all__ = [
    "DEFAULT_INVENTORY",
    "DEFAULT_RESULTS",
    "DryRunOption",
    "HostProgress",
    "InventoryOption",
    "JsonOption",
    "LimitOption",
    "OtherLabOption",
    "ResultsOption",
    "end_if_failed",
    "end_with",
    "print_error",
    "print_failures",
    "print_json",
    "print_table",
    "say",
]

DEFAULT_INVENTORY = Path("inventory/emulated.yaml")
DEFAULT_RESULTS = Path("results")
_RED, _PLAIN = "\033[31m", "\033[0m"

InventoryOption = Annotated[
    Path,
    typer.Option("--inventory", "-i", envvar="TESTBED_INVENTORY", help="The inventory file of the lab."),
]
OtherLabOption = Annotated[
    Path | None,
    typer.Option(
        "--inventory",
        "-i",
        envvar="TESTBED_INVENTORY",
        help="Another lab than the one that the campaign names.",
    ),
]
ResultsOption = Annotated[
    Path,
    typer.Option("--results", envvar="TESTBED_RESULTS", file_okay=False, help="The folder of the results."),
]
LimitOption = Annotated[
    list[str] | None, typer.Option("--limit", "-l", metavar="HOST", help="Only this host; may be repeated.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and change nothing.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def say(text: str) -> None:
    """Write a message to standard error."""
    print(text, file=sys.stderr, flush=True)


def print_error(message: str, hint: str = "") -> None:
    """Write an error to standard error, its hint beneath it."""
    say(f"error: {message}")
    if hint:
        say(f"hint: {hint}")


def print_failures(outcomes: Iterable[Outcome[Any]]) -> list[Exception]:
    """Write what failed on which host to standard error, equal problems once; return the hosts' errors."""
    from testbed.errors import HeldError
    from testbed.hosts.leases import together
    from testbed.provision.grouping import group_problems, told_error

    failed = [(outcome.host, outcome.error) for outcome in outcomes if outcome.error is not None]
    if held := [error for _, error in failed if isinstance(error, HeldError)]:
        error = together(held)
        print_error(str(error), error.hint)
    rest = [told_error(host, error) for host, error in failed if not isinstance(error, HeldError)]
    for problem in group_problems(rest):
        print_error(f"{problem.whose}: {problem.text}", problem.hint)
    return [error for _, error in failed]


def end_if_failed(outcomes: Iterable[Outcome[Any]]) -> None:
    """Name the hosts that failed, and end the command if there are any."""
    if errors := print_failures(outcomes):
        end_with(errors)


def end_with(errors: Iterable[Exception]) -> NoReturn:
    """End the command for the hosts that failed: with 3 where all of them were refused for safety, else with 1."""
    from testbed.errors import RefusedError

    codes = {getattr(error, "exit_code", 1) for error in errors}
    raise typer.Exit(RefusedError.exit_code if codes == {RefusedError.exit_code} else 1)


def print_json(value: Any) -> None:
    """Write a value to standard output as JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(rows: Sequence[Sequence[str]], *, keys: int = 1, red: Collection[int] = ()) -> None:
    """Write rows to standard output in columns; the first row is the heading.

    Columns that a terminal has no room for follow beneath, each time after those that tell the rows apart.

    Args:
        rows: The rows, all of one length.
        keys: How many columns, from the first one on, tell the rows apart.
        red: The rows that are red on a terminal, by their place in ``rows``.
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    terminal = sys.stdout.isatty()
    room = shutil.get_terminal_size().columns if terminal else None
    for number, columns in enumerate(_fitting(widths, room, keys)):
        if number:
            print()
        for place, row in enumerate(rows):
            line = "  ".join(row[column].ljust(widths[column]) for column in columns).rstrip()
            print(f"{_RED}{line}{_PLAIN}" if terminal and place in red else line)


def _fitting(widths: Sequence[int], room: int | None, keys: int) -> Iterator[list[int]]:
    """Yield the columns of each part of a table that is to fit into some room; each begins with the key columns."""
    part = list(range(keys))
    for column in range(keys, len(widths)):
        width = sum(widths[one] + 2 for one in part) + widths[column]
        if room is not None and width > room and len(part) > keys:
            yield part
            part = list(range(keys))
        part.append(column)
    yield part


class HostProgress:
    """Shows on a terminal what the hosts are doing; elsewhere it is quiet.

    Args:
        title: What is going on.
        hosts: How many hosts take part.
    """

    def __init__(self, title: str, hosts: int) -> None:
        self._title = title
        self._hosts = hosts
        self._doing: dict[str, str] = {}
        self._lock = threading.Lock()
        self._status: Status | None = None

    def __call__(self, host: str, text: str) -> None:
        """Note what a host is doing; safe to call from any thread."""
        with self._lock:
            self._doing[host] = text
            if self._status is not None:
                doing = ", ".join(f"{name}: {what}" for name, what in self._doing.items() if what)
                done = sum(not what for what in self._doing.values())
                from rich.console import Group
                from rich.text import Text

                line = f"{self._title} ({done} of {self._hosts} done) {doing}"
                # A group, since a bare text is joined to the spinner's and folded then, over many lines.
                self._status.update(Group(Text(line, no_wrap=True, overflow="ellipsis")))

    def done(self, host: str) -> None:
        """Note that a host is done."""
        self(host, "")

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the display away while something is printed: it would swallow that."""
        with self._lock:
            if self._status is not None:
                self._status.stop()
            try:
                yield
            finally:
                if self._status is not None:
                    self._status.start()

    def end(self) -> None:
        """Take the display away for good: while it is there, all that is printed is folded to its width."""
        with self._lock:
            if self._status is not None:
                self._status.stop()
                self._status = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status(self._title)
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
