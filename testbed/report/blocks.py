"""What a section of the report is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from testbed.report.style import Figure, Key
from testbed.report.tables import DataTable

__all__ = [
    "SHOWN_AT_ONCE",
    "Alert",
    "Axis",
    "Block",
    "Code",
    "Facts",
    "Gallery",
    "Grid",
    "Missing",
    "Note",
    "Pane",
    "Pick",
    "Plot",
    "Section",
    "Sheet",
    "Shot",
    "Strip",
    "by_group",
]

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
class Axis:
    """One thing that a reader chooses by, such as the scenario."""

    title: str
    options: Sequence[str]


@dataclass(frozen=True)
class Pane:
    """What is seen for one choice.

    Attributes:
        key: The places of the options chosen.
        figures: The figures.
        note: Why there are none.
        legend: A legend that the page draws itself.
        scale: The end of the scale of heat maps, in percent, where it is not the same for all panes.
    """

    key: tuple[int, ...]
    figures: Sequence[Figure] = field(repr=False)
    note: str = ""
    legend: Sequence[Key] = ()
    scale: str = ""

    @property
    def place(self) -> str:
        """Return the key as it stands in the page."""
        return "-".join(str(number) for number in self.key)


@dataclass(frozen=True)
class Pick:
    """Figures of which the reader picks what to see: one pane for every combination of options; the first is seen.

    Attributes:
        name: Its id in the page.
        title: Its title.
        note: How to read it.
        axes: What is chosen by; an axis of one option is not shown.
        panes: In any order.
        columns: How many figures stand side by side on a wide screen.
        legend: A legend that the page draws itself.
        scale: The end of the scale of heat maps, in percent; empty for other figures.
    """

    name: str
    title: str
    note: str
    axes: Sequence[Axis]
    panes: Sequence[Pane] = field(repr=False)
    columns: int = 1
    legend: Sequence[Key] = ()
    scale: str = ""
    kind: str = "pick"


def by_group(
    name: str,
    title: str,
    note: str,
    axis: str,
    groups: Mapping[str, Sequence[Figure]],
    *,
    columns: int = 2,
    legend: Sequence[Key] = (),
    scale: str = "",
) -> Pick | Grid:
    """Return figures by group: all side by side where they are few, else to be picked from.

    Args:
        name: The id in the page.
        title: The title.
        note: How to read them.
        axis: What the groups are, such as "scenario".
        groups: The figures of each.
        columns: How many stand side by side.
        legend: A legend that the page draws itself.
        scale: The end of the scale of heat maps, in percent.
    """
    figures = [figure for own in groups.values() for figure in own]
    if len(figures) <= SHOWN_AT_ONCE or len(groups) < 2:
        return Grid(title, note, figures, scale=scale, legend=legend)
    panes = [Pane((place,), own) for place, own in enumerate(groups.values())]
    return Pick(name, title, note, [Axis(axis, list(groups))], panes, columns, legend, scale)


@dataclass(frozen=True)
class Shot:
    """One picture.

    Attributes:
        title: Whose it is: a scheme's, or the source.
        caption: How good it is.
        uri: The picture, as a data URI.
        size: Width and height in pixels.
        lost: Whether nothing could be decoded.
    """

    title: str
    caption: str
    uri: str = field(repr=False)
    size: tuple[int, int]
    lost: bool = False


@dataclass(frozen=True)
class Strip:
    """Pictures that are read side by side."""

    title: str
    shots: Sequence[Shot]


@dataclass(frozen=True)
class Gallery:
    """Strips of pictures, folded away where others come before."""

    name: str
    title: str
    strips: Sequence[Strip] = field(repr=False)
    folded: bool = False
    kind: str = "gallery"


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


Block = Plot | Grid | Pick | Gallery | Sheet | Alert | Missing | Note | Code | Facts


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
