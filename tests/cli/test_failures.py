"""A rack that cannot be reached: what the verbs that ask it say of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from testbed.cli import main

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
    [["artifacts", "show"], ["artifacts", "gc", "--keep-bytes=0", "--dry-run"], ["lease", "list"], ["trust"]],
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
