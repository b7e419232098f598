"""Write a run's tables so that whatever ends the controller, nothing recorded is lost.

Each table is a folder of Parquet parts, ``tables/<table>/<part>.parquet``: one part a trial, or one for each device
and log. A part is written beside its place, seen onto the disk, and renamed: it is whole or not there. Writing a part
again replaces it, so a trial that is repeated by a resumed run does not stand there twice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.errors import InputError, TestbedError
from testbed.records.schema import TABLES, Table, arrow_schema

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["RecordWriter", "arrow_table"]

PART_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class RecordWriter:
    """Writes the tables of one run.

    Attributes:
        folder: The run's folder, ``results/<run>``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, table: str, part: str, rows: Iterable[Mapping[str, Any]] | pd.DataFrame) -> Path | None:
        """Write one part of one table, in place of an earlier one of that name.

        Args:
            table: The table's name.
            part: The part's name: a trial, a device, or what else keeps parts from overwriting each other.
            rows: The rows, with the columns of :data:`testbed.records.schema.TABLES`; nullable ones may be left out.

        Returns:
            The part's path, or None where there were no rows: then no part stands there afterwards.

        Raises:
            InputError: A row does not fit the table.
        """
        import pyarrow.parquet as pq

        if not PART_NAME.fullmatch(part):
            raise TestbedError(
                f"{part!r} cannot name a part of a table: use letters, digits, '.', '_' and '-'"
            )
        data = arrow_table(TABLES[table], rows)
        target = self.folder / "tables" / table / f"{part}.parquet"
        if data.num_rows == 0:
            target.unlink(missing_ok=True)
            return None
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f"{target.name}.part")
        with unfinished.open("wb") as file:
            pq.write_table(data, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
        return target

    def write_trial(
        self, trial: Mapping[str, Any], tables: Mapping[str, Iterable[Mapping[str, Any]]]
    ) -> None:
        """Write all that one trial recorded, its row in ``trials`` last: that row says that the rest is whole.

        Args:
            trial: The row of the ``trials`` table.
            tables: The rows of the other tables, by table.
        """
        part = str(trial["trial"])
        for table, rows in tables.items():
            self.write(table, part, rows)
        self.write("trials", part, [trial])


def arrow_table(table: Table, rows: Iterable[Mapping[str, Any]] | pd.DataFrame) -> pa.Table:
    """Return rows as an Arrow table that fits the declaration.

    Args:
        table: The declaration.
        rows: The rows; nullable columns may be left out of them.

    Raises:
        InputError: An unknown column, a missing value, or a value of the wrong type.
    """
    import pyarrow as pa

    columns = _columns(table, rows)
    count = max((len(values) for values in columns.values()), default=0)
    schema = arrow_schema(table)
    arrays: list[pa.Array] = []
    for column, declared in zip(table.columns, schema, strict=True):
        values = columns.get(column.name, [None] * count)
        try:
            array = pa.array(values, type=declared.type, from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(f"table {table.name}: {column.name}: expected {column.kind}: {error}") from error
        if array.null_count and not column.nullable:
            row = array.is_null().index(True).as_py()
            raise InputError(
                f"table {table.name}: row {row + 1}: {column.name}: expected a value, found none"
            )
        arrays.append(array)
    return pa.table(arrays, schema=schema)


def _columns(table: Table, rows: Iterable[Mapping[str, Any]] | pd.DataFrame) -> dict[str, Sequence[Any]]:
    """Turn rows into columns, refusing those that the table does not have."""
    known = {column.name for column in table.columns}
    if hasattr(rows, "columns"):
        frame: Any = rows
        given = {str(name) for name in frame.columns}
        columns: dict[str, Sequence[Any]] = {name: frame[name] for name in given & known}
    else:
        listed = list(rows)
        given = {str(name) for row in listed for name in row}
        columns = {name: [row.get(name) for row in listed] for name in given & known}
    if given - known:
        unknown = ", ".join(sorted(given - known))
        raise InputError(
            f"table {table.name}: no such column: {unknown}; expected {', '.join(sorted(known))}"
        )
    return columns
