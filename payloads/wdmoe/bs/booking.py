"""The record of what was dispatched: kept as it comes, made into rows when there is time."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, NamedTuple, Optional, Sequence, Tuple

from payloads.wdmoe.bs.packing import Parcel
from payloads.wdmoe.dispatch import DispatchRow, Expected, row_of
from payloads.wire.client import Answer
from payloads.wire.frames import Result

if TYPE_CHECKING:
    from payloads.wdmoe.bs.metrics import StationMetrics

__all__ = ["Booking", "Round", "Taken"]


class Taken(NamedTuple):
    """A dispatch that was answered.

    Attributes:
        parcel: What was asked.
        dropped: Pairs that the router wanted of the device and that it did not get.
        answer: The answer, as the base station saw it.
        result: What the device said.
    """

    parcel: Parcel
    dropped: int
    answer: Answer
    result: Result


class Round(NamedTuple):
    """Dispatches of a layer that were answered, and what they belong to.

    Attributes:
        devices: The devices' names.
        whose: The request and its token step; neither where several requests share the iteration.
        where: The iteration, and the requests in it.
        expected: What the layer was expected to take; ``None`` where nobody decided.
        taken: The dispatches.
    """

    devices: Sequence[str]
    whose: Tuple[Optional[str], Optional[int]]
    where: Tuple[int, int]
    expected: Optional[Expected]
    taken: Sequence[Taken]


class Booking:
    """Rounds that are still to be booked, and the rows of those that were.

    Attributes:
        metrics: Counts the answers; ``None`` where nobody looks.
    """

    def __init__(self) -> None:
        self.metrics: Optional[StationMetrics] = None
        self._open: List[Round] = []
        self._rows: List[DispatchRow] = []

    @property
    def rows(self) -> List[DispatchRow]:
        """One entry for each dispatch since :meth:`forget`."""
        self.settle()
        return self._rows

    def forget(self) -> None:
        """Begin anew."""
        self.settle()  # what was answered counts in the metrics all the same
        self._rows = []

    def add(self, one: Round) -> None:
        """Keep a round until there is time for it."""
        self._open.append(one)

    def settle(self) -> None:
        """Make rows of the rounds that were kept."""
        rounds, self._open = self._open, []
        for devices, whose, where, expected, taken in rounds:
            for parcel, dropped, answer, result in taken:
                name, pairs = devices[parcel.device], len(parcel.places)
                if self.metrics is not None:
                    self.metrics.answered(name, answer, pairs)
                counts = parcel.tokens, pairs, dropped
                device = name, parcel.device
                self._rows.append(row_of(whose, where, device, counts, answer, result, expected))
