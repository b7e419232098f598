"""Read what the base station recorded: JSON lines in BS unix seconds become rows in seconds since the run's start."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

from testbed.errors import InputError
from testbed.records.schema import TABLES, Column, Table

__all__ = ["PAYLOAD_FILES", "read_payload_records", "read_rows"]

PAYLOAD_FILES: Mapping[str, str] = MappingProxyType(
    {
        "requests.jsonl": "requests",
        "tokens.jsonl": "tokens",
        "dispatches.jsonl": "dispatches",
        "events.jsonl": "events",
        "selection.jsonl": "selection",
        "routing.jsonl": "routing",
        "clocks.jsonl": "clocks",
        "quality.jsonl": "quality",
        "choices.jsonl": "choices",
    }
)
"""The files of a trial's folder and the tables that they belong to."""

_TYPES: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {"string": (str,), "int64": (int,), "float64": (int, float), "bool": (bool,)}
)


def read_payload_records(
    folder: Path, run: str, trial: str, started_unix: float, *, only: Collection[str] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of one trial's (or quality pass's) folder by table; files that are not there give none.

    Args:
        folder: Where the base station's files lie.
        run: The run's name; a row that names another run is refused.
        trial: The trial's name; rows without one get it, a row that names another is refused.
        started_unix: The start of the run in unix seconds on the base station's clock.
        only: The tables that are wanted; all where it is left out.

    Raises:
        InputError: A line does not fit its table; the message has file, line, column and what was expected.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder of records")
    tables: dict[str, list[dict[str, Any]]] = {}
    for name, table in PAYLOAD_FILES.items():
        path = folder / name
        if path.exists() and (only is None or table in only):
            tables[table] = read_rows(path, TABLES[table], run, trial, started_unix)
    return tables


def read_rows(path: Path, table: Table, run: str, trial: str, started_unix: float) -> list[dict[str, Any]]:
    """Return the rows of one file of JSON lines.

    Args:
        path: The file.
        table: What its lines are to fit.
        run: The run's name; a row that names another run is refused.
        trial: The trial's name; rows without one get it, a row that names another is refused.
        started_unix: The start of the run in unix seconds on the base station's clock.

    Raises:
        InputError: The file cannot be read, or a line does not fit.
    """
    names = {"run": run, "trial": trial}
    columns = {column.name: column for column in table.columns}
    rows: list[dict[str, Any]] = []
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError.at(path, number, "", f"expected one JSON object: {error.msg}") from error
            if not isinstance(record, dict):
                raise InputError.at(path, number, "", "expected one JSON object")
            for key, value in names.items():
                if record.get(key, value) != value:
                    raise InputError.at(path, number, key, f"expected {value!r}, found {record[key]!r}")
            if "trial" in columns:
                record["trial"] = names["trial"]
            for key in names.keys() - columns.keys():
                record.pop(key, None)
            rows.append(_row(path, number, record, columns, started_unix))
    return rows


def _opened(path: Path) -> TextIO:
    try:
        return path.open(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _row(
    path: Path, number: int, record: dict[str, Any], columns: Mapping[str, Column], started_unix: float
) -> dict[str, Any]:
    unknown = record.keys() - columns.keys()
    if unknown:
        key = min(unknown)
        raise InputError.at(path, number, key, f"no such column; expected {', '.join(columns)}")
    row: dict[str, Any] = {}
    for name, column in columns.items():
        value: Any = record.get(name)
        # True is an int to Python.
        fits = isinstance(value, _TYPES[column.kind]) and isinstance(value, bool) == (column.kind == "bool")
        if value is None:
            if not column.nullable:
                raise InputError.at(path, number, name, f"expected {column.kind}, found none")
        elif not fits:
            raise InputError.at(path, number, name, f"expected {column.kind}, found {value!r}")
        elif name.startswith("t_"):
            value = value - started_unix
        row[name] = value
    return row
