"""Tables, in a terminal that has no room for them and elsewhere."""

from __future__ import annotations

import sys

import pytest

from testbed.cli.common import print_table

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
            # The last column is not alone: what is too long of it is folded by the terminal.
            [
                "host  board",
                "thor  AGX Thor",
                "",
                "host  power  state",
                "thor  120W   to provision: folders, code, access",
            ],
        ),
    ],
)
def test_columns_that_do_not_fit_follow_beneath(terminal, columns, shown, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    print_table(ROWS)
    assert capsys.readouterr().out.splitlines() == shown
