"""Carry out a plan: steps to hosts, answers to records, every step in the journal."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.campaigns.executor import Executor
from testbed.campaigns.journal import Journal
from testbed.campaigns.lab_steps import ASK
from testbed.campaigns.phases import Kind, Phase
from testbed.campaigns.progress import Progress
from testbed.campaigns.trials import Trial
from testbed.errors import TestbedError
from testbed.hosts.answer import last_json
from testbed.hosts.fleet import Fleet
from testbed.hosts.steps import Completed, Fetch
from testbed.links.backends import shaping_hosts
from testbed.links.commands import history_command, show_command
from testbed.links.history import history_problems, history_tables
from testbed.links.scenario import links_rows, merged_counters, probe_rows
from testbed.links.traffic import dispatch_bytes, traffic_rows
from testbed.records import RecordWriter, read_manifest, read_payload_records, write_manifest

if TYPE_CHECKING:
    import pandas as pd

    from testbed.campaigns.work import Tables, Work

__all__ = ["Outcome", "Read", "Runner"]

Read = Callable[[Path, str, str, float], "Tables"]
"""Makes tables of the folder that was fetched of a trial, given the run, the trial, and the run's start."""

GIVE_UP_AFTER = (
    3  # trials that failed one after the other: something is wrong with the rack, not with a trial
)
CLOCKS_APART_S = 2.0  # how far our clock may be from the base station's, as far as a trial's begin goes


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


