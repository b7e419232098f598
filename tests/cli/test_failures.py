"""A rack that cannot be reached: what the verbs that ask it say of it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from testbed.cli import main
from testbed.errors import ConnectError
from testbed.hosts import keys
from testbed.provision import apply, undo
from testbed.provision.apply import HostResult
from testbed.provision.plan import HostPlan
from testbed.provision.undo import UndoResult

#: Nobody listens on port 1.
LAB = """\
lab: shelf
known_hosts: {folder}/known_hosts
defaults: {{port: 1, key_file: {folder}/key}}
hosts:
  bs: {{role: base_station, address: 127.0.0.1}}
  nano: {{role: device, address: 127.0.0.2}}
  orin: {{role: device, address: 127.0.0.3}}
"""


@pytest.fixture
def testbed(tmp_path: Path, monkeypatch, capsys):
    """Run the command line on hosts that refuse connections; return exit code, output and errors."""
    (tmp_path / "lab.yaml").write_text(LAB.format(folder=tmp_path))
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "known_hosts").touch()

    def run(*words: str):
        monkeypatch.setattr(sys, "argv", ["testbed", *words, "-i", str(tmp_path / "lab.yaml")])
        with pytest.raises(SystemExit) as caught:
            main.run()
        shown = capsys.readouterr()
        return caught.value.code, shown.out, shown.err

    return run


@pytest.mark.parametrize(
    "words",
    [
        ["artifacts", "show"],
        ["artifacts", "gc", "--keep-bytes=0", "--dry-run"],
        ["lease", "list"],
        ["trust"],
        ["services", "status"],
    ],
)
def test_what_all_hosts_have_is_said_once(testbed, words):
    code, out, err = testbed(*words)
    assert (code, out) == (1, "")
    error, hint = err.splitlines()
    assert error.startswith("error: 3 hosts (bs, nano, orin): cannot connect to ADDRESS:")
    assert hint == "hint: is its SSH server running?"


def test_a_bundle_for_hosts_that_cannot_be_asked_is_not_made(testbed, tmp_path):
    code, out, err = testbed("bundle", str(tmp_path / "bundle"), "--limit=nano", "--limit=orin")
    assert (code, out) == (1, "")
    assert "2 hosts (nano, orin): cannot connect to" in err
    assert "--jetpack 5, 6 or 7" in err
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("words", [["provision"], ["provision", "--json"], ["provision", "--undo"]])
def test_ctrl_c_does_not_call_hosts_out_of_reach_that_had_no_turn(testbed, monkeypatch, words):
    monkeypatch.setattr("signal.signal", lambda *_: None)  # this process is the tests' own

    def end(fleet, hosts, _site, _way, *, on_result, **_):
        fleet.close()
        error = ConnectError("nano", "the connection was lost")
        on_result(
            UndoResult(hosts[1], error=error)
            if "--undo" in words
            else HostResult(HostPlan(hosts[1], error=error))
        )
        raise KeyboardInterrupt

    monkeypatch.setattr(apply, "provision_fleet", end)
    monkeypatch.setattr(undo, "undo_fleet", end)
    code, out, err = testbed(*words)
    assert (code, out, err.splitlines()[-1]) == (130, "", "interrupted")


def test_ctrl_c_calls_off_the_wait_for_the_keys_of_hosts_that_do_not_answer(testbed, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    called_off = []

    def fetch(host, _settings, _timeout_s, ended):
        if host.name == "bs":
            os.kill(os.getpid(), signal.SIGINT)
        called_off.append(ended.wait(20))
        raise ConnectError(host.name, "called off")

    monkeypatch.setattr(keys, "fetch_key", fetch)
    code, out, err = testbed("trust")
    assert (code, out, err) == (130, "", "interrupted\n")
    assert set(called_off) == {True}
