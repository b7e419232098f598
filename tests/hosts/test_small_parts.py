import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.config.inventory import Host
from testbed.hosts.channel import LineSplitter
from testbed.hosts.deadline import Deadline
from testbed.hosts.dial import gateway_command
from testbed.hosts.payload import host_python, payload_command, shell_path

seconds = st.floats(0, 1e6)
# What a command line can hold: no NUL, and nothing that is no text on its own.
words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@given(seconds, seconds, seconds)
def test_deadlines_never_add_up(whole: float, spent: float, part: float) -> None:
    now = [100.0]
    deadline = Deadline(whole, clock=lambda: now[0])
    now[0] += spent
    inner = deadline.sooner(part)
    assert inner.remaining_s <= min(part, deadline.remaining_s) + 1e-6
    assert deadline.passed == (deadline.remaining_s == 0)
    assert deadline.remaining_s == pytest.approx(max(0.0, whole - spent), abs=1e-6)
    assert 0 <= deadline.timeout_s(part) <= part


def test_a_deadline_is_told_without_powers_of_ten() -> None:
    assert [str(Deadline(seconds)) for seconds in (0.25, 14.99993, 7200.0)] == ["0.25 s", "15 s", "7200 s"]


def test_a_deadline_can_be_never() -> None:
    deadline = Deadline(math.inf)
    assert not deadline.passed
    assert deadline.timeout_s(3) == 3


@given(st.lists(st.binary(max_size=9)))
def test_lines_do_not_depend_on_how_bytes_arrive(chunks: list[bytes]) -> None:
    pieces, whole = LineSplitter(), LineSplitter()
    lines = [line for chunk in chunks for line in pieces.feed(chunk)] + pieces.feed(b"", final=True)
    assert lines == whole.feed(b"".join(chunks), final=True)


def test_a_payload_command_line_has_its_one_form() -> None:
    line = payload_command("~/.testbed/venv/bin/python", "station.bsctl", "trial", "--spec", "~/a b.json")
    assert line == (
        'PYTHONPATH="$HOME/.testbed/current" exec "$HOME/.testbed/venv/bin/python" -m payloads.station.bsctl '
        "trial --spec '~/a b.json'"
    )


def test_which_python_runs_the_payload_code() -> None:
    plain = {"name": "x", "role": "device", "address": "x"}
    assert host_python(Host.model_validate(plain)) == "~/.testbed/venv/bin/python"
    own = plain | {"python": {"manage": False, "interpreter": "/opt/py"}}
    assert host_python(Host.model_validate(own)) == "/opt/py"


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_payload_commands_run_in_the_shells_of_boards(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    package = tmp_path / ".testbed" / "current" / "payloads"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "echo.py").write_text("import os, sys\nprint(os.getpid(), sys.argv[1:])\n")
    (tmp_path / "my python").symlink_to(os.path.realpath(sys.executable))
    expected = ["it's", "$HOME", "a;b", ""]
    line = payload_command("~/my python", "echo", *expected)
    process = subprocess.Popen(
        [shell, "-c", line],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        text=True,
    )
    out, _ = process.communicate()
    # The process is the payload itself, so that signals reach it.
    assert out == f"{process.pid} {expected}\n"


@given(words, st.sampled_from(["", "~/"]))
def test_paths_are_one_word_of_a_shell(text: str, start: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f"printf %s {shell_path(start + text)}"],
        env={"HOME": "/h"},
        capture_output=True,
        check=True,
    )
    expected = f"/h/{text}" if start else f"/h{text[1:]}" if text == "~" or text.startswith("~/") else text
    assert done.stdout.decode() == expected


def test_gateway_fields_are_filled_in() -> None:
    assert gateway_command("nc {address} {port} | cat", "10.0.0.1", 22) == "nc 10.0.0.1 22 | cat"
