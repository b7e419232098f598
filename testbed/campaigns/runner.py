"""Carry out a plan: steps to hosts, answers to records, every step in the journal."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed.campaigns.journal import Journal
from testbed.campaigns.lease import Leases
from testbed.campaigns.plan import Kind, Phase
from testbed.campaigns.progress import Progress
from testbed.campaigns.trials import Trial
from testbed.config.inventory import Host
from testbed.errors import HostError, TestbedError
from testbed.hosts.fleet import Fleet
from testbed.hosts.steps import Command, Completed, Step
from testbed.hosts.transport import Transport
from testbed.links.scenario import links_rows, probe_rows
from testbed.links.traffic import traffic_rows
from testbed.records import RecordWriter, read_manifest, read_payload_records, write_manifest

__all__ = ["Outcome", "Runner"]

GIVE_UP_AFTER = (
    3  # trials that failed one after the other: something is wrong with the rack, not with a trial
)
CLOSING = (Kind.RESTORE, Kind.COLLECT)


@dataclass
class Outcome:
    """How a run went.

    Attributes:
        completed: The trials that are whole.
        failed: What each failed trial said.
        stopped: Why the run ended early, or an empty string.
    """

    completed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: str = ""


class Runner:
    """Carries out the phases of one run.

    Args:
        open_fleet: Makes the connections to the hosts.
        folder: The run's local folder.
        run: The run's name.
        started_unix: The run's start in unix seconds on the BS's clock.
        journal: Where every step is written before and after it.
        progress: Who is told how far the run is.
        clock_offset_s: The BS's clock minus ours.
    """

    def __init__(
        self,
        open_fleet: Callable[[], Fleet],
        folder: Path,
        run: str,
        started_unix: float,
        journal: Journal,
        progress: Progress,
        clock_offset_s: float = 0.0,
    ) -> None:
        self._open_fleet = open_fleet
        self.fleet = open_fleet()
        self.folder = folder
        self.run = run
        self.started_unix = started_unix
        self.journal = journal
        self.progress = progress
        self.clock_offset_s = clock_offset_s
        self.leases = Leases(self.fleet)
        self.records = RecordWriter(folder)
        self.outcome = Outcome()
        self._links_ok = True
        self._failures_in_row = 0

    def execute(self, phases: Sequence[Phase], first_number: int = 0) -> Outcome:
        """Carry out all phases; whatever happens, the closing ones too, and the leases are let go.

        Args:
            phases: The plan.
            first_number: The journal's number of the plan's first step.

        Raises:
            TestbedError: A phase that is not a trial failed.
            KeyboardInterrupt: The user stopped the run; it was closed in order first.
        """
        numbered: list[tuple[int, Phase]] = []
        number = first_number
        for phase in phases:
            numbered.append((number, phase))
            number += len(phase.steps)
        body = [(n, phase) for n, phase in numbered if phase.kind not in CLOSING]
        closing = [(n, phase) for n, phase in numbered if phase.kind in CLOSING]
        try:
            try:
                for first, phase in body:
                    self.leases.check()
                    self._phase(first, phase)
            except KeyboardInterrupt:
                self.progress.note(
                    "stopping: the links go back and what was recorded is fetched (again: at once)"
                )
                self._reconnect()
                raise
            finally:
                for first, phase in closing:
                    self._close(first, phase)
        finally:
            self.leases.release()
            self.fleet.close()
        return self.outcome

    def _reconnect(self) -> None:
        """Start over with fresh connections: Ctrl-C may have cut the old ones in the middle of an answer."""
        self.leases.release()
        self.fleet.close()
        self.fleet = self._open_fleet()

    def _close(self, first: int, phase: Phase) -> None:
        """Run a closing phase; a host that fails here is told of and does not hide what went wrong before."""
        try:
            self._phase(first, phase)
        except (TestbedError, OSError) as error:
            self.outcome.stopped = self.outcome.stopped or str(error)
            self.progress.note(f"while closing: {error}")

    def _now_s(self) -> float:
        """Return the seconds since the run's start on the BS's clock, as far as we can tell it from here."""
        return time.time() + self.clock_offset_s - self.started_unix

    def _phase(self, first: int, phase: Phase) -> None:
        self.progress.phase(phase)
        if phase.kind is Kind.TRIAL and phase.trial:
            self._trial(first, phase, phase.trial)
            return
        answers = self._steps(first, phase)
        if phase.kind is Kind.LINKS and phase.trial:
            rows = links_rows(_answer(answers[0]), t_s=self._now_s(), trial=phase.trial)
            self.records.write("links", f"{phase.trial.name}-set", rows)
        elif phase.kind is Kind.VERIFY and phase.trial:
            rows = probe_rows(answers[0].stdout, t_s=self._now_s(), trial=phase.trial)
            self._links_ok = all(bool(row["ok"]) for row in rows)
            self.records.write("links", f"{phase.trial.name}-probe", rows)
        elif phase.kind is Kind.QUALITY:
            self._quality(phase)
        elif phase.kind is Kind.RAILS:
            rules = {
                step.host: _answer(answer, "total_rule")["total_rule"]
                for step, answer in zip(phase.steps, answers, strict=True)
            }
            write_manifest(self.folder, {**read_manifest(self.folder), "power_total": rules})

    def _quality(self, phase: Phase) -> None:
        name = phase.name
        tables = read_payload_records(self.folder / "fetched" / name, self.run, name, self.started_unix)
        for table, rows in tables.items():
            self.records.write(table, name, rows)

    def _trial(self, first: int, phase: Phase, trial: Trial) -> None:
        row: dict[str, Any] = {
            "trial": trial.name,
            "order": int(trial.name[1:]),
            "policy": trial.policy,
            "scenario": trial.scenario,
            "repeat": trial.repeat,
            "state": "failed",
            "t_start_s": self._now_s(),
            "links_ok": self._links_ok,
        }
        tables: dict[str, list[dict[str, Any]]] = {}
        try:
            before, done, after = self._steps(first, phase)
            result = _answer(done, "result")["result"]
            fetched = self.folder / "fetched" / trial.name
            tables = read_payload_records(fetched, self.run, trial.name, self.started_unix)
            tables["traffic"] = traffic_rows(
                trial.name,
                _answer(before, "links"),
                _answer(after, "links"),
                result["control_bytes"],
                tables.get("dispatches", []),
            )
            row["t_start_s"] = result["t_start_s"] - self.started_unix
            row["t_end_s"] = result["t_end_s"] - self.started_unix
            row["state"] = "completed"
            self.outcome.completed.append(trial.name)
            self._failures_in_row = 0
        except TestbedError as error:
            row["t_end_s"] = self._now_s()
            row["error"] = error.message
            self.outcome.failed[trial.name] = error.message
            self._failures_in_row += 1
            self.progress.note(f"{trial.name} failed: {error.message}")
        self.records.write_trial(row, tables)
        self.progress.trial_done(trial)
        if self._failures_in_row >= GIVE_UP_AFTER:
            raise TestbedError(
                f"{GIVE_UP_AFTER} trials failed one after the other, the last with: {row['error']}",
                hint=f"mend the cause, then: testbed run --resume {self.folder}",
            )

    def _steps(self, first: int, phase: Phase) -> list[Completed]:
        """Do a phase's steps, hosts side by side; return the answers of the commands in plan order."""
        by_host: dict[str, list[tuple[int, Step]]] = {}
        for offset, step in enumerate(phase.steps):
            by_host.setdefault(step.host, []).append((first + offset, step))
        done: dict[int, Completed] = {}

        def work(host: Host, _transport: Transport) -> None:
            for number, step in by_host[host.name]:
                answer = self._step(number, phase, step)
                if answer is not None:
                    done[number] = answer

        outcomes = self.fleet.each(work, self.fleet.inventory.select(list(by_host)))
        failures = [outcome.error for outcome in outcomes if outcome.error is not None]
        if failures:
            for failure in failures[1:]:
                self.progress.note(str(failure))
            raise failures[0]
        return [done[number] for number in sorted(done)]

    def _step(self, number: int, phase: Phase, step: Step) -> Completed | None:
        self.journal.write(number, phase.name, "begin", step)
        answer: Completed | None = None
        try:
            if phase.kind is Kind.LEASE and isinstance(step, Command):
                self.leases.take(step)
            else:
                answer = self.fleet.do(step, on_line=self._listener(phase))
        except BaseException as error:
            self.journal.write(number, phase.name, "failed", step, str(error) or type(error).__name__)
            raise
        self.journal.write(number, phase.name, "end", step)
        return answer

    def _listener(self, phase: Phase) -> Callable[[str], None] | None:
        if phase.kind not in (Kind.TRIAL, Kind.QUALITY):
            return None

        def listen(line: str) -> None:
            try:
                message = json.loads(line)
            except ValueError:
                return
            if "of" in message:
                self.progress.within(
                    phase, int(message["done"]), int(message["of"]), str(message.get("what", ""))
                )

        return listen


def _answer(done: Completed, *keys: str) -> dict[str, Any]:
    """Return the JSON object that a command said last.

    Raises:
        HostError: It said something else.
    """
    text = done.stdout.strip()
    for candidate in (text, text.rpartition("\n")[2]):
        try:
            value = json.loads(candidate)
        except ValueError:
            continue
        if isinstance(value, dict) and value.keys() >= set(keys):
            return value
    raise HostError(
        done.command.host, f"`{done.command.shell}` answered what was not expected: {text[-200:]!r}"
    )
