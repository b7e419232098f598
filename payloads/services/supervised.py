"""Services under our own supervisor: the client side, which starts the supervisor where it is missing."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, Mapping, Sequence

from payloads.services import logs, processes
from payloads.services.layout import (
    ServiceError,
    code_folder,
    locked,
    read_json,
    service_folder,
    service_names,
    services_folder,
)
from payloads.services.service import ACTIVE, STOP_S
from payloads.services.spec import Spec, inherited_environment
from payloads.services.supervisor import socket_address

__all__ = ["SupervisorBackend"]

_ANSWER_S = 5.0
_STOPPED_S = STOP_S + 3.0
_POLL_S = 0.03
_NOT_ENDED = {"last_reason": "", "last_line": ""}


class SupervisorBackend:
    """Starts, stops and describes services through the supervisor and the files it keeps."""

    name = "supervisor"

    def start(self, spec: Spec, *, initial_s: float, ready_s: float, again: bool = False) -> str:
        """Start a service and wait until it is ready; return what was done.

        Raises:
            ServiceError: It did not get ready; it has been stopped again.
        """
        request = {
            "op": "start",
            "spec": spec._asdict(),
            "environment": inherited_environment(),
            "initial_s": initial_s,
            "again": again,
        }
        reply = self._ask_or_begin(request)
        self._await_ready(spec.name, int(reply["incarnation"]), ready_s)
        return str(reply["did"])

    def stop(self, names: Sequence[str], reason: str = "stopped on request") -> list[str]:
        """Stop services and wait for their end; return those that ran."""
        if _supervisor() is None:
            with locked(_start_lock()):
                return [name for name in _end_leftovers(reason) if name in names]
        stopped: list[str] = self._ask({"op": "stop", "names": list(names), "reason": reason})["names"]
        _wait(lambda: not any(_state(name).get("state") in ACTIVE for name in stopped), _STOPPED_S)
        left = [name for name in stopped if _state(name).get("state") in ACTIVE]
        if left:
            raise ServiceError(f"{', '.join(left)}: cannot be ended: a process does not die of SIGKILL")
        return stopped

    def stop_all(self, reason: str) -> list[str]:
        """Stop all services and the supervisor too, whatever state it is in; return the services that ran."""
        with locked(_start_lock()):
            return self._stop_all(reason)

    def _stop_all(self, reason: str) -> list[str]:
        ran = [name for name in service_names() if _state(name).get("state") in ACTIVE]
        supervisor = _supervisor()
        if supervisor is not None:
            try:
                self._ask({"op": "shutdown", "reason": reason})
                _wait(lambda: not processes.is_alive(supervisor), _STOPPED_S)
            except ServiceError as error:
                print(f"{error}; it is killed", file=sys.stderr)
            if processes.is_alive(supervisor):
                processes.send_signal([supervisor.pid], signal.SIGKILL)
                _wait(lambda: not processes.is_alive(supervisor), 1.0)
        _end_leftovers(reason)
        return ran

    def status(self) -> list[dict[str, Any]]:
        """Describe every service of this host, as it is and not as it was last recorded."""
        return [self._describe(name) for name in service_names()]

    def tail(self, name: str, lines: int) -> str:
        """Return the last lines of a service's log."""
        return logs.tail(service_folder(name), lines)

    def lease_begins(self) -> None:
        """Clear away what an earlier lease left: the supervisor looks at this one itself."""
        with locked(_start_lock()):
            _end_leftovers("the supervisor was killed")

    def lost(self) -> str:
        """Say what has become of the supervisor if it was killed, else return an empty string."""
        record = read_json(services_folder(make=False) / "supervisor.json")
        if record is None or _supervisor() is not None:
            return ""
        return f"the supervisor (process {record['pid']}) was killed"

    def _describe(self, name: str) -> dict[str, Any]:
        folder, state = service_folder(name), _state(name)
        shown = {key: state.get(key) for key in ("state", "reason", "restarts", "pid", "since_unix")}
        if shown["state"] in ACTIVE and _supervisor() is None:
            shown.update(state="lost", reason="the supervisor was killed")
        if shown["state"] != "running":
            shown["pid"] = None
        ready = shown["state"] == "running" and (folder / "ready").exists()
        running = shown["state"] == "running"
        # Of one that runs it is told why it had to be started again.
        told = not running or bool(shown["restarts"])
        reason, line = logs.last_end(folder, again=running) if told else ("", "")
        ended = {"last_reason": reason or shown["reason"] or "", "last_line": line} if told else _NOT_ENDED
        return dict(shown, name=name, ready=ready, log=str(folder / "log"), **ended)

    def _await_ready(self, name: str, incarnation: int, ready_s: float) -> None:
        folder = service_folder(name)
        deadline = time.monotonic() + ready_s
        while True:
            state = _state(name)
            if state.get("incarnation", 0) >= incarnation:
                if state["state"] == "running" and (folder / "ready").exists():
                    return
                if state["state"] not in ACTIVE:
                    raise ServiceError(_failure(name, state["reason"]))
            if _supervisor() is None:
                raise ServiceError(f"{name}: the supervisor was killed")
            if time.monotonic() > deadline:
                reason = f"was not ready within {ready_s:g} s"
                self.stop([name], reason)
                raise ServiceError(_failure(name, f"{reason} and has been stopped"))
            time.sleep(_POLL_S)

    def _ask_or_begin(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Ask the supervisor, started first where there is none or one of other code."""
        with locked(_start_lock()):
            supervisor = _supervisor()
            if supervisor is not None and self._ask({"op": "hello"})["code"] != code_folder():
                print("services of other code are stopped first", file=sys.stderr)
                self._stop_all("replaced by other code")
                supervisor = None
            if supervisor is not None:
                try:
                    return self._ask(request)
                except ServiceError:
                    # It ends itself when it has nothing to do, which can be just now.
                    _wait(lambda: not processes.is_alive(supervisor), _POLL_S * 10)
                    if processes.is_alive(supervisor):
                        raise
            _end_leftovers("the supervisor was killed")
            _begin_supervisor()
            return self._ask(request)

    @staticmethod
    def _ask(request: Mapping[str, Any]) -> dict[str, Any]:
        folder_fd = os.open(services_folder(), os.O_RDONLY)
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_ANSWER_S)
                connection.connect(socket_address(folder_fd))
                with connection.makefile("rwb") as stream:
                    stream.write(json.dumps(request).encode() + b"\n")
                    stream.flush()
                    line = stream.readline()
        except OSError as error:
            raise ServiceError(f"the supervisor does not answer: {error}") from error
        finally:
            os.close(folder_fd)
        reply: dict[str, Any] = (
            json.loads(line) if line else {"ok": False, "error": "the supervisor has ended"}
        )
        if not reply["ok"]:
            raise ServiceError(reply["error"])
        return reply


def _start_lock() -> Path:
    """Return the file whose lock keeps starts, and the end of everything, apart."""
    return services_folder() / ".start.lock"


def _state(name: str) -> dict[str, Any]:
    return read_json(service_folder(name) / "state.json") or {}


def _failure(name: str, reason: str) -> str:
    return logs.failure(name, reason, logs.last_words(service_folder(name)))


def _wait(done: Any, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not done() and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _supervisor() -> processes.Process | None:
    """Return the living supervisor, or None."""
    record = read_json(services_folder(make=False) / "supervisor.json")
    if record is None:
        return None
    process = processes.Process(record["pid"], record["ticks"], record["boot"])
    return process if processes.is_alive(process) else None


def _end_leftovers(reason: str) -> list[str]:
    """End what a killed supervisor has left running, and record it; return the names of those services."""
    if _supervisor() is not None:
        return []  # another one has begun meanwhile, and nothing is left over any more
    ended = []
    for name in service_names():
        state = _state(name)
        if state.get("state") not in ACTIVE:
            continue
        ended.append(name)
        _end_processes(state)
        folder = service_folder(name)
        for file in ("ready", "pid"):
            path = folder / file
            path.unlink() if path.exists() else None
        state.update(state="stopped", reason=reason, since_unix=round(time.time(), 3))
        (folder / "state.json").write_text(json.dumps(state))
        logs.note(folder, f"stopped: {reason}")
    record = services_folder() / "supervisor.json"
    record.unlink() if record.exists() else None
    return ended


def _end_processes(state: Mapping[str, Any]) -> None:
    leader = processes.Process(state["pid"], state["ticks"], state["boot"])

    def left() -> list[int]:
        # Without its leader a session's number can be another's by now; the token cannot.
        session = leader.pid if processes.is_alive(leader) else 0
        return processes.members(session, state["token"], leader.ticks)

    processes.send_signal(left(), signal.SIGTERM)
    _wait(lambda: not left(), STOP_S)
    processes.send_signal(left(), signal.SIGKILL)
    _wait(lambda: not left(), 1.0)


def _begin_supervisor() -> None:
    """Start the supervisor as a daemon and wait until it answers."""
    ready_end, report_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            if os.fork() != 0:
                os._exit(0)
            _become_supervisor(report_end)
        finally:
            os._exit(1)
    os.close(report_end)
    os.waitpid(child, 0)
    with open(ready_end, "rb") as pipe:
        if not pipe.read(1):
            log = services_folder() / "supervisor.log"
            words = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
            raise ServiceError(f"the supervisor did not start: {words[-1] if words else 'it wrote nothing'}")


def _become_supervisor(report_end: int) -> None:
    log = Path(services_folder() / "supervisor.log")
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.set_inheritable(report_end, True)
    os.chdir("/")
    environment = dict(inherited_environment(), PYTHONPATH=code_folder())
    command = [sys.executable, "-m", "payloads.services", "supervise", "--ready-fd", str(report_end)]
    os.execve(command[0], command, environment)
