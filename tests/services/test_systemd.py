"""The command lines of the systemd backend, against stand-ins for systemd's own programs."""

from __future__ import annotations

import json
import stat
import sys

import pytest

from payloads.services.spec import Spec
from payloads.services.systemd import environment_file, run_command

# Keeps which units are active in a file each; answers as systemd's programs do; logs every call.
STAND_IN = """#!{python}
import json, pathlib, sys
here = pathlib.Path(__file__).parent
program, arguments = pathlib.Path(__file__).name, sys.argv[1:]
with open(here / "calls", "a") as calls:
    calls.write(json.dumps([program, *arguments]) + "\\n")
units = here / "units"
units.mkdir(exist_ok=True)
named = [a for a in arguments if a.endswith(".service") and not a.startswith("-")]
if program == "systemd-run":
    unit = next(a for a in arguments if a.startswith("--unit=")).partition("=")[2]
    (units / unit).touch()
    for argument in arguments:
        if argument.startswith("--property=EnvironmentFile="):
            for line in open(argument.rpartition("=")[2]):
                if line.startswith("TESTBED_READY") and "never" not in unit:
                    pathlib.Path(line.partition("=")[2].strip().strip('"')).touch()
elif program == "journalctl":
    print("words from the journal")
elif "is-active" in arguments:
    sys.exit(0 if (units / named[0]).exists() else 3)
elif "stop" in arguments:
    unknown = [unit for unit in named if not (units / unit).exists()]
    for unit in set(named) - set(unknown):
        (units / unit).unlink()
    if unknown:
        print(f"Failed to stop {{unknown[0]}}: Unit {{unknown[0]}} not loaded.", file=sys.stderr)
        sys.exit(5)
elif "show" in arguments:
    for unit in named:
        there = (units / unit).exists() and "never" not in unit
        print(f"Id={{unit}}\\nActiveState={{'active' if there else 'failed'}}\\nSubState=x\\nMainPID=42")
        print(f"Result={{'success' if there else 'exit-code'}}\\nExecMainStatus=3\\nNRestarts=0\\n")
elif "reset-failed" in arguments:
    sys.exit(1)
"""


@pytest.fixture
def calls(host, tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("systemd-run", "systemctl", "journalctl"):
        program = folder / name
        program.write_text(STAND_IN.format(python=sys.executable))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    host.environment.update(PATH=f"{folder}:{host.environment['PATH']}", TESTBED_SERVICES="systemd")
    return lambda: [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


SHOWN = "--property=Id,ActiveState,SubState,MainPID,Result,ExecMainStatus,NRestarts"
SPEC = Spec(
    "worker", ("sh", "-c", "echo $HOME"), restart=True, awaits_ready=True, directory="/root", code="/code"
)


def test_the_command_line_of_a_unit(tmp_path):
    assert run_command(SPEC, tmp_path, ["--user"]) == [
        "systemd-run",
        "--user",
        "--quiet",
        "--unit=testbed-worker.service",
        "--description=testbed: worker",
        "--property=Type=exec",
        "--property=BindsTo=testbed_lease.service",
        "--property=After=testbed_lease.service",
        "--property=KillMode=control-group",
        "--property=TimeoutStopSec=3",
        "--property=StandardInput=null",
        "--property=WorkingDirectory=/root",
        f"--property=EnvironmentFile={tmp_path}/environment",
        f"--property=ExecStopPost=/bin/rm -f {tmp_path}/ready",
        "--property=Restart=on-failure",
        "--property=RestartSec=500ms",
        "--property=StartLimitIntervalSec=60",
        "--property=StartLimitBurst=6",
        "--",
        "sh",
        "-c",
        "echo $$HOME",
    ]


def test_without_restart_the_unit_has_no_restart(tmp_path):
    assert not any("Restart" in part for part in run_command(SPEC._replace(restart=False), tmp_path, []))


def test_the_environment_is_quoted():
    text = environment_file({"A": 'say "hi" for $5', "BASH_FUNC_x%%": "() { :; }", "B": "two\nlines"})
    assert text == 'A="say \\"hi\\" for \\$5"\n'


def test_the_life_of_a_service_under_systemd(host, calls):
    started = host.start("worker", "echo hello")
    assert (started.returncode, started.stdout, started.stderr) == (0, "worker: started\n", "")
    unit, guard = "testbed-worker.service", "testbed_lease.service"
    assert [call if call[0] == "systemctl" else [*call[:1], *call[2:3]] for call in calls()] == [
        ["systemctl", "show", SHOWN, unit],
        ["systemctl", "is-active", "--quiet", guard],
        ["systemctl", "reset-failed", guard],
        ["systemd-run", f"--unit={guard}"],
        ["systemctl", "reset-failed", unit],
        ["systemd-run", f"--unit={unit}"],
    ]
    assert calls()[3][-6:] == [
        "--", sys.executable, "-m", "payloads.services", "guard", "--initial-lease=60",
    ]  # fmt: skip
    assert host.start("worker", "echo hello").stdout == "worker: already running\n"
    assert host.service("worker")["state"] == "running"
    assert host.run("logs", "worker", "--lines", "7").stdout == "words from the journal\n"
    assert calls()[-1] == [
        "journalctl", "--quiet", "--no-pager", "--output=cat", "--lines=7", "--unit=testbed-worker.service",
    ]  # fmt: skip
    assert host.run("stop", "worker").stdout == "worker: stopped\n"
    assert calls()[-1] == ["systemctl", "stop", "testbed-worker.service"]


def test_a_unit_that_fails_to_get_ready_shows_the_journal(host, calls):
    failed = host.start("never", "exit 3")
    assert failed.returncode == 1
    assert failed.stderr == "never: failed before it was ready; its last words:\nwords from the journal\n"


def test_the_holder_stops_the_units_and_their_guard(host, calls):
    holder = host.hold()
    host.start("worker", "echo hello")
    holder.stdin.close()
    assert holder.wait(30) == 0
    assert calls()[-1] == ["systemctl", "stop", "testbed_lease.service", "testbed-worker.service"]


def test_stopping_everything_twice_is_no_error(host, calls):
    assert host.start("one", "exec sleep 60", "--ready-timeout", "0").returncode == 0
    assert "one: stopped" in host.run("stop", "--all").stdout
    again = host.run("stop", "--all")
    assert again.returncode == 0, again.stderr
