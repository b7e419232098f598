"""How far a split is: a bar on a terminal while there is something to do, nothing elsewhere. To standard error."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

__all__ = ["ShardProgress"]


class ShardProgress:
    """Shows how many bytes are written, how fast, and how long the rest will take.

    Args:
        model: What is split.
        console: Where it is shown.
    """

    def __init__(self, model: str, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._console, self._model = console, model
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(f"splitting {model}", total=None)
        self._begun = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def waits(self) -> None:
        """Say that another process is at work on the same."""
        self._console.print(
            f"{self._model}: another testbed splits it right now; waiting for that one", style="dim"
        )

    def __call__(self, done_bytes: int, all_bytes: int) -> None:
        """Note how many bytes are done."""
        if not self._begun and done_bytes < all_bytes:
            self._begun = True
            # What was there already says nothing of how fast it goes.
            self._bar.reset(self._task, total=all_bytes, completed=done_bytes)
            self._bar.start()
        self._bar.update(self._task, completed=done_bytes, total=all_bytes)
