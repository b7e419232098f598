"""Services as transient systemd units, where a host has systemd.

A unit ``testbed_lease.service`` waits until the lease ends, and every service is bound to it, so that
systemd itself stops the services when that unit goes, however it goes. Root uses the system's manager,
others their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Mapping, Sequence

from payloads.services.layout import (
    ServiceError,
    code_folder,
    home_folder,
    locked,
    service_folder,
    service_names,
    services_folder,
    write_whole,
)
from payloads.services.lease import LeaseWatch
from payloads.services.logs import failure, line_of
from payloads.services.service import RESTART_WINDOW_S, RESTARTS, STOP_S
from payloads.services.spec import Spec, inherited_environment, read_spec
from payloads.services.systemd_limits import caches, limits

__all__ = [
    "GUARD",
    "SystemdBackend",
    "environment_file",
    "guard",
    "run_command",
    "services_here",
    "systemd_runs_here",
]

GUARD = "testbed_lease.service"
_SHOWN = "Id,ActiveState,SubState,MainPID,Result,ExecMainStatus,NRestarts,InvocationID"
_LAST_LINES = 200
_NO_SUCH_UNIT = 5  # systemctl's status
_LOOK_S = 2.0
_POLL_S = 0.05


def systemd_runs_here() -> bool:
    """Tell whether this user has a systemd manager (``TESTBED_SERVICES=systemd|supervisor`` overrides)."""
    asked = os.environ.get("TESTBED_SERVICES")
    if asked:
        return asked == "systemd"
    if not Path("/run/systemd/system").is_dir():
        return False
    return os.geteuid() == 0 or Path(f"/run/user/{os.geteuid()}/systemd").is_dir()


def services_here() -> Any:
    """Return what runs the services of this host: systemd, or our own supervisor."""
    if systemd_runs_here():
        return SystemdBackend()
    from payloads.services.supervised import SupervisorBackend

    return SupervisorBackend()


def guard(initial_s: float) -> int:
    """Wait until the lease ends; the first one may take ``initial_s`` seconds to appear."""
    watch = LeaseWatch()
    watch.allow(initial_s)
    while not watch.ended():
        time.sleep(0.5)
    return 0


def unit(name: str) -> str:
    """Return the unit of a service."""
    return f"testbed-{name}.service"


def run_command(spec: Spec, folder: Path, scope: Sequence[str]) -> list[str]:
    """Return the command that starts a service as a transient unit."""
    properties = [
        "Type=exec",
        f"BindsTo={GUARD}",
        f"After={GUARD}",
        "KillMode=control-group",
        f"TimeoutStopSec={STOP_S:g}",
        "StandardInput=null",
        f"WorkingDirectory={spec.directory}",
        f"EnvironmentFile={folder / 'environment'}",
        f"ExecStopPost=/bin/rm -f {folder / 'ready'}",
        *limits(spec.name, system="--user" not in scope, home=home_folder(), user_home=Path.home()),
    ]
    if spec.restart:
        properties += [
            "Restart=on-failure",
            "RestartSec=500ms",
            f"StartLimitIntervalSec={RESTART_WINDOW_S:g}",
            f"StartLimitBurst={RESTARTS + 1}",
        ]
    # The manager expands $NAME in arguments; a doubled $ is a plain one.
    argv = [argument.replace("$", "$$") for argument in spec.argv]
    return [
        "systemd-run",
        *scope,
        "--quiet",
        f"--unit={unit(spec.name)}",
        f"--description=testbed: {spec.name}",
        *(f"--property={each}" for each in properties),
        "--",
        *argv,
    ]


def environment_file(environment: Mapping[str, str]) -> str:
    """Return the text of an EnvironmentFile; a file, so that no value is seen in a list of processes."""
    lines = []
    for key, value in sorted(environment.items()):
        if not key.replace("_", "a").isalnum() or "\n" in value:
            continue  # exported shell functions and the like: systemd takes no such names
        for character in '\\"`$':
            value = value.replace(character, "\\" + character)
        lines.append(f'{key}="{value}"\n')
    return "".join(lines)


class SystemdBackend:
    """Starts, stops and describes services through ``systemd-run``, ``systemctl`` and ``journalctl``."""

    name = "systemd"

    def __init__(self) -> None:
        self._scope = [] if os.geteuid() == 0 else ["--user"]
        self._looked_s = 0.0
        self._guarded = False

    def start(self, spec: Spec, *, initial_s: float, ready_s: float, again: bool = False) -> str:
        """Start a service and wait until it is ready; return what was done."""
        with locked(services_folder() / ".start.lock"):
            did = self._start(spec, initial_s, again=again)
        self._await_ready(spec, ready_s)
        return did

    def _start(self, spec: Spec, initial_s: float, *, again: bool) -> str:
        folder = service_folder(spec.name)
        known, state = read_spec(folder), self._show([spec.name])[spec.name]
        active = state.get("ActiveState") in ("active", "activating", "deactivating")
        if active and known is not None and known.same_service(spec) and not again:
            return "already running"
        self._begin_guard(initial_s)
        if active:
            self._stop(unit(spec.name))
        # A unit that failed keeps its name until it is told to forget; for others this is an error to ignore.
        self._call(["systemctl", *self._scope, "reset-failed", unit(spec.name)], check=False)
        ready = folder / "ready"
        ready.unlink() if ready.exists() else None
        write_whole(folder / "spec.json", spec.to_json())
        environment = dict(inherited_environment(), TESTBED_READY=str(ready))
        if not self._scope:
            environment.update(caches(home_folder()))
        write_whole(folder / "environment", environment_file(environment))
        self._call(run_command(spec, folder, self._scope))
        if not spec.awaits_ready:
            ready.touch()
        return "restarted" if active else "started"

    def stop(self, names: Sequence[str]) -> list[str]:
        """Stop services and wait for their end; return those that ran."""
        running = self._running(names)
        if running:
            self._stop(*(unit(name) for name in running))
        return running

    def stop_all(self, reason: str) -> list[str]:
        """Stop all services and the unit that guards the lease; return the services that ran."""
        running = self._running(service_names())
        guard = [GUARD] if self._is_active(GUARD) else []
        if guard or running:
            self._stop(*guard, *(unit(name) for name in running))
        return running

    def status(self) -> list[dict[str, Any]]:
        """Describe every service of this host."""
        names = service_names()
        shown = self._show(names) if names else {}
        return [self._described(name, shown[name]) for name in names]

    def tail(self, name: str, lines: int) -> str:
        """Return the last lines that a service wrote, from the system's journal."""
        option = "--user-unit" if self._scope else "--unit"
        count = str(lines) if lines else "all"
        command = ["journalctl", "--quiet", "--no-pager", "--output=cat", f"--lines={count}"]
        return self._call([*command, f"{option}={unit(name)}"]).rstrip("\n")

    def lease_begins(self) -> None:
        """Start the unit that guards the lease, if its code is on the disk; the first service does too."""
        if Path(code_folder()).is_dir():
            self._begin_guard(0.0)

    def lost(self) -> str:
        """Say so if the unit that guards the lease was there and has ended, else return an empty string."""
        if time.monotonic() - self._looked_s < _LOOK_S:
            return ""
        self._looked_s = time.monotonic()
        active = self._is_active(GUARD)
        ended = self._guarded and not active
        self._guarded = active
        return f"{GUARD} has ended" if ended else ""

    def _begin_guard(self, initial_s: float) -> None:
        if self._is_active(GUARD):
            return
        # A unit that failed is kept, and with it the guard that it was bound to: its name would be taken.
        failed = [GUARD, *(unit(name) for name in service_names())]
        self._call(["systemctl", *self._scope, "reset-failed", *failed], check=False)
        command = [sys.executable, "-m", "payloads.services", "guard", f"--initial-lease={initial_s:g}"]
        environment = [f"--setenv=PYTHONPATH={code_folder()}"]
        if "TESTBED_HOME" in os.environ:
            environment.append(f"--setenv=TESTBED_HOME={os.environ['TESTBED_HOME']}")
        self._call(["systemd-run", *self._scope, "--quiet", f"--unit={GUARD}", *environment, "--", *command])

    def _await_ready(self, spec: Spec, ready_s: float) -> None:
        deadline = time.monotonic() + ready_s
        while not (service_folder(spec.name) / "ready").exists():
            shown = _describe(spec.name, self._show([spec.name])[spec.name])
            if shown["state"] in ("failed", "stopped", "exited"):
                raise ServiceError(self._failure(spec.name, f"{shown['state']} before it was ready"))
            if time.monotonic() > deadline:
                self.stop([spec.name])
                raise ServiceError(self._failure(spec.name, f"was not ready within {ready_s:g} s; stopped"))
            time.sleep(_POLL_S)

    def _failure(self, name: str, reason: str) -> str:
        return failure(name, reason, "\n".join(words for _, words in self._said(name)[-15:]))

    def _described(self, name: str, shown: Mapping[str, str]) -> dict[str, Any]:
        """Return a service's description with how it ended last; of one that runs again systemd tells no reason."""
        described = _describe(name, shown)
        reason = described["reason"] if described["state"] != "running" else ""
        return dict(described, last_reason=reason, last_line=self._last_line(name, shown))

    def _said(self, name: str) -> list[tuple[str, str]]:
        """Return what a service itself wrote last, without the manager's own lines: each start's name and the line."""
        match = f"{'_SYSTEMD_USER_UNIT' if self._scope else '_SYSTEMD_UNIT'}={unit(name)}"
        fields = "--output-fields=MESSAGE,_SYSTEMD_INVOCATION_ID"
        options = ["--quiet", "--no-pager", "--output=json", fields, f"--lines={_LAST_LINES}"]
        said = []
        try:
            lines = self._call(["journalctl", *options, match]).splitlines()
        except ServiceError as error:
            return [("", str(error))]  # such as a user who may not read the journal
        for line in lines:
            entry = json.loads(line)
            words = entry.get("MESSAGE") or ""
            # What is no UTF-8 comes as a list of bytes.
            text = words if isinstance(words, str) else bytes(words).decode(errors="replace")
            said.append((str(entry.get("_SYSTEMD_INVOCATION_ID") or ""), text))
        return said

    def _last_line(self, name: str, shown: Mapping[str, str]) -> str:
        """Return the last line that a service wrote before it ended; nothing where it has not ended."""
        running = _describe(name, shown)["state"] == "running"
        if running and not int(shown.get("NRestarts") or 0):
            return ""
        current = shown.get("InvocationID", "") if running else ""
        return line_of(
            "\n".join(words for start, words in self._said(name) if not current or start != current)
        )

    def _running(self, names: Sequence[str]) -> list[str]:
        shown = self._show(names) if names else {}
        return [name for name in names if shown[name].get("ActiveState") not in ("inactive", "failed", None)]

    def _is_active(self, unit_name: str) -> bool:
        command = ["systemctl", *self._scope, "is-active", "--quiet", unit_name]
        return subprocess.call(command, env=_environment()) == 0

    def _show(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        units = [unit(name) for name in names]
        text = self._call(["systemctl", *self._scope, "show", f"--property={_SHOWN}", *units])
        blocks = [
            dict(line.partition("=")[::2] for line in block.splitlines()) for block in text.split("\n\n")
        ]
        by_unit = {block.get("Id", ""): block for block in blocks}
        return {name: by_unit.get(unit(name), {}) for name in names}

    def _stop(self, *units: str) -> None:
        """Stop units and wait for their end. One that ends by itself meanwhile is forgotten, which is no error."""
        self._call(["systemctl", *self._scope, "stop", *units], fine=(0, _NO_SUCH_UNIT))

    @staticmethod
    def _call(command: Sequence[str], *, check: bool = True, fine: Sequence[int] = (0,)) -> str:
        try:
            done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, env=_environment())
        except FileNotFoundError as error:
            raise ServiceError(f"{command[0]}: not installed on this host") from error
        if check and done.returncode not in fine:
            words = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise ServiceError(
                f"{' '.join(command[:4])} ... ended with status {done.returncode}: {words[-1]}"
            )
        return done.stdout.decode(errors="replace")


def _environment() -> dict[str, str]:
    """Return this process's environment with the way to the user's manager, which a login without PAM does not tell."""
    runtime = f"/run/user/{os.geteuid()}"
    return dict({"XDG_RUNTIME_DIR": runtime} if Path(runtime).is_dir() else {}, **os.environ)


def _describe(name: str, shown: Mapping[str, str]) -> dict[str, Any]:
    active, result = shown.get("ActiveState"), shown.get("Result", "")
    states = {"active": "running", "activating": "running", "deactivating": "ending", "failed": "failed"}
    state = states.get(active or "", "stopped")
    if shown.get("SubState") == "auto-restart":
        state = "waiting"
    reason = "" if result in ("", "success") else f"{result} (status {shown.get('ExecMainStatus', '?')})"
    return {
        "name": name,
        "state": state,
        "reason": reason,
        "restarts": int(shown.get("NRestarts") or 0),
        "pid": int(shown.get("MainPID") or 0) or None,
        "since_unix": None,
        "ready": state == "running" and (service_folder(name) / "ready").exists(),
        "log": f"journalctl -u {unit(name)}",
    }
