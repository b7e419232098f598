"""A trial, a serving or a quality pass under way: what it starts from, and what is left when it is over."""

from __future__ import annotations

import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Mapping, NamedTuple, Optional, Tuple

from payloads.station.devices import Devices
from payloads.station.records import failed_folder
from payloads.station.traffic import Traffic
from payloads.wdmoe.bs.engine import Engine
from payloads.wdmoe.bs.links import LinkControl
from payloads.wdmoe.bs.recording import Judging, RequestFailedError
from payloads.wdmoe.bs.records import Records
from payloads.wdmoe.bs.remote import Dispatcher
from payloads.wdmoe.judge import Judge
from payloads.wire.client import DeviceError
from payloads.wire.clock import BSClock, Offset

__all__ = ["AtWork", "Undertaking"]


class Undertaking:
    """One trial or quality pass: connects and reads the clocks first, finishes with clocks and records.

    Attributes:
        records: Its records.
        offsets: The devices' clock offsets at its beginning.
        judge: What adds its decisions up, if anything.

    Args:
        trial: Its name.
        folder: Where its records go.
        clock: The base station's clock.
        devices: The connections to the devices.
        dispatcher: What sends out the layers.
        connect: Connects the devices and estimates their clocks.
    """

    def __init__(
        self,
        trial: str,
        folder: Path,
        clock: BSClock,
        devices: Devices,
        dispatcher: Dispatcher,
        connect: Callable[[], Dict[str, Offset]],
    ) -> None:
        self.records = Records(trial, clock)
        self._folder = folder
        self._clock = clock
        self._devices = devices
        self._traffic = Traffic(devices)
        self.offsets = connect()
        self._dispatcher = dispatcher
        self._dispatcher.booking.forget()
        self._dispatcher.losses.events = []
        self.judge: Optional[Judge] = None
        self._start_ns = time.monotonic_ns()

    @contextmanager
    def failing(self, *, whole: bool = False) -> Iterator[None]:
        """Let be known what is right of the records if this fails.

        Args:
            whole: Whether that is all of them; else what happened to devices, where they make it fail.
        """
        failed = failed_folder(self._folder)
        if failed.exists():
            shutil.rmtree(failed)
        try:
            yield
        except Exception as error:
            try:
                if whole:
                    self._gather()
                    self.records.write(failed)
                elif isinstance(error, (DeviceError, RequestFailedError)):
                    self.records.add_events(self._dispatcher.losses.events)
                    self.records.write_failed(self._folder)
            except Exception as other:
                raise error from other  # what went wrong first is what is told
            raise

    def finish(self) -> Dict[str, Any]:
        """Read the clocks again, write the records, and return the summary."""
        end_ns = time.monotonic_ns()
        clocks, rows = self._gather(), self._dispatcher.booking.rows
        self.records.write(self._folder)
        work: Dict[str, Tuple[int, int]] = {}
        for row in rows:
            out, back = work.get(row.device, (0, 0))
            work[row.device] = out + row.bytes_out, back + row.bytes_back
        return {
            "records": str(self._folder),
            "t_start_s": self._clock.unix_s(self._start_ns),
            "t_end_s": self._clock.unix_s(end_ns),
            "rows": {name: len(entries) for name, entries in self.records.tables.items()},
            **self._traffic.summary(work),
            "paced_late": {name: sum(r.late for r in rows if r.device == name) for name in clocks},
        }

    def _gather(self) -> Mapping[str, Any]:
        """Read the clocks again and put all into the records; return each device's clock."""
        devices, rows = self._devices, self._dispatcher.booking.rows
        after = devices.offsets(lost=True)  # all is answered: nobody is needed any more
        self._dispatcher.losses.missing(set(self.offsets) - set(after))
        clocks = devices.histories(self.offsets, after)
        self.records.add_clocks(self.offsets)
        for name, history in clocks.items():
            for offset in history.begun[1:]:
                self.records.add_clocks({name: offset})
        self.records.add_clocks(after)
        self.records.add_dispatches(rows, clocks)
        self.records.add_events(self._dispatcher.losses.events)
        if self.judge is not None:
            self.records.add_selection(self.judge.tally)
            if self.judge.bounds is not None:
                self.records.add_bounds(self.judge.bounds)
        return clocks


class AtWork(NamedTuple):
    """A policy at work.

    Attributes:
        engine: Who answers requests.
        work: Where the records go.
        judging: What adds the decisions up.
        dispatcher: What sends out the layers.
        control: What shares the band; ``None`` where the policy leaves the links alone.
    """

    engine: Engine
    work: Undertaking
    judging: Judging
    dispatcher: Dispatcher
    control: Optional[LinkControl]

    def finish(self) -> Dict[str, Any]:
        """Write the records and return the summary, once the policy is at work no more."""
        return {**self.work.finish(), "bandwidth": self.control and self.control.summary()}
