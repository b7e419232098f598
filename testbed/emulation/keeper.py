"""The keeper: the one process that a lab lives by.

It owns the lab's network namespace and, as its children, process 1 of every host. Each of them asked the
kernel to be killed at the keeper's death, so that the end of the keeper, however it comes, is the end of
the lab. While it lives it brings the boards' power models up to date and answers on the lab's control
socket.

Run by ``testbed emulate up`` as ``python -S -m testbed.emulation.keeper LIFELINE REPORT``, with the lab
and its keys as JSON on standard input. Until a byte comes over the lifeline the lab is not handed over,
and its end ends the lab.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from testbed.emulation import cgroups, cleanup
from testbed.emulation.host import HostKeys
from testbed.emulation.namespaces import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    mount,
    name_process,
    unshare,
)
from testbed.emulation.network import bridge_lines, run_lines
from testbed.emulation.power import parse_script
from testbed.emulation.running_host import RunningHost, restart_host, start_host
from testbed.emulation.spec import LabSpec

__all__ = ["Keeper", "main"]

_READY_TIMEOUT_S = 60.0
_CHECK_EVERY_S = 0.1
_PRIORITY = -10


class Keeper:
    """A lab while it lives.

    Args:
        spec: The lab.
        keys: The SSH keys: ``client`` (``private``, ``public``) and ``hosts`` (the same, by name); and ``password``
            (``plain``, ``hash``), which ordinary users have.
        layout: Where its control groups go.
        reaper: The pipe to the reaper.
        lifeline: Where a byte hands the lab over.
        report: Where ``up`` reads what happens, as lines of JSON.
    """

    def __init__(
        self,
        spec: LabSpec,
        keys: dict[str, Any],
        *,
        layout: cgroups.Layout,
        reaper: int,
        lifeline: int,
        report: int,
    ) -> None:
        self.spec = spec
        self._keys = keys
        self._lifeline: int | None = lifeline
        self._report: int | None = report
        self._layout = layout
        self._reaper = reaper
        self._hosts: list[RunningHost] = []
        self._ending = False
        self._control: socket.socket | None = None
        self._started = time.time()

    def say(self, event: str, **facts: Any) -> None:
        """Tell ``up`` what has happened."""
        if self._report is not None:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._report, json.dumps({"event": event, **facts}).encode() + b"\n")

    def run(self) -> None:
        """Start the lab, keep it until it is told to end, and end it."""
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, self._end)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            self._make_files()
            self._make_network()
            self._write_state("starting")
            for number, host in enumerate(self.spec.hosts):
                if self._abandoned():
                    return
                keys = self._host_keys(host.name)
                self._hosts.append(start_host(self.spec, number, keys, self._layout, self._pid_namespace))
                self.say("started", host=host.name)
            self._write_state("starting")
            self._loop()
        finally:
            # The number of one that has ended may be another process's by now.
            left = [running.pid for running in self._hosts if running.ended is None]
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            for pid in left:
                os.waitpid(pid, 0)

    def _host_keys(self, host: str) -> HostKeys:
        return HostKeys(
            self._keys["hosts"][host]["private"],
            self._keys["hosts"][host]["public"],
            self._keys["client"]["public"] + "\n",
            self._keys["password"]["hash"],
        )

    def _end(self, _signal: int, _frame: FrameType | None) -> None:
        self._ending = True

    def _abandoned(self) -> bool:
        """Return whether ``up`` has ended before the lab is handed over."""
        assert self._lifeline is not None
        return self._ending or bool(select.select([self._lifeline], [], [], 0)[0])

    def _make_files(self) -> None:
        """Write the log from here on, and the keys."""
        files = self.spec.files
        log = os.open(files.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)
        client = self._keys["client"]
        _write_secret(files.key, client["private"])
        _write_secret(files.root / "id_ed25519.pub", client["public"])
        if self._keys["password"]["plain"]:
            _write_secret(files.password, self._keys["password"]["plain"] + "\n")
        lines = []
        for host in self.spec.hosts:
            names = [host.address, host.name]
            names = names if host.port == 22 else [f"[{name}]:{host.port}" for name in names]
            lines.append(f"{','.join(names)} {self._keys['hosts'][host.name]['public']}")
        _write_secret(files.known_hosts, "\n".join(lines) + "\n")
        files.boards.mkdir()

    def _make_network(self) -> None:
        """Move into the lab's own network and mount namespaces."""
        self._pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        unshare(CLONE_NEWNS | CLONE_NEWNET)
        os.write(self._reaper, b"n")
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        mount("testbed", str(self.spec.files.boards), "tmpfs", MS_NOSUID | MS_NODEV, "mode=0700")
        run_lines(bridge_lines(self.spec))
        self.spec.files.net.symlink_to(f"/proc/{os.getpid()}/ns/net")

    def _write_state(self, state: str) -> None:
        files = self.spec.files
        groups = cgroups.lab_folders(self._layout, self.spec.lab)
        text = json.dumps(
            {
                "state": state,
                "pid": os.getpid(),
                "start_ticks": cleanup.start_ticks(os.getpid()),
                "started_unix": self._started,
                "digest": self.spec.digest(),
                "groups": [str(path) for path in groups if path.is_dir()],
                "hosts": {running.host.name: running.pid for running in self._hosts},
                "limits": list(self._layout.problems),
            }
        )
        part = files.state.with_suffix(".part")
        part.write_text(text)
        part.rename(files.state)

    def _loop(self) -> None:
        """Tick, watch and answer until told to end."""
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._control.bind(str(self.spec.files.control))
        self._control.listen(8)
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        assert self._lifeline is not None
        poller.register(self._lifeline, select.POLLIN)
        period_s = 1 / self.spec.tick_hz
        due_s = time.monotonic()
        check_s = 0.0
        ready_s: float | None = time.monotonic() + _READY_TIMEOUT_S
        while not self._ending:
            now_s = time.monotonic()
            if now_s >= due_s:
                self._tick()
                # A tick that is late is not made up for: the model does not need it.
                due_s = max(due_s + period_s, now_s)
            if now_s >= check_s:
                check_s = now_s + _CHECK_EVERY_S
                for number, running in enumerate(self._hosts):
                    running.check()
                    if running.again_s is not None and now_s >= running.again_s:
                        self._restart(number, running)
                if ready_s is not None and self._became_ready(now_s > ready_s):
                    ready_s = None
            for descriptor, _ in poller.poll(max(0.0, due_s - time.monotonic()) * 1000):
                if descriptor == self._lifeline:
                    poller.unregister(descriptor)
                    self._handed_over()
                else:
                    self._answer()

    def _restart(self, number: int, running: RunningHost) -> None:
        """Start a host again that has rebooted; one that does not start is down, and the others go on."""
        try:
            keys = self._host_keys(running.host.name)
            restart_host(self.spec, number, keys, running, self._pid_namespace)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"{running.host.name} did not start again: {error}", flush=True)
        self._write_state("up")

    def _tick(self) -> None:
        now_ns = time.monotonic_ns()
        for running in self._hosts:
            if running.board is not None:
                running.board.tick(now_ns)

    def _became_ready(self, too_late: bool) -> bool:
        """Tell ``up`` when all hosts answer, or which one will not."""
        waiting = [running for running in self._hosts if running.state != "up"]
        if not waiting:
            self._write_state("up")
            self.say("ready")
            return True
        ended = [running for running in waiting if running.ended is not None]
        if ended or too_late:
            running = (ended or waiting)[0]
            what = "ended at once" if ended else f"no {'jtop' if running.sshd else 'sshd'} after a minute"
            console = self.spec.files.console(running.host.name).read_text().strip().splitlines()
            raise OSError(f"{running.host.name}: {what}: {console[-1] if console else 'no message'}")
        return False

    def _handed_over(self) -> None:
        assert self._lifeline is not None
        if os.read(self._lifeline, 1) == b"":
            print("the command that started the lab is gone before it was up", flush=True)
            self._ending = True
        os.close(self._lifeline)
        self._lifeline = None
        if self._report is not None:
            os.close(self._report)
            self._report = None

    def _answer(self) -> None:
        """Answer one request on the control socket: one line of JSON each way."""
        assert self._control is not None
        connection, _ = self._control.accept()
        with connection, contextlib.suppress(OSError):
            connection.settimeout(5)
            try:
                with connection.makefile("r") as lines:
                    answer = self._do(json.loads(lines.readline()))
            except (ValueError, KeyError, TypeError) as error:
                answer = {"error": str(error)}
            connection.sendall(json.dumps(answer).encode() + b"\n")

    def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "status":
            return self._status()
        if request["do"] == "load":
            steps = parse_script(request["script"])
            board = next((r.board for r in self._hosts if r.host.name == request["host"]), None)
            if board is None:
                raise ValueError(f"{request['host']} is no board of this lab")
            now_ns = time.monotonic_ns()
            board.start_script(steps, now_ns)
            return {"start_mono_ns": now_ns, "level": board.level}
        raise ValueError(f"unknown request {request['do']!r}")

    def _status(self) -> dict[str, Any]:
        used = time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID)
        hosts = []
        for running in self._hosts:
            board = running.board
            hosts.append(
                {
                    "name": running.host.name,
                    "state": running.state,
                    "boots": running.boots,
                    "pid": running.pid,
                    "memory_mib": cgroups.memory_of(running.group.memory_file) >> 20,
                    "load": round(board.level, 3) if board else None,
                    "power_mw": round(board.power_mw) if board else None,
                    "temperature_c": round(board.temperature_c, 1) if board else None,
                }
            )
        return {
            "hosts": hosts,
            "keeper_cpu_s": round(used, 3),
            "uptime_s": round(time.time() - self._started, 1),
        }


def _write_secret(path: Path, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def main() -> int:
    """Keep one lab."""
    lifeline, report = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(lifeline, False)
    os.set_inheritable(report, False)
    os.umask(0o022)
    data = json.load(sys.stdin)
    spec = LabSpec.from_json(data["spec"])
    layout = cgroups.find_layout()
    spec.files.root.mkdir(mode=0o700)
    reaper = cleanup.fork_under_reaper(spec.files.root, cgroups.lab_folders(layout, spec.lab))
    name_process("testbed-keeper")
    keeper = Keeper(spec, data["keys"], layout=layout, reaper=reaper, lifeline=lifeline, report=report)
    try:
        keeper.run()
    except Exception as error:
        traceback.print_exc()
        keeper.say("error", message=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
