"""The command lines of the systemd backend, against stand-ins for systemd's own programs."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from payloads.services import systemd
from payloads.services.spec import Spec
from payloads.services.systemd import environment_file, run_command
from payloads.services.systemd_limits import limits

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
    if "--output=json" in arguments:
        print(json.dumps({{"MESSAGE": "the first words", "_SYSTEMD_INVOCATION_ID": "one"}}))
        print(json.dumps({{"MESSAGE": list(b"the last \\xff words"), "_SYSTEMD_INVOCATION_ID": "two"}}))
    else:
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
        again = 1 if "again" in unit else 0
        print(f"Result={{'success' if there else 'exit-code'}}\\nExecMainStatus=3\\nNRestarts={{again}}")
        print("InvocationID=two\\n")
        if there and "fleeting" in unit:
            (units / unit).unlink()
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


SHOWN = "--property=Id,ActiveState,SubState,MainPID,Result,ExecMainStatus,NRestarts,InvocationID"
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
        *(f"--property={each}" for each in limits("worker", system=False, home=tmp_path, user_home=tmp_path)),
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


@pytest.mark.unhurried
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


@pytest.mark.unhurried
def test_a_unit_that_fails_to_get_ready_shows_the_journal(host, calls):
    failed = host.start("never", "exit 3")
    assert failed.returncode == 1
    assert failed.stderr == (
        "the last words of never:\nthe first words\nthe last \ufffd words\n"
        "never: failed before it was ready: the last \ufffd words\n"
    )
    # Of the service's own words, without those of the manager about its unit.
    assert calls()[-1][-2:] == ["--lines=200", "_SYSTEMD_UNIT=testbed-never.service"]


@pytest.mark.unhurried
def test_a_unit_that_ended_or_was_restarted_says_its_last_line(host, calls):
    host.start("again", "echo hello")
    host.start("well", "echo hello")
    host.start("never", "exit 3")
    assert {name: host.service(name)["last_line"] for name in ("again", "well", "never")} == {
        "again": "the first words",
        "well": "",
        "never": "the last \ufffd words",
    }


@pytest.mark.unhurried
def test_the_holder_stops_the_units_and_their_guard(host, calls):
    holder = host.hold()
    host.start("worker", "echo hello")
    holder.stdin.close()
    assert holder.wait(30) == 0
    assert calls()[-1] == ["systemctl", "stop", "testbed_lease.service", "testbed-worker.service"]


@pytest.mark.unhurried
def test_stopping_everything_twice_is_no_error(host, calls):
    assert host.start("one", "exec sleep 60", "--ready-timeout", "0").returncode == 0
    assert "one: stopped" in host.run("stop", "--all").stdout
    again = host.run("stop", "--all")
    assert again.returncode == 0, again.stderr


@pytest.mark.unhurried
def test_a_unit_that_ends_while_it_is_to_be_stopped_is_no_error(host, calls):
    """Systemd ends what is bound to the lease, and forgets it at once, as soon as the lease is gone."""
    assert host.start("fleeting", "exec sleep 60", "--ready-timeout", "0").returncode == 0
    done = host.run("stop", "--all")
    assert (done.returncode, done.stderr) == (0, "")
    assert calls()[-1] == ["systemctl", "stop", "testbed_lease.service", "testbed-fleeting.service"]


def properties(name, *, system):
    return limits(name, system=system, home=Path("/root/.testbed"), user_home=Path("/root"))


def test_a_python_below_a_temporary_folder_stays_in_sight(monkeypatch):
    monkeypatch.setattr(sys, "prefix", "/tmp/lab/venv")
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    assert "BindReadOnlyPaths=/tmp/lab/venv" in properties("worker", system=True)
    assert not any("BindReadOnlyPaths" in each for each in properties("worker", system=False))
    monkeypatch.setattr(sys, "prefix", "/opt/venv")
    assert not any("BindReadOnlyPaths" in each for each in properties("worker", system=True))


def test_every_service_is_bounded_and_gains_no_rights():
    for system in (False, True):
        given = properties("worker", system=system)
        assert {"NoNewPrivileges=yes", "MemoryMax=90%", "LimitCORE=0"} <= set(given)
    # A user's own manager has no way to close the file system, and need not.
    assert not [each for each in properties("worker", system=False) if each.startswith(("Protect", "Cap"))]


def test_a_service_of_root_keeps_nothing_that_makes_root_almighty():
    given = properties("worker", system=True)
    assert "CapabilityBoundingSet=" in given
    assert "ProtectSystem=strict" in given
    assert "ReadWritePaths=/root/.testbed -/run/testbed" in given
    assert {"InaccessiblePaths=-/root/.ssh", "InaccessiblePaths=-/etc/ssh"} <= set(given)
    # Named at once: with one device alone, as ProtectClock= adds it, the GPU would be closed.
    assert {"DevicePolicy=closed", "DeviceAllow=char-* rw"} <= set(given)
    links = properties("linkd", system=True)
    assert [each for each in links if each.startswith("Cap")] == [
        "CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_SYS_MODULE CAP_SYS_ADMIN"
    ]
    # It makes network namespaces to try the kernel in, and may do nothing else with so wide a capability.
    assert "RestrictNamespaces=net" in links
    assert "SystemCallFilter=~@mount @swap @reboot @raw-io" in links
    assert "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK" not in links


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("name", ["worker", "linkd"])
def test_systemd_knows_every_property(name, tmp_path):
    lines = "\n".join(properties(name, system=True))
    unit = tmp_path / "testbed-it.service"
    unit.write_text(f"[Service]\nType=exec\nExecStart=/bin/true\n{lines}\n")
    unit.chmod(0o644)  # whatever the umask: it warns of one that everybody may write to
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    about = [line for line in done.stderr.splitlines() if unit.name in line]
    assert about == []


def test_a_holder_whose_code_is_in_memory_alone_starts_no_guard(monkeypatch):
    backend, asked = systemd.SystemdBackend(), []
    monkeypatch.setattr(systemd, "code_folder", lambda: "/none/such")
    monkeypatch.setattr(backend, "_call", lambda *words, **options: asked.append(words))
    monkeypatch.setattr(backend, "_is_active", lambda name: False)
    backend.lease_begins()
    assert asked == []
    # A guard that was never there has not ended.
    monkeypatch.setattr(systemd, "_LOOK_S", 0.0)
    assert backend.lost() == ""
    monkeypatch.setattr(backend, "_is_active", lambda name: True)
    assert backend.lost() == ""
    monkeypatch.setattr(backend, "_is_active", lambda name: False)
    assert backend.lost() == "testbed_lease.service has ended"
