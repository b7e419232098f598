"""`testbed lease` against scripted hosts: all hosts or none, who is named, and with what exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from testbed.cli import main
from testbed.errors import ConnectError
from testbed.hosts.fake import Answer, FakeTransport
from testbed.hosts.fleet import Fleet

LAB = """\
lab: shelf
hosts:
  bs: {role: base_station, address: 10.0.0.1}
  nano: {role: device, address: 10.0.0.2}
"""
ANN = {"kind": "run", "owner": "ann@laptop", "purpose": "run x-0001", "user": "jetson", "since_s": 60.0}
ANN["left_s"] = None
MINE = ANN | {"kind": "reservation", "owner": "bob@desk", "left_s": 3600.0}
POWER = {"mode": None, "jetson_clocks": None}
TAKEN = {
    "reserved": MINE,
    "held": None,
    "keeper": None,
    "extended": False,
    "taken_over_from": "",
    "power": POWER,
}
TAKEN |= {"no_root": "", "left": []}
GIVEN_BACK = {"released": True, "stopped": [], "restored": [], "problems": []}


def refused(by):
    return Answer(json.dumps({"refused": by}), stderr="this host is held", exit_status=3)


@pytest.fixture
def lease(tmp_path: Path, monkeypatch, capsys):
    """Run the command line on hosts with a script; return exit code, output and errors."""
    (tmp_path / "lab.yaml").write_text(LAB)
    monkeypatch.setenv("TESTBED_OWNER", "bob@desk")

    def run(scripts, *words: str):
        transports = {name: FakeTransport(name, script) for name, script in scripts.items()}
        monkeypatch.setattr(Fleet, "transport", lambda _self, name: transports[name])
        monkeypatch.setattr(sys, "argv", ["testbed", "lease", *words, "-i", str(tmp_path / "lab.yaml")])
        with pytest.raises(SystemExit) as ended:
            main.run()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    return run


def test_hosts_are_taken_all_or_none(lease):
    free = [("lease take", json.dumps(TAKEN)), ("lease release --owner bob@desk", json.dumps(GIVEN_BACK))]
    code, out, err = lease({"bs": free, "nano": [("lease take", refused(ANN))]}, "take")
    assert (code, out) == (3, "")
    assert "bs was given back" in err
    assert "error: nano: held by ann@laptop (run x-0001), since " in err
    code, out, _ = lease({"bs": free[:1], "nano": free[:1]}, "take", "--for", "1h")
    assert code == 0
    assert [line.partition(" until ")[0] for line in out.splitlines()] == ["bs: bob@desk", "nano: bob@desk"]


def test_what_was_one_s_own_before_stays_and_what_stays_by_mistake_is_named(lease):
    extended = [("lease take", json.dumps(TAKEN | {"extended": True}))]
    held = {"nano": [("lease take", refused(ANN))]}
    code, _, err = lease({"bs": extended} | held, "take")
    assert (code, "given back" in err) == (3, False)
    under_a_run = [("lease take", json.dumps(TAKEN)), ("lease release", refused(ANN | {"owner": "bob@desk"}))]
    _, _, err = lease({"bs": under_a_run} | held, "take")
    assert "bs could not be given back: bs: held by bob@desk" in err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--for", "2x"], "--for: a time such as"),
        (["--purpose", "two\nlines"], "--purpose: one line of at most 200 characters was expected"),
        (["--take-over-from", "ann"], "--take-over-from: user@machine was expected"),
    ],
)
def test_what_nobody_could_mean_asks_no_host(lease, words, problem):
    code, _, err = lease({}, "take", *words)
    assert code == 2
    assert problem in err


def test_a_board_that_is_not_as_it_was_ends_with_1(lease):
    free = [("lease release", json.dumps(GIVEN_BACK))]
    left = [("lease release", json.dumps(GIVEN_BACK | {"problems": ["its power mode needs a reboot"]}))]
    code, out, err = lease({"bs": free, "nano": left}, "release")
    assert (code, out.splitlines()) == (1, ["bs: given back", "nano: given back"])
    assert "nano: not as it was: its power mode needs a reboot" in err


def test_a_host_whose_answer_is_lost_is_named_as_maybe_reserved(lease):
    lost = [("lease take", ConnectError("bs", "the connection was lost: EOFError"))]
    killed = [("lease take", Answer(exit_status=-1, stderr="ended by a signal"))]
    code, out, err = lease({"bs": lost, "nano": killed}, "take")
    assert (code, out) == (1, "")
    assert "warning: bs, nano: may be reserved for you" in err
    assert "`testbed lease release --limit bs --limit nano`" in err
    assert "error: bs: the connection was lost: EOFError" in err
    code, _, err = lease({"bs": lost, "nano": [("lease take", refused(ANN))]}, "take")
    assert "warning: bs: may be reserved for you" in err
    failed = [("lease take", Answer(exit_status=1, stderr="its process 7 does not let go"))]
    _, _, err = lease({"bs": failed, "nano": failed}, "take")
    assert "may be reserved" not in err


def test_ctrl_c_names_the_hosts_that_may_be_reserved_by_now(lease, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)  # this process is the tests' own
    took = [("lease take", json.dumps(TAKEN))]
    code, out, err = lease({"bs": took, "nano": [("lease take", KeyboardInterrupt())]}, "take")
    assert (code, out) == (130, "")
    assert err.splitlines()[0].startswith("warning: bs, nano: may be reserved for you")
    assert err.splitlines()[-1] == "interrupted"
