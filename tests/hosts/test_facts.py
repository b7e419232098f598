import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.config.inventory import Host
from testbed.errors import HostError
from testbed.hosts.facts import (
    Facts,
    assume_facts,
    facts_command,
    gather_facts,
    jetpack_of,
    parse_facts,
)
from testbed.hosts.fake import Answer, FakeTransport
from testbed.hosts.probes import probe_text
from testbed.hosts.probes import python as probe
from testbed.hosts.remembered import recall

NANO: dict[str, Any] = {
    "name": "nano",
    "role": "device",
    "address": "x",
    "board": "jetson-orin-nano-8gb",
    "user": "nvidia",
}
NANO["clock"] = {"limit_ms": 1e15}  # its clock is off on purpose


@pytest.fixture
def host() -> Host:
    return Host.model_validate(NANO)


def raw_facts(**changes: Any) -> dict[str, Any]:
    environment = {"version": "3.10.12", "modules": {"torch": "2.5.0"}, "errors": {}, "recipe": None}
    environment |= {"cuda": "12.6", "capability": "8.7"}
    jtop = {"program": "/usr/local/bin/jtop", "group": True, "member": True, "socket": True, "unit": True}
    release = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64"
    host = {"hostname": "nano", "machine": "aarch64", "kernel": "5.15.148-tegra", "boot_id": "b"}
    host |= {"user": "nvidia", "memory_bytes": 8 << 30, "memory_free_bytes": 6 << 30}
    host |= {"disk_free_bytes": 100 << 30, "cpu_count": 6}
    board = {"board_model": "NVIDIA Jetson Orin Nano Developer Kit", "nv_tegra_release": release}
    return {
        "host": host,
        "board": board | {"power_mode": "15W"},
        "system": {"sudo": True, "qdiscs": None, "systemd": True},
        "python": {"environment": environment, "jtop": jtop, "client": {"version": "4.3.2"}},
        "own": {
            "folders": {".": 0o700},
            "code": {"folders": {}, "current": None},
            "record": [],
            "left": False,
        },
        "errors": {},
    } | changes


def answer(clocks: list[float], **changes: Any) -> str:
    lines = ["Welcome to Ubuntu", *(json.dumps({"clock": clock}) for clock in clocks), ""]
    return "\n".join([*lines, json.dumps({"facts": raw_facts(**changes)})])


def test_facts_of_a_board(host: Host) -> None:
    times = iter([10.2, 10.5, 10.5, 10.9, 11.0, 11.0])
    fake = FakeTransport("nano", [("command -v python3", answer([100.0, 100.4]))])
    facts = gather_facts(host, fake, clock=lambda: next(times))
    assert (facts.board_model, facts.l4t, facts.jetpack) == (
        "NVIDIA Jetson Orin Nano Developer Kit",
        "36.4.3",
        "6.2",
    )
    assert (facts.python, facts.torch, facts.cuda, facts.capability) == ("3.10.12", "2.5.0", "12.6", "8.7")
    assert facts.jtop.version == "4.3.2"
    # The readings were 89.5 and 89.9 s ahead when they arrived; the later one travelled the shorter time.
    assert facts.clock_offset_s == pytest.approx(89.9)
    assert facts.clock_error_s == pytest.approx(0.4)
    assert facts.qdiscs is None
    assert not facts.assumed
    assert "JetPack 6.2 (L4T 36.4.3), Python 3.10.12, torch 2.5.0 (CUDA 12.6)" in facts.describe()
    assert "assumed" not in facts.describe()
    json.dumps(facts.as_json())


@given(st.floats(-1e6, 1e6), st.lists(st.floats(0, 10), min_size=1, max_size=6))
def test_the_clock_offset_is_off_by_the_shortest_delay_at_most(
    offset_s: float, delays_s: list[float]
) -> None:
    host = Host.model_validate(NANO)
    sent = [1000.0 + i for i in range(len(delays_s))]
    arrivals = [
        (t + delay, json.dumps({"clock": t + offset_s})) for t, delay in zip(sent, delays_s, strict=True)
    ]
    facts = parse_facts(host, [*arrivals, (2000.0, json.dumps({"facts": raw_facts()}))])
    assert facts.clock_offset_s == pytest.approx(offset_s - min(delays_s), abs=1e-6)


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [
        ("32.7.1", "4"),
        ("35.4.1", "5.1.2"),
        ("36.4.3", "6.2"),
        ("36.4.0", "6.1"),
        ("36.9.9", "6"),
        ("38.2.0", "7.0"),
        ("99.0", None),
        (None, None),
    ],
)
def test_jetpack_follows_from_l4t(l4t: str | None, jetpack: str | None) -> None:
    assert jetpack_of(l4t) == jetpack


def test_a_host_without_python_and_one_without_an_answer(host: Host) -> None:
    missing = Answer(stderr="sh: 1: python3: not found", exit_status=127)
    with pytest.raises(HostError, match="no Python on the host") as caught:
        gather_facts(host, FakeTransport("nano", [("python3", missing)]))
    assert "apt install python3" in caught.value.hint
    with pytest.raises(HostError, match="no facts"):
        gather_facts(host, FakeTransport("nano", [("python3", "hello")]))


