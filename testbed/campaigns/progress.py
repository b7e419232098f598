"""How far a run is, for people: a bar on a terminal, a line a phase elsewhere. Always to standard error."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from testbed.campaigns.phases import Phase
from testbed.campaigns.trials import Trial

__all__ = ["PhaseProgress", "Progress", "time_left_s"]


def time_left_s(durations_s: Sequence[float], left: int) -> float | None:
    """Return the seconds that ``left`` trials will take, going by the mean of those done; None before the first."""
    return left * sum(durations_s) / len(durations_s) if durations_s else None


class Progress:
    """Shows the phases and trials of one run."""

    def __init__(self, trials: int, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._trials = trials
        self._durations_s: list[float] = []
        self._began = time.monotonic()
        self._trial: Trial | None = None
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("preparing", total=trials, left="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def phase(self, phase: Phase) -> None:
        """Say that a phase begins."""
        self._bar.update(self._task, description=phase.name)
        if phase.trial != self._trial:
            self._trial, self._began = phase.trial, time.monotonic()
        if phase.trial is None:
            self.note(phase.name, quiet_on_terminal=True)

    def computing(self, trial: Trial) -> None:
        """Say that a trial begins that needs no rack."""
        self._trial, self._began = trial, time.monotonic()
        self._bar.update(self._task, description=f"computing {trial.name}")

    def within(self, phase: Phase, done: int, of: int, what: str) -> None:
        """Say how far a trial or a quality pass is."""
        self._bar.update(self._task, description=f"{phase.name}: {what} ({done}/{of})")

    def trial_done(self, trial: Trial) -> None:
        """Say that a trial ended, and how long the others will take."""
        seconds = time.monotonic() - self._began
        self._durations_s.append(seconds)
        done = len(self._durations_s)
        left = time_left_s(self._durations_s, self._trials - done) or 0.0
        shown = f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left"
        self._bar.update(self._task, completed=done, left=shown)
        self.note(
            f"{trial.name} {trial.policy} in {trial.scenario}: {seconds:.1f} s ({done}/{self._trials}, {shown})",
            quiet_on_terminal=True,
        )

    def note(self, text: str, *, quiet_on_terminal: bool = False) -> None:
        """Print a line above the bar."""
        if not (quiet_on_terminal and self._console.is_terminal):
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class PhaseProgress:
    """Shows on a terminal which phase is under way, and how far the counted part is; elsewhere only what matters.

    Args:
        count: How much is counted in all, such as rows of a verification; 0 where nothing is.
        console: Where it is shown.
    """

    def __init__(self, count: int = 0, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        columns = [TextColumn("{task.description}")]
        counted = [BarColumn(), MofNCompleteColumn()] if count else []
        self._bar = Bar(
            *columns,
            *counted,
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("preparing", total=count or None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away: what comes now takes as long as the user wants."""
        self._bar.stop()

    def phase(self, phase: Phase) -> None:
        """Say that a phase begins."""
        self._bar.update(self._task, description=phase.name)

    def within(self, phase: Phase, done: int, of: int, what: str) -> None:
        """Say how far the counted part is."""
        self._bar.update(self._task, completed=done)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
