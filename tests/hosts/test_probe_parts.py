"""The parts of the probe that stand for modules which take a host longer to import than all that it asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.hosts.facts.own import records_of
from testbed.hosts.probes import own, probe_text, start

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(PLAIN)
def test_what_is_told_is_read_as_json(value: object) -> None:
    assert json.loads(start.told(value)) == value


def test_a_name_that_is_no_text_is_told_all_the_same() -> None:
    name = os.fsdecode(b"caf\xe9")
    assert json.loads(start.told({name: (name,)})) == {name: [name]}


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo there; echo no >&2", "there\n"),
        ("read x || echo none", "none\n"),
        ("seq 30000", "".join(f"{number}\n" for number in range(1, 30001))),
        ("echo half; exit 3", None),
        ("kill -9 $$", None),
        ("sleep 60", None),
        ("exec >&-; sleep 60", None),
    ],
)
def test_what_a_program_prints_is_taken_where_it_ends_well_and_in_time(
    script: str, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv, timeout_s = ["sh", "-c", script], 0.2 if "sleep" in script else 60.0
    assert start.output(argv, timeout_s) == said
    if "exec" not in script:  # a Python older than 3.8 has no such call
        monkeypatch.delattr("os.posix_spawn")
        assert start.output(argv, timeout_s) == said


def test_a_program_that_is_missing_prints_nothing(tmp_path: Path) -> None:
    assert start.output(["no-such-program"]) is None
    (tmp_path / "file").write_text("#!/bin/sh\n")
    assert start.which(str(tmp_path / "file")) is None
    assert start.output([str(tmp_path / "file")]) is None


def test_code_is_read_again_once_a_file_is_another_one(tmp_path: Path) -> None:
    folder = tmp_path / "code" / "d" / "payloads"
    folder.mkdir(parents=True)
    (folder / "a.py").write_text("x = 1\n")
    (folder / "b.txt").write_text("no code\n")
    (tmp_path / "current").symlink_to("code/d")
    first = own.code(str(tmp_path), {})
    assert first["seen"]["digest"] == first["folders"]["d"]
    # What is known is believed while nothing has changed.
    believed = own.code(str(tmp_path), first["seen"] | {"digest": "believed"})
    assert believed["folders"]["d"] == "believed"
    # The same length and the same time: the file system still knows that it was written.
    about = (folder / "a.py").stat()
    (folder / "a.py").write_text("x = 2\n")
    os.utime(folder / "a.py", ns=(about.st_atime_ns, about.st_mtime_ns))
    other = own.code(str(tmp_path), first["seen"])
    assert other["folders"]["d"] != first["folders"]["d"]
    (folder / "c.py").write_text("")
    assert own.code(str(tmp_path), other["seen"])["folders"]["d"] != other["folders"]["d"]


def test_a_line_of_the_record_that_was_cut_off_stands_for_no_change() -> None:
    whole = json.dumps({"unix": 7, "item": "code", "recorded": {"there": False}})
    (only,) = records_of([whole, whole[:-9], "7", '{"item": "code"}', ""])
    assert (only.item, only.recorded, only.unix_s) == ("code", {"there": False}, 7.0)


def test_the_probe_imports_nothing_that_takes_long() -> None:
    asked = {"python": "/none", "modules": [], "packages": ["dpkg"]}
    program = probe_text(asked).replace(b"os._exit(0)", b"import sys; print(*sys.modules)")
    done = subprocess.run([sys.executable, "-I", "-S", "-"], input=program, capture_output=True, check=True)
    loaded = set(done.stdout.decode().splitlines()[-1].split())
    assert not loaded & {"re", "json", "typing", "subprocess", "shutil", "hashlib", "gzip", "platform"}
