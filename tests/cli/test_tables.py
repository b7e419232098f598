"""Tables, in a terminal that has no room for them and elsewhere."""

from __future__ import annotations

import sys

import pytest
from rich.console import Console

from testbed.cli.common import HostProgress, print_table

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


def test_what_many_hosts_are_doing_takes_one_line(monkeypatch):
    console = Console(width=60)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("rich.console.Console", lambda **_options: console)
    with console.capture() as captured, HostProgress("asking", 20) as progress:
        for number in range(20):
            progress(f"orin-{number}", "ask for facts")
        assert progress._status is not None
        console.print(progress._status.renderable)
    assert [line.rstrip()[-1] for line in captured.get().splitlines() if "orin-0" in line] == ["…"]
