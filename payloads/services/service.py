"""One service under the supervisor: a small state machine around its process.

    running ── told to stop, or its process ended ──> ending ──> stopped | exited | failed
       ^                                                 └─────> waiting (for its restart)
       └───────────────────────────────────────────────────────────┘

It is in ``ending`` until its last process is gone: SIGTERM first, SIGKILL after STOP_S seconds.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Mapping

from payloads.services import logs, processes
from payloads.services.layout import read_json, service_folder, write_whole
from payloads.services.spec import Spec

__all__ = ["ACTIVE", "STOP_S", "Service"]

STOP_S = 3.0
ACTIVE = ("running", "ending", "waiting")
RESTARTS = 5
RESTART_WINDOW_S = 60.0
_BACK_OFF_S = 0.25
_MAX_BACK_OFF_S = 5.0


class Service:
    """A service, its process and what is to become of it."""

    def __init__(self, spec: Spec, environment: Mapping[str, str]) -> None:
        self.spec = spec
        self.environment = dict(environment)
        self.folder: Path = service_folder(spec.name)
        self.state = "stopped"
        self.reason = ""
        self.incarnation = int((read_json(self.folder / "state.json") or {}).get("incarnation", 0))
        self.token = ""
        self.pid = 0
        self._ticks = 0
        self._reaped = True
        self._was_ready = False
        self._restarted_at: list[float] = []
        self._due = 0.0
        self._outcome = "stopped"
        self._successor: tuple[Spec, Mapping[str, str]] | None = None

    @property
    def is_active(self) -> bool:
        """Tell whether it has processes, or will have."""
        return self.state in ACTIVE

    def start(self) -> None:
        """Start its process."""
        self.incarnation += 1
        self.token = f"{self.spec.name}:{os.urandom(8).hex()}"
        ready = self.folder / "ready"
        ready.unlink() if ready.exists() else None
        write_whole(self.folder / "spec.json", self.spec.to_json())
        environment = dict(self.environment, TESTBED_READY=str(ready), TESTBED_SERVICE=self.token)
        logs.note_start(self.folder, f"starts {self.spec.argv[0]}")
        output = logs.open_log(self.folder)
        try:
            self.pid = processes.spawn(self.spec.argv, environment, self.spec.directory, output)
        except OSError as error:
            self.pid = self._ticks = 0
            self._end("failed", f"cannot be started: {error.strerror}")
            return
        finally:
            os.close(output)
        # Its number is its own until it has been collected, so there is always something to read here.
        self._ticks = processes.start_ticks(self.pid) or 0
        self._reaped = False
        self.state, self.reason = "running", ""
        (self.folder / "pid").write_text(f"{self.pid}\n")
        self._save()
        if not self.spec.awaits_ready:
            ready.touch()

    def stop(self, reason: str) -> None:
        """Begin to end it."""
        self._successor = None
        if self.state == "running":
            self._begin_ending("stopped", reason)
        elif self.state == "ending":
            self._outcome, self.reason = "stopped", reason
            self._save()
        elif self.state == "waiting":
            self._end("stopped", reason)

    def become(self, spec: Spec, environment: Mapping[str, str]) -> None:
        """Start as ``spec`` says, once whatever runs now has ended."""
        self._restarted_at.clear()
        self._was_ready = False
        if self.state in ("running", "ending"):
            self.stop("replaced")
            self._successor = (spec, environment)
            return
        self.spec, self.environment = spec, dict(environment)
        self.start()

    def reaped(self, status: int) -> None:
        """Take note that its process has ended with the given wait status."""
        was_reaped, self._reaped = self._reaped, True
        if was_reaped or self.state != "running":
            return
        failed = status != 0
        # One that never got ready would only fail again, and whoever started it is waiting for the answer.
        self._was_ready = self._was_ready or (self.folder / "ready").exists()
        outcome = "failed" if failed else "exited"
        reason = _describe(status)
        if not self._was_ready:
            reason += " before it was ready"
        elif failed and self.spec.restart:
            now = time.monotonic()
            self._restarted_at = [at for at in self._restarted_at if now - at < RESTART_WINDOW_S]
            if len(self._restarted_at) < RESTARTS:
                outcome = "waiting"
            else:
                reason += f"; restarted {RESTARTS} times in {RESTART_WINDOW_S:.0f} s already, given up"
        self._begin_ending(outcome, reason)

    def tick(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        if self.state == "ending":
            left = self._members()
            if not left and self._reaped:
                self._ended()
            elif now >= self._due:
                processes.send_signal(left, signal.SIGKILL)
        elif self.state == "waiting" and now >= self._due:
            self._restarted_at.append(now)
            self.start()

    def _members(self) -> list[int]:
        return processes.members(self.pid, self.token, self._ticks)

    def _begin_ending(self, outcome: str, reason: str) -> None:
        self.state, self.reason, self._outcome = "ending", reason, outcome
        self._due = time.monotonic() + STOP_S
        self._save()
        processes.send_signal(self._members(), signal.SIGTERM)

    def _ended(self) -> None:
        if self._successor is not None:
            self.spec, environment = self._successor
            self.environment, self._successor = dict(environment), None
            logs.note(self.folder, "ended: replaced")
            self.start()
        else:
            self._end(self._outcome, self.reason)

    def _end(self, state: str, reason: str) -> None:
        """Record that it has no process any more."""
        self.state, self.reason = state, reason
        if state == "waiting":
            back_off_s = min(_BACK_OFF_S * 2 ** len(self._restarted_at), _MAX_BACK_OFF_S)
            self._due = time.monotonic() + back_off_s
        for name in ("ready", "pid"):
            path = self.folder / name
            path.unlink() if path.exists() else None
        logs.note(self.folder, f"{state}: {reason}")
        self._save()

    def _save(self) -> None:
        """Record the state where ``status`` and a later supervisor find it."""
        record = {
            "state": self.state,
            "reason": self.reason,
            "incarnation": self.incarnation,
            "restarts": len(self._restarted_at),
            "token": self.token,
            "pid": self.pid,
            "ticks": self._ticks,
            "boot": processes.boot_id(),
            "since_unix": round(time.time(), 3),
        }
        write_whole(self.folder / "state.json", json.dumps(record))


def _describe(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"killed by signal {number} ({signal.strsignal(number)})"
    return f"exited with status {os.WEXITSTATUS(status)}"
