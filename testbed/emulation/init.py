"""Process 1 of an emulated host: starts its services, starts them again when they end, buries orphans.

Run by path as a program of its own (``python -I -S init.py SERVICES.json``), with the standard library only.

SIGTERM ends the host. SIGINT reboots it, as Ctrl-Alt-Del does: every process is ended, this one last, with the
status by which the lab's keeper knows that the host is to start again with what is on its disk.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

_SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}
_LONGEST_WAIT_S = 10.0
_GRACE_S = 2.0
REBOOT_STATUS = 75
"""What process 1 ends with when the host is to start again."""


class Service:
    """One supervised program.

    Args:
        name: Its name.
        argv: Its command line, with the program's whole path.
        environment: Its environment.
    """

    def __init__(self, name: str, argv: list[str], environment: dict[str, str]) -> None:
        self.name = name
        self.argv = argv
        self.environment = environment
        self.pid = 0
        self.due = 0.0
        self._pause_s = 0.2
        self._started = 0.0

    def start(self) -> None:
        """Start the program in a session of its own."""
        self._started = time.monotonic()
        self.pid = os.posix_spawn(
            self.argv[0], self.argv, self.environment, setsid=True, setsigmask=[], setsigdef=_SIGNALS
        )

    def ended(self, status: int) -> None:
        """Note the end of the program and when it is due again: sooner the longer it had run."""
        now = time.monotonic()
        self._pause_s = (
            0.2 if now - self._started > _LONGEST_WAIT_S else min(self._pause_s * 2, _LONGEST_WAIT_S)
        )
        self.pid, self.due = 0, now + self._pause_s
        say(f"{self.name} ended with {describe(status)}; next start in {self._pause_s:.1f} s")


def say(text: str) -> None:
    """Write one line to the console."""
    print(f"init: {text}", file=sys.stderr, flush=True)


def describe(status: int) -> str:
    """Return a wait status in words."""
    code = os.waitstatus_to_exitcode(status)
    return f"status {code}" if code >= 0 else f"signal {-code}"


def bury(services: list[Service]) -> None:
    """Take the status of every child that has ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        for service in services:
            if service.pid == pid:
                service.ended(status)


def end_all() -> None:
    """End every process of the host but this one: with SIGTERM, and those that stay with SIGKILL."""
    deadline = time.monotonic() + _GRACE_S
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(-1, number)
        except ProcessLookupError:
            return
        while number == signal.SIGKILL or time.monotonic() < deadline:
            try:
                pid, _ = os.waitpid(-1, 0 if number == signal.SIGKILL else os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                time.sleep(0.01)


def main() -> int:
    """Supervise until SIGTERM."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    with open(sys.argv[1], encoding="utf-8") as file:
        services = [Service(**entry) for entry in json.load(file)]
    while True:
        now = time.monotonic()
        for service in services:
            if not service.pid and service.due <= now:
                service.start()
        waiting = [service.due - now for service in services if not service.pid]
        info = signal.sigtimedwait(_SIGNALS, max(0.0, min(waiting, default=3600.0)))
        if info is not None and info.si_signo == signal.SIGTERM:
            return 0
        if info is not None and info.si_signo == signal.SIGINT:
            say("rebooting")
            end_all()
            return REBOOT_STATUS
        bury(services)


if __name__ == "__main__":
    sys.exit(main())
