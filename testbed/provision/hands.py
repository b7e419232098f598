"""What does steps on one host: holding it meanwhile, by one deadline, and waiting for it where it reboots."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Self

from testbed.config.inventory import Host
from testbed.errors import CommandError, ConnectError, DeadlineError, HostError, HostKeyError
from testbed.hosts.deadline import Deadline
from testbed.hosts.fleet import Fleet
from testbed.hosts.leases import Leases, holding_command
from testbed.hosts.steps import Command, Step
from testbed.hosts.transport import do_step
from testbed.provision.aspect import NEEDS_REBOOT
from testbed.provision.bounded import Bounded

__all__ = ["Hands", "Progress"]

Progress = Callable[[str, str], None]
"""Is told a host's name and what happens there (nothing more: an empty text), from the host's thread."""

REBOOT_TIMEOUT_S = 600.0
GOING_DOWN_S = 30.0
LOOK_TIMEOUT_S = 10.0
GOES_ON = (
    "what was done before is noted: once this is mended, the same command goes on from there, "
    "and `testbed provision --undo` brings back what there was"
)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 4.0


class Hands:
    """Does steps on one host. The host is held from the first step on; nothing is done where another has it.

    Args:
        fleet: The hosts' connections.
        host: The host.
        purpose: What for, in a word.
        deadline: When all must be done.
        progress: Is told what happens.

    Attributes:
        done: Whether something was done.
    """

    def __init__(
        self, fleet: Fleet, host: Host, purpose: str, deadline: Deadline, progress: Progress
    ) -> None:
        self.done = False
        self._fleet = fleet
        self._host = host
        self._purpose = purpose
        self._way = Bounded(fleet, host, deadline)
        self._progress = progress
        self._leases: Leases | None = None

    def hold(self) -> None:
        """Hold the host, unless it is held already.

        Raises:
            HostError: Somebody else has it, or the lease was lost.
        """
        if self._leases is None:
            hold = holding_command(self._host, self._purpose)
            leases = Leases(self._fleet)
            leases.take(replace(hold, timeout_s=self._way.deadline.timeout_s(hold.timeout_s)))
            self._leases = leases
        self._leases.check()

    def do(self, step: Step) -> None:
        """Do one step.

        Raises:
            HostError: It failed, or took too long, or somebody else has the host.
        """
        self._way.check(step.title)
        self.hold()
        self._progress(self._host.name, step.title)
        try:
            if isinstance(step, Command) and step.reboots:
                self._reboot(step)
            else:
                do_step(self._way, step)
        except CommandError as error:
            raise _in_words(error, step, GOES_ON if self.done else "") from error
        self.done = True

    def _reboot(self, step: Command) -> None:
        """Do a step in which the host may go down, and wait until it is there again."""
        before, failure = self._boot_id(), None
        try:
            self._way.run(step)
        except HostKeyError:
            raise
        except HostError as error:  # its connection is cut, or it is ended itself, where the host goes down
            failure = error
        self._progress(self._host.name, "wait for the reboot")
        if self._came_back(before):
            if self._leases is not None:
                self._leases.retake(self._host.name)
        elif failure is not None:
            raise failure

    def _came_back(self, before: str) -> bool:
        """Wait for the host and return whether it has booted since.

        One that goes on answering from the boot of before for a while does not reboot.

        Raises:
            DeadlineError: It did not come back.
        """
        deadline, going_down = self._way.deadline.sooner(REBOOT_TIMEOUT_S), Deadline(GOING_DOWN_S)
        self._fleet.reconnect(self._host.name)
        pause_s = FIRST_PAUSE_S
        last: HostError | None = None
        while not deadline.passed:
            time.sleep(deadline.timeout_s(pause_s))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            try:
                if self._boot_id() != before:
                    return True
                if going_down.passed:
                    return False
            except HostKeyError:
                raise
            except (ConnectError, DeadlineError) as error:
                last = error
        raise DeadlineError(
            self._host.name,
            f"did not come back from its reboot within {deadline}: {last or 'it never went down'}",
            hint="look at its console; run the same again when it is there",
        )

    def _boot_id(self) -> str:
        command = Command(
            self._host.name, "cat /proc/sys/kernel/random/boot_id", "look which boot it is", LOOK_TIMEOUT_S
        )
        return self._way.run(command).stdout.strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._leases is not None:
            self._leases.release()


def _in_words(error: CommandError, step: Step, hint: str) -> HostError:
    """Return a command's failure as what was to be done and what the host said; the command may fill a screen."""
    said = error.stderr.strip().splitlines()
    if error.exit_status == NEEDS_REBOOT:
        hint = "the same with `--reboot` reboots it, when nobody else works there"
    elif "ensurepip" in error.stderr:
        hint = "on the host: sudo apt install python3-venv"
    answer = said[-1] if said else f"no message, status {error.exit_status}"
    return HostError(error.host, f"could not {step.title or 'do a step'}: {answer}", hint=error.hint or hint)
