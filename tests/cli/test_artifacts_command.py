"""`testbed artifacts` against scripted hosts: what is asked, what is shown, and who is left alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.artifacts.kept import age_seconds, in_bytes, size_bytes
from testbed.cli import main
from testbed.errors import InputError
from testbed.hosts.fake import Answer, FakeTransport
from testbed.hosts.fleet import Fleet

LAB = """\
lab: shelf
hosts:
  bs: {role: base_station, address: 10.0.0.1}
  nano: {role: device, address: 10.0.0.2}
"""
FREE = json.dumps({"reserved": None, "held": None})
SHOWN = json.dumps(
    {
        "objects": 3,
        "bytes": 4_200_000,
        "in_use": 1,
        "in_use_bytes": 200_000,
        "parts": 1,
        "unused_s": 200_000.0,
        "free_bytes": 5e9,
    }
)
GONE = json.dumps(
    {
        "removed": [{"digest": "a" * 64, "size_bytes": 5_000_000, "reason": "age"}],
        "removed_bytes": 5_000_000,
        "parts": 0,
        "parts_bytes": 0,
        "kept": 2,
        "kept_bytes": 1000,
        "in_use": 2,
        "in_use_bytes": 1000,
        "dry_run": False,
    }
)


@pytest.fixture
def testbed(tmp_path: Path, monkeypatch, capsys):
    """Run the command line on hosts with a script; return exit code, output and errors."""
    (tmp_path / "lab.yaml").write_text(LAB)

    def run(scripts, *words: str):
        transports = {name: FakeTransport(name, script) for name, script in scripts.items()}
        monkeypatch.setattr(Fleet, "transport", lambda _self, name: transports[name])
        monkeypatch.setattr(sys, "argv", ["testbed", "artifacts", *words, "-i", str(tmp_path / "lab.yaml")])
        with pytest.raises(SystemExit) as caught:
            main.run()
        shown = capsys.readouterr()
        for transport in transports.values():
            transport.finish()
        return caught.value.code, shown.out, shown.err

    return run


def test_what_hosts_hold_is_a_table(testbed):
    code, out, _ = testbed({name: [("artifacts show", SHOWN)] for name in ("bs", "nano")}, "show")
    assert code == 0
    assert [line.split("  ")[0] for line in out.splitlines()] == ["host", "bs", "nano"]
    for words in ("4.2 MB", "1 (200.0 kB)", "2 d", "5.0 GB"):
        assert words in out


def test_what_a_login_script_says_is_no_answer_and_nonsense_is_the_hosts_failure(testbed):
    scripts = {
        "bs": [("artifacts show", f"welcome\n{SHOWN}\n")],
        "nano": [("artifacts show", "Segmentation")],
    }
    code, out, err = testbed(scripts, "show")
    assert code == 1
    assert "4.2 MB" in out
    assert err.startswith("error: nano: ")
    assert "answered what was not expected: 'Segmentation'" in err


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (1, "(ModuleNotFoundError: No module named 'payloads')"),
        (127, "sh: 1: exec: /home/ann/.testbed/venv/bin/python: not found"),
    ],
)
def test_a_host_that_was_never_provisioned_is_named_with_the_remedy(testbed, status, said):
    failure = Answer(stderr=said, exit_status=status)
    code, _, err = testbed({"nano": [("artifacts show", failure)]}, "show", "--limit", "nano")
    assert code == 1
    assert said in err
    assert "testbed provision" in err


def test_a_collection_asks_whose_the_host_is_first(testbed):
    script = [("lease show", FREE), ("artifacts gc --older-than 2.592e[+]06 --keep-bytes 20000000000$", GONE)]
    code, out, _ = testbed({"nano": script}, "gc", "--older-than=30d", "--keep-bytes=20GB", "--limit=nano")
    assert code == 0
    assert "1 (5.0 MB)" in out


def test_a_host_that_somebody_else_has_is_left_alone(testbed):
    other = {"kind": "reservation", "owner": "ann@elsewhere", "purpose": "x", "user": "ann"}
    taken = json.dumps({"reserved": {**other, "since_s": 5.0, "left_s": 60.0}, "held": None})
    script = {"bs": [("lease show", taken)], "nano": [("lease show", FREE), ("artifacts gc", GONE)]}
    code, out, err = testbed(script, "gc", "--keep-bytes", "0")
    assert "ann@elsewhere" in err
    assert "nano" in out
    assert code == 3


def test_a_dry_run_only_looks(testbed):
    script = [("artifacts gc --keep-bytes 0 --dry-run", GONE.replace('"dry_run": false', '"dry_run": true'))]
    code, out, _ = testbed({"nano": script}, "gc", "--keep-bytes", "0", "--dry-run", "--limit", "nano")
    assert code == 0
    assert "would go" in out


def test_damage_is_named_and_is_the_exit_code(testbed):
    answer = json.dumps({"objects": 2, "bytes": 5, "damaged": ["ab" * 32], "dry_run": False})
    whole = json.dumps({"objects": 2, "bytes": 5, "damaged": [], "dry_run": False})
    scripts = {
        "bs": [("lease show", FREE), ("artifacts verify", answer)],
        "nano": [("lease show", FREE), ("artifacts verify", whole)],
    }
    code, out, _ = testbed(scripts, "verify")
    assert code == 1
    assert "1 removed: abababababababab..." in out
    assert "none" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "it was not said what may go"),
        (["--older-than", "3x"], "--older-than: a time such as 12h, 30d or 4w was expected, not '3x'"),
        (["--older-than", "0d"], "--older-than: a time"),
        (["--keep-bytes", "-1"], "--keep-bytes: a size such as 20GB, 500MB or 0 was expected, not '-1'"),
    ],
)
def test_what_may_go_must_be_said_and_right(testbed, words, message):
    code, _, err = testbed({}, "gc", *words)
    assert code == 2
    assert err.startswith(f"error: {message}")


@given(st.text(max_size=8))
def test_any_text_is_a_quantity_or_one_error(text):
    for reading in (age_seconds, size_bytes):
        try:
            quantity = reading(text)
        except InputError:
            continue
        assert quantity >= 0


@given(st.integers(0, 10**15 - 1))
def test_sizes_are_read_as_they_were_meant(count):
    assert size_bytes(str(count)) == size_bytes(f"{count}B") == count
    assert size_bytes(f"{count % 10**6} MiB") == count % 10**6 * 2**20
    assert in_bytes(count)
