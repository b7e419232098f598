"""What of this machine goes wrong is said in two lines, without a traceback."""

import subprocess
import sys

import pytest

from testbed.cli import main

MANIFEST = '{"run": "r", "started_unix": 1.0, "state": "completed"}'


def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "results" / "r").mkdir(parents=True)
    (tmp_path / "results" / "r" / "manifest.json").write_text(MANIFEST)
    (tmp_path / "file").write_text("")
    arguments = [
        "export",
        "r",
        "--results",
        str(tmp_path / "results"),
        "--csv",
        str(tmp_path / "file" / "csv"),
    ]
    monkeypatch.setattr(sys, "argv", ["testbed", *arguments])
    with pytest.raises(SystemExit) as caught:
        main.run()
    said = capsys.readouterr().err
    assert caught.value.code == 1
    assert said == (
        f"error: {tmp_path / 'file' / 'csv'}: Not a directory\nhint: a folder was expected there: name another place\n"
    )


@pytest.mark.parametrize("module", ["typer", "testbed.cli.inventory", "testbed.config.inventory"])
def test_ctrl_c_is_said_in_a_word_whenever_it_comes(module):
    # While the command line itself is imported, while its verbs are, and while a verb works: Typer sees the last.
    program = (
        "import sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}:\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from testbed.cli.main import run\n"
        "run()\n"
    )
    command = [sys.executable, "-c", program, "inventory", "show"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