def test_every_assumed_fact_is_marked(host: Host) -> None:
    facts = assume_facts(host)
    assert facts.assumed
    assert facts.memory_bytes == 8 << 30
    for text in facts.describe().split(", "):
        assert text.endswith("(assumed)")
    known = {name for name, value in facts.as_json().items() if value not in (None, False, [], {}, ())}
    assert known - set(facts.assumed_fields) <= {"assumed", "assumed_fields"}


def interpreters() -> list[str]:
    """Return this Python, and of the older and newer ones those that are here."""
    found = [sys.executable]
    for minor in (6, 8, 10, 12):
        found += [
            str(path) for path in sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"))[:1]
        ]
    return found


@pytest.mark.parametrize("python", interpreters())
def test_the_probe_runs_on_a_real_host_of_any_python(python: str, tmp_path: Path) -> None:
    home = tmp_path / ".testbed"
    code = home / "code" / "0123456789abcdef" / "payloads"
    code.mkdir(parents=True)
    (code / "a.py").write_text("x = 1\n")
    (home / "current").symlink_to("code/0123456789abcdef")
    plain = {"manage": False, "interpreter": python}
    host = Host.model_validate(NANO | {"role": "base_station", "python": plain})
    command = facts_command(host, ("json",))
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python3").symlink_to(python)
    done = subprocess.run(
        ["sh", "-c", command.shell],
        input=command.stdin,
        env={"HOME": str(tmp_path), "PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    facts = parse_facts(host, [(0.0, line) for line in done.stdout.decode().splitlines()])
    version = subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout
    assert f"Python {facts.python}\n" == version
    assert facts.code_current == "0123456789abcdef"
    assert facts.code["0123456789abcdef"] != "0123456789abcdef"
    assert (facts.memory_bytes or 0) > 0
    assert facts.clock_error_s is not None


def test_the_parts_of_the_probe_are_one_program(host: Host) -> None:
    text = probe_text({"python": "/none", "modules": []}).decode()
    tree = ast.parse(text, feature_version=(3, 6))
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [name for name in modules if name is None or name.startswith("testbed")]
    # No name may stand for two things.
    kinds = (ast.FunctionDef, ast.Assign, ast.AnnAssign)
    names = [
        getattr(node, "name", None)
        or ast.unparse(getattr(node, "targets", [getattr(node, "target", None)])[0])
        for node in tree.body
        if isinstance(node, kinds)
    ]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)


def test_an_interpreter_that_is_missing_is_a_fact(tmp_path: Path) -> None:
    assert probe.environment("/none/python", ["json"]) == {"error": "/none/python: not found"}
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    script.chmod(0o755)
    assert probe.environment(str(script), ["json"]) == {"error": f"{script} ended with status 3: broken"}
    found = probe.environment(sys.executable, ["json", "no_such_module"])
    assert list(found["modules"]) == ["json"]
    assert found["errors"] == {"no_such_module": "ModuleNotFoundError: No module named 'no_such_module'"}


def test_what_could_be_imported_is_not_tried_again_while_nothing_changes(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    first = probe.environment(str(python), ["json"])
    again = probe.environment(str(python), ["json"])
    assert first == again
    known = first["fingerprint"]
    assert probe.environment(str(python), ["json"], known) == {"fingerprint": known, "unchanged": True}
    # Something else is asked for, or something was installed since: everything is tried.
    assert "unchanged" not in probe.environment(str(python), ["json", "csv"], known)
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path / "more"))
        (tmp_path / "more").mkdir()
        assert "unchanged" not in probe.environment(str(python), ["json"], known)
    # A recipe that was written since, such as at the end of a provisioning that was cut off.
    (tmp_path / "recipe.json").write_text('{"digest": "d"}')
    assert probe.environment(str(python), ["json"], known)["recipe"] == {"digest": "d"}


def test_a_host_that_has_not_changed_answers_from_memory(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    python = raw_facts()["python"]
    whole = python | {"environment": python["environment"] | {"fingerprint": "ab" * 32}}
    before = gather_facts(host, FakeTransport("nano", [("python3", answer([1.0], python=whole))]))
    same = python | {"environment": {"fingerprint": "ab" * 32, "unchanged": True}}
    fake = FakeTransport("nano", [("python3", answer([1.0], python=same))])
    after = gather_facts(host, fake, trust_memory=True)
    assert (after.torch, after.cuda, after.environment) == (before.torch, before.cuda, before.environment)
    command = facts_command(host, known="ab" * 32)
    assert command.line() == facts_command(host).line()  # a dry run and the run after it show the same
    assert b"'known': '" + b"ab" * 32 in command.stdin
    # What failed is tried again each time.
    failed = {"errors": {"torch": "OSError: no libcudart"}, "fingerprint": "cd" * 32}
    broken = python | {"environment": python["environment"] | failed}
    gather_facts(host, FakeTransport("nano", [("python3", answer([1.0], python=broken))]))
    assert recall(host)["fingerprint"] == "ab" * 32


def test_facts_are_frozen(host: Host) -> None:
    facts = Facts("nano")
    with pytest.raises(AttributeError):
        facts.hostname = "other"  # type: ignore[misc]
