"""What the tables of a run are declared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Column", "Kind", "Table", "count", "flag", "number", "text"]

Kind = Literal["string", "int64", "float64", "bool"]


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: The column's name, with its unit at the end where it has one.
        kind: The type of its values.
        unit: The unit for people: ``s``, ``ms``, ``bytes``; empty for a plain number or a name.
        meaning: One line for people.
        nullable: Whether a value may be missing.
    """

    name: str
    kind: Kind
    unit: str
    meaning: str
    nullable: bool = False


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name: The table's name, and that of its folder under ``tables/``.
        meaning: What one row stands for.
        columns: The columns, in order.
    """

    name: str
    meaning: str
    columns: tuple[Column, ...]

    def column(self, name: str) -> Column:
        """Return one column; a KeyError names the table."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(f"table {self.name} has no column {name}")


def text(name: str, meaning: str, *, nullable: bool = False) -> Column:
    """Return a column of names or words."""
    return Column(name, "string", "", meaning, nullable)


def count(name: str, meaning: str, unit: str = "", *, nullable: bool = False) -> Column:
    """Return a column of whole numbers."""
    return Column(name, "int64", unit, meaning, nullable)


def flag(name: str, meaning: str, *, nullable: bool = False) -> Column:
    """Return a column of yes and no."""
    return Column(name, "bool", "", meaning, nullable)


def number(name: str, meaning: str, unit: str = "", *, nullable: bool = False) -> Column:
    """Return a column of numbers; where no unit is given, the end of the name says it."""
    if not unit:
        unit = next((u for end, u in _UNITS.items() if name.endswith(end)), "")
    return Column(name, "float64", unit, meaning, nullable)


_UNITS = {
    "_mbit": "Mbit/s",
    "_ms": "ms",
    "_mw": "mW",
    "_s": "s",
    "mw": "mW",
    "_dbm": "dBm",
    "_mhz": "MHz",
}
