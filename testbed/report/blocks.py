"""What a section of the report is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from testbed.report.style import Figure, Key
from testbed.report.tables import DataTable

__all__ = ["Alert", "Block", "Code", "Facts", "Grid", "Missing", "Note", "Plot", "Section", "Sheet"]

SHOWN_AT_ONCE = 4


@dataclass(frozen=True)
class Plot:
    """One figure, as wide as the page."""

    figure: Figure
    kind: str = "plot"


@dataclass(frozen=True)
class Grid:
    """Several small figures that are read side by side; those beyond the first few are folded away."""

    title: str
    note: str
    figures: Sequence[Figure]
    scale: str = ""
    legend: Sequence[Key] = ()
    kind: str = "grid"

    @property
    def shown(self) -> Sequence[Figure]:
        """Return the figures that are seen at once."""
        return self.figures[:SHOWN_AT_ONCE]

    @property
    def folded(self) -> Sequence[Figure]:
        """Return the others."""
        return self.figures[SHOWN_AT_ONCE:]


@dataclass(frozen=True)
class Sheet:
    """One table, folded away where it is long."""

    table: DataTable
    folded: bool = False
    kind: str = "sheet"


@dataclass(frozen=True)
class Alert:
    """Something is wrong with the data: always seen, in red."""

    text: str
    name: str = ""
    kind: str = "alert"


@dataclass(frozen=True)
class Missing:
    """Something is not in the records: said, never left blank."""

    text: str
    kind: str = "missing"


@dataclass(frozen=True)
class Note:
    """A line of text."""

    text: str
    name: str = ""
    kind: str = "note"


@dataclass(frozen=True)
class Code:
    """A text as it stands, to be copied."""

    title: str
    text: str
    folded: bool = False
    kind: str = "code"


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    title: str
    entries: Sequence[tuple[str, str]]
    kind: str = "facts"


Block = Plot | Grid | Sheet | Alert | Missing | Note | Code | Facts


@dataclass(frozen=True)
class Section:
    """One section.

    Attributes:
        name: Its id in the page.
        title: Its title.
        short: Its title in the navigation.
        blocks: What it shows, in order.
    """

    name: str
    title: str
    short: str
    blocks: Sequence[Block] = field(repr=False)
