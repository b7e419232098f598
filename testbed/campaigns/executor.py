"""Carry out phases: steps to hosts side by side, the hosts' leases held, and the closing phases whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from testbed.campaigns.ended import StartedServices
from testbed.campaigns.phases import CLOSING, PREPARING, Kind, Phase
from testbed.config.inventory import Host
from testbed.errors import HeldError, TestbedError
from testbed.hosts.fleet import Fleet
from testbed.hosts.leases import Leases, together
from testbed.hosts.steps import Command, Completed, Step
from testbed.hosts.transport import Transport
from testbed.links.backends import explained

__all__ = ["Executor", "Observer", "Reporter"]

Observer = Callable[[int, Phase, str, Step, str], None]
"""Is told of each step: its number, its phase, `begin`, `end` or `failed`, the step, and what went wrong."""


class Reporter(Protocol):
    """Who is told how far things are."""

    def phase(self, phase: Phase) -> None:
        """Hear that a phase begins."""

    def within(self, phase: Phase, done: int, of: int, what: str) -> None:
        """Hear how far a phase is."""

    def note(self, text: str) -> None:
        """Hear what people should read in any case."""


class Executor:
    """Carries out the phases of one plan.

    Args:
        open_fleet: Makes the connections to the hosts.
        reporter: Who is told how far the plan is.
        observe: Is told of each step.
    """

    def __init__(
        self, open_fleet: Callable[[], Fleet], reporter: Reporter, observe: Observer | None = None
    ) -> None:
        self._open_fleet = open_fleet
        self.fleet = open_fleet()
        self.reporter = reporter
        self._observe = observe
        self.leases = Leases(self.fleet)
        self._services = StartedServices()
        self._holds = False
        self.begun = False
        """Whether more was begun than to make the hosts ready."""
        self.stopped = ""
        """What went wrong while closing, or an empty string."""

    def carry_out(
        self, phases: Sequence[Phase], first_number: int = 0, stay: Callable[[], None] | None = None
    ) -> None:
        """Carry out all phases; whatever happens, the closing ones too, and the leases are let go.

        A host that refused its lease belongs to somebody else: nothing is closed there. And where it went no further
        than to make the hosts ready, nothing runs yet that is to be closed.

        Args:
            phases: The plan.
            first_number: The number of the plan's first step.
            stay: What is done between the last phase and the closing ones.

        Raises:
            TestbedError: A phase failed.
            KeyboardInterrupt: The user stopped it; it was closed in order first.
        """
        self._holds = any(phase.kind is Kind.LEASE for phase in phases)
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
                    self.begun = self.begun or phase.kind not in PREPARING
                    self.do_phase(first, phase)
                if stay:
                    stay()
            except KeyboardInterrupt:
                self.interrupted()
                self._reconnect()
                raise
            finally:
                for first, phase in closing:
                    self._close(first, phase)
        finally:
            self.leases.release()
            self._tell_of_leases()
            self.fleet.close()

    def do_phase(self, first: int, phase: Phase) -> None:
        """Do one phase; the first step's number is given."""
        self.reporter.phase(phase)
        self.answered(phase, self.steps(first, phase))
        if phase.kind is Kind.LEASE:
            self._tell_of_leases()

    def _tell_of_leases(self) -> None:
        """Say what the hosts had to say, what is the same for several of them once."""
        hosts: dict[str, list[str]] = {}
        while self.leases.told:
            host, _, text = self.leases.told.pop(0).partition(": ")
            hosts.setdefault(text, []).append(host)
        for text, names in hosts.items():
            whose = names[0] if len(names) == 1 else f"{len(names)} hosts ({', '.join(names)})"
            self.reporter.note(f"{whose}: {text}")

    def answered(self, phase: Phase, answers: Sequence[Completed]) -> None:
        """Take what a phase's commands answered, in the plan's order."""

    def interrupted(self) -> None:
        """Say what comes now that the user has stopped it."""
        self.reporter.note("stopping: the links go back (again: at once)")

    def listen(self, phase: Phase, line: str) -> None:
        """Take a line that a command of a phase says while it runs."""

    def _reconnect(self) -> None:
        """Start over with fresh connections: Ctrl-C may have cut the old ones in the middle of an answer."""
        self.leases.release()
        self.fleet.close()
        self.fleet = self._open_fleet()

    def _close(self, first: int, phase: Phase) -> None:
        """Run a closing phase; a host that fails here is told of and does not hide what went wrong before."""
        if not self.begun or not any(self._is_ours(phase, step) for step in phase.steps):
            return
        try:
            self.do_phase(first, phase)
        except (TestbedError, OSError) as error:
            self.stopped = self.stopped or str(error)
            self.reporter.note(f"while closing: {error}")

    def steps(self, first: int, phase: Phase) -> list[Completed]:
        """Do a phase's steps, hosts side by side; return the answers of the commands in plan order.

        Raises:
            TestbedError: A step failed; the other hosts' failures are told of.
        """
        done: dict[int, Completed] = {}
        for place, steps in phase.rounds():
            self._round(first + place, phase, steps, done)
        return [done[number] for number in sorted(done)]

    def _round(self, first: int, phase: Phase, steps: Sequence[Step], done: dict[int, Completed]) -> None:
        by_host: dict[str, list[tuple[int, Step]]] = {}
        for offset, step in enumerate(steps):
            if not self._is_ours(phase, step):
                continue
            by_host.setdefault(step.host, []).append((first + offset, step))

        def work(host: Host, _transport: Transport) -> None:
            for number, step in by_host[host.name]:
                answer = self._step(number, phase, step)
                if answer is not None:
                    done[number] = answer

        outcomes = self.fleet.each(work, self.fleet.inventory.select(list(by_host)))
        failures = [outcome.error for outcome in outcomes if outcome.error is not None]
        held = [failure for failure in failures if isinstance(failure, HeldError)]
        if held and len(held) == len(failures):
            raise together(held)
        if failures:
            if phase.kind not in CLOSING:
                self._services.explain(failures[0], self.fleet)
            for failure in failures[1:]:
                self.reporter.note(str(failure))
            raise failures[0]

    def _is_ours(self, phase: Phase, step: Step) -> bool:
        return phase.kind not in CLOSING or not self._holds or step.host in self.leases.taken

    def _step(self, number: int, phase: Phase, step: Step) -> Completed | None:
        self._tell(number, phase, "begin", step)
        answer: Completed | None = None
        try:
            if phase.kind is Kind.LEASE and isinstance(step, Command):
                self.leases.take(step)
            else:
                answer = self.fleet.do(step, on_line=lambda line: self.listen(phase, line))
        except BaseException as error:
            self._tell(number, phase, "failed", step, str(error) or type(error).__name__)
            refused = explained(error, step, self.fleet.inventory)
            if refused is not None:
                raise refused from error
            raise
        self._tell(number, phase, "end", step)
        self._services.note(step)
        return answer

    def _tell(self, number: int, phase: Phase, state: str, step: Step, detail: str = "") -> None:
        if self._observe:
            self._observe(number, phase, state, step, detail)