class Runner(Executor):
    """Carries out the phases of one run.

    Args:
        open_fleet: Makes the connections to the hosts.
        folder: The run's local folder.
        run: The run's name.
        started_unix: The run's start in unix seconds on the BS's clock.
        journal: Where every step is written before and after it.
        progress: Who is told how far the run is.
        clock_offsets_s: Each host's clock minus ours, where it is known.
        read: Makes tables of what was fetched of a trial; those of the base station's records where left out.
    """

    keeps_failed = False
    """Whether all records of a trial that failed are kept, and not only what happened to the devices in it."""

    def __init__(
        self,
        open_fleet: Callable[[], Fleet],
        folder: Path,
        run: str,
        started_unix: float,
        journal: Journal,
        progress: Progress,
        clock_offsets_s: Mapping[str, float] | None = None,
        read: Read = read_payload_records,
    ) -> None:
        super().__init__(open_fleet, progress, lambda n, phase, *rest: journal.write(n, phase.name, *rest))
        self.folder = folder
        self.run = run
        self.started_unix = started_unix
        self.progress = progress
        self.clock_offsets_s = clock_offsets_s or {}
        self.records = RecordWriter(folder)
        self._read = read
        self.outcome = Outcome()
        self._links_ok: bool | None = None
        self._backends: dict[str, dict[str, dict[str, str]]] = {}
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
        self.carry_out(phases, first_number)
        self.outcome.stopped = self.stopped
        return self.outcome

    def compute(self, work: Work, trials: Sequence[Trial]) -> None:
        """Compute the trials that need no rack, once it is done with the others.

        Args:
            work: What computes and writes them.
            trials: The trials.
        """
        for trial in trials:
            self.progress.computing(trial)
            work.compute(trial, self.records, self._now_s())
            self.outcome.completed.append(trial.name)
            self.progress.trial_done(trial)

    def interrupted(self) -> None:
        """Say what comes now that the user has stopped the run."""
        self.reporter.note("stopping: the links go back and what was recorded is fetched (again: at once)")

    def _offset_s(self, host: str) -> float:
        """Return a host's clock minus the base station's, as far as it is known."""
        bs = self.clock_offsets_s.get(self.fleet.inventory.base_station.name, 0.0)
        return self.clock_offsets_s.get(host, bs) - bs

    def _now_s(self) -> float:
        """Return the seconds since the run's start on the BS's clock, as far as we can tell it from here."""
        bs = self.fleet.inventory.base_station.name
        return time.time() + self.clock_offsets_s.get(bs, 0.0) - self.started_unix

    def do_phase(self, first: int, phase: Phase) -> None:
        """Do one phase; a trial that fails is recorded as such and the run goes on."""
        if phase.kind is Kind.TRIAL and phase.trial:
            self.reporter.phase(phase)
            self._trial(first, phase, phase.trial)
        else:
            super().do_phase(first, phase)

    def answered(self, phase: Phase, answers: Sequence[Completed]) -> None:
        """Turn what a phase's commands answered into records."""
        if phase.kind is Kind.LINKS and phase.trial:
            self._links_set(phase.trial, answers)
        elif phase.kind is Kind.VERIFY and phase.trial:
            rows = probe_rows(answers[0].stdout, t_s=self._now_s(), trial=phase.trial)
            self._links_ok = all(bool(row["ok"]) for row in rows)
            self.records.write("links", f"{phase.trial.name}-probe", rows)
        elif phase.kind is Kind.QUALITY:
            self._quality(phase)
        elif phase.kind is Kind.POWER:
            said = {answer.command.host: last_json(answer, "power")["power"] for answer in answers}
            self._add_to_manifest(board_power=said)
        elif phase.kind is Kind.RAILS:
            rules = {
                step.host: last_json(answer, "total_rule")["total_rule"]
                for step, answer in zip(phase.steps, answers, strict=True)
            }
            self._add_to_manifest(power_total=rules)

    def _add_to_manifest(self, **values: Any) -> None:
        write_manifest(self.folder, {**read_manifest(self.folder), **values})

    def _links_set(self, trial: Trial, answers: Sequence[Completed]) -> None:
        """Record the rates that were set, and what shapes each link in the manifest."""
        rows: list[dict[str, Any]] = []
        for answer in answers:
            said = last_json(answer, "links")
            rows += links_rows(said, t_s=self._now_s(), trial=trial)
            host = answer.command.host
            self._backends[host] = {link["device"]: link["backends"] for link in said["links"]}
        self.records.write("links", f"{trial.name}-set", rows)
        links = read_manifest(self.folder).get("links", {})
        shaped: dict[str, dict[str, str]] = {}
        for row in rows:
            shaped.setdefault(row["device"], {})[row["direction"]] = row["backend"]
        if links.get("backends") != shaped:
            self._add_to_manifest(links={**links, "backends": shaped})

    def _quality(self, phase: Phase) -> None:
        name = phase.name
        tables = read_payload_records(self.folder / "fetched" / name, self.run, name, self.started_unix)
        for table, rows in tables.items():
            self.records.write(table, name, rows)

    def _trial(self, first: int, phase: Phase, trial: Trial) -> None:
        row: dict[str, Any] = {
            "trial": trial.name,
            "order": trial.order,
            "policy": trial.policy,
            "scenario": trial.scenario,
            "repeat": trial.repeat,
            "concurrency": trial.concurrency,
            "state": "failed",
            "t_start_s": self._now_s(),
            "links_ok": self._links_ok,
        }
        tables: dict[str, list[dict[str, Any]] | pd.DataFrame] = {}
        try:
            tables = self._measured(trial, self.steps(first, phase), row)
            row["state"] = "completed"
            self.outcome.completed.append(trial.name)
            self._failures_in_row = 0
        except TestbedError as error:
            row["t_end_s"] = self._now_s()
            row["error"] = error.message
            self.outcome.failed[trial.name] = error.message
            self._failures_in_row += 1
            self.reporter.note(f"{trial.name} failed: {error.message}")
            tables = self._tables_of_failed(first, phase, trial, float(row["t_start_s"]))
        self.records.write_trial(row, tables)
        self.progress.trial_done(trial)
        if self._failures_in_row >= GIVE_UP_AFTER:
            raise TestbedError(
                f"{GIVE_UP_AFTER} trials failed one after the other, the last with: {row['error']}",
                hint=f"mend the cause, then: testbed run --resume {self.folder}",
            )

    def _tables_of_failed(
        self, first: int, phase: Phase, trial: Trial, begun_s: float
    ) -> dict[str, list[dict[str, Any]] | pd.DataFrame]:
        """Return what is kept of a trial that failed: what happened to the devices, since it tells why."""
        name = f"{trial.name}.failed"
        try:
            for place, step in enumerate(phase.steps):
                if isinstance(step, Fetch) and step.host == self.fleet.inventory.base_station.name:
                    source, target = f"{step.source}.failed", step.target.with_name(name)
                    late = replace(step, source=source, target=target, optional=True)
                    self._step(first + place, phase, late)
            fetched = self.folder / "fetched" / name
            tables = read_payload_records(fetched, self.run, trial.name, self.started_unix)
        except (TestbedError, OSError):
            return {"events": []}  # the trial's own error is told; events of an earlier start are gone
        # A folder of that name may be of an earlier start of this run.
        events = [row for row in tables.get("events", []) if row["t_s"] >= begun_s - CLOCKS_APART_S]
        return {**(tables if self.keeps_failed else {}), "events": events}

    def _measured(
        self, trial: Trial, answers: Sequence[Completed], row: dict[str, Any]
    ) -> dict[str, list[dict[str, Any]] | pd.DataFrame]:
        """Return the tables of a trial that was measured, and put its times into its row."""
        shapers = shaping_hosts(self.fleet.inventory)
        shows = _answers_to(answers, [show_command(host).shell for host in shapers])
        histories = _answers_to(answers, [history_command(host).shell for host in shapers])
        asked = [answer for answer in answers if f" payloads.{ASK} " in answer.command.shell]
        result = last_json(asked[0], "result")["result"]
        if any(result.get("unrecorded", {}).values()):  # a serving's records have an end
            left_out = ", ".join(f"{count} {what}" for what, count in result["unrecorded"].items())
            self.reporter.note(f"{trial.name}: its records were full; not in them: {left_out}")
        fetched = self.folder / "fetched" / trial.name
        tables: dict[str, Any] = {**self._read(fetched, self.run, trial.name, self.started_unix)}
        row["t_start_s"] = result["t_start_s"] - self.started_unix
        row["t_end_s"] = result["t_end_s"] - self.started_unix
        half = len(shows) // 2
        # Where nothing shapes nothing counts either, and the records speak alone.
        uncounted = {"links": [{"device": device.name} for device in self.fleet.inventory.devices]}
        before, after = (
            merged_counters([last_json(answer, "links") for answer in part]) if part else uncounted
            for part in (shows[:half], shows[half:])
        )
        tables["traffic"] = traffic_rows(
            trial.name,
            before,
            after,
            result["control_bytes"],
            result.get("data_bytes") or dispatch_bytes(tables.get("dispatches", [])),
            result.get("retransmitted_bytes"),
        )
        listed, wrong = [], []
        for answer in histories:
            host = answer.command.host
            history = last_json(answer, "changes")
            wrong += history_problems(history, host)
            listed.append(
                history_tables(
                    history,
                    trial=trial,
                    backends=self._backends.get(host, {}),
                    started_unix=self.started_unix + self._offset_s(host),
                    window_s=(row["t_start_s"], row["t_end_s"]),
                )
            )
        if wrong:
            row["links_error"] = "; ".join(wrong)
            self.reporter.note(f"{trial.name}: {row['links_error']}")
        if listed:
            import pandas as pd

            for table in ("links", "throughput"):
                tables[table] = pd.concat([of_host[table] for of_host in listed], ignore_index=True)
        return tables

    def listen(self, phase: Phase, line: str) -> None:
        """Show how far the base station is with a trial or a quality pass."""
        if phase.kind not in (Kind.TRIAL, Kind.QUALITY):
            return
        try:
            message = json.loads(line)
        except ValueError:
            return
        if isinstance(message, dict) and "of" in message:
            self.reporter.within(
                phase, int(message["done"]), int(message["of"]), str(message.get("what", ""))
            )


def _answers_to(answers: Sequence[Completed], shells: Sequence[str]) -> list[Completed]:
    """Return the answers to some commands, in the plan's order."""
    return [answer for answer in answers if answer.command.shell in shells]
