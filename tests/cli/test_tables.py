"""Tables, in a terminal that has no room for them and elsewhere."""

from __future__ import annotations

import sys

import pytest
from rich.console import Console

from testbed.cli.common import HostProgress, print_table
from testbed.cli.shape_tables import print_verification

ROWS = [
    ("host", "board", "power", "state"),
    ("thor", "AGX Thor", "120W", "to provision: folders, code, access"),
]


@pytest.mark.parametrize(
    ("terminal", "columns", "shown"),
    [
        (
            False,
            20,
            ["host  board     power  state", "thor  AGX Thor  120W   to provision: folders, code, access"],
        ),
        (
            True,
            70,
            ["host  board     power  state", "thor  AGX Thor  120W   to provision: folders, code, access"],
        ),
        (
            True,
            20,
            # What alone has no room is folded by the terminal.
            [
                "host  board",
                "thor  AGX Thor",
                "",
                "host  power",
                "thor  120W",
                "",
                "host  state",
                "thor  to provision: folders, code, access",
            ],
        ),
    ],
)
def test_columns_that_do_not_fit_follow_beneath(terminal, columns, shown, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    print_table(ROWS)
    assert capsys.readouterr().out.splitlines() == shown


def test_a_verification_that_does_not_fit_says_in_each_part_what_a_row_is_about(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    about = {"scenario": "one-weak-device", "device": "agx-orin", "state": "busy", "message_bytes": 1024}
    took = {"expected_ms": 8.72, "measured_ms": 8.88, "p95_ms": 9.0, "asked_mbit": 1.0, "ratio": 1.018}
    rows = [
        {**about, **took, "direction": direction, "ok": direction == "uplink"}
        for direction in ("downlink", "uplink")
    ]
    print_verification(rows)
    *table, last = capsys.readouterr().out.splitlines()
    assert last == "1 of 2 are off"
    parts = [part.splitlines() for part in "\n".join(table).split("\n\n")]
    assert len(parts) > 1
    plain = [[line.removeprefix("\033[31m").removesuffix("\033[0m") for line in part] for part in parts]
    assert max(len(line) for part in plain for line in part) <= 80
    for (_, off, well), (_, shown, _) in zip(plain, parts, strict=True):
        assert off.split()[:5] == ["one-weak-device", "agx-orin", "downlink", "busy", "1024"]
        assert well.split()[:5] == ["one-weak-device", "agx-orin", "uplink", "busy", "1024"]
        assert shown == f"\033[31m{off}\033[0m"


def test_what_many_hosts_are_doing_takes_one_line(monkeypatch):
    console = Console(width=60, force_terminal=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("rich.console.Console", lambda **_options: console)
    with console.capture() as captured, HostProgress("asking", 20) as progress:
        for number in range(20):
            progress(f"orin-{number}", "ask for facts")
        assert progress._status is not None
        console.print(progress._status.renderable)
    assert [line.rstrip()[-1] for line in captured.get().splitlines() if "orin-0" in line] == ["…"]
