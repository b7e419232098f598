"""The records of a trial: collected in memory, written at its end, whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from payloads.wire.clock import BSClock, Offset

__all__ = ["TrialRecords", "failed_folder"]


class TrialRecords:
    """The rows of one trial.

    Attributes:
        trial: Name of the trial.
        tables: The rows, by table; times are unix seconds on the base station's clock.

    Args:
        trial: Name of the trial.
        clock: The base station's clock.
        tables: The files of the trial's folder; each is there, if empty. ``clocks`` and ``events`` are among them.
    """

    def __init__(self, trial: str, clock: BSClock, tables: Sequence[str]) -> None:
        self.trial = trial
        self.tables: Dict[str, List[Dict[str, Any]]] = {name: [] for name in tables}
        self._clock = clock

    def add_clocks(self, offsets: Mapping[str, Offset]) -> None:
        """Add the estimated clock offsets of all devices."""
        self.tables["clocks"] += [
            {
                "t_s": self._clock.unix_s(offset.at_ns),
                "device": name,
                "offset_s": self._clock.unix_s(round(offset.offset_ns)),
                "rtt_ms": offset.rtt_ns / 1e6,
            }
            for name, offset in offsets.items()
        ]

    def add_event(
        self,
        at_ns: int,
        device: str,
        event: str,
        detail: str,
        request: Optional[str] = None,
        step: Optional[int] = None,
        layer: Optional[int] = None,
    ) -> None:
        """Add something that happened to a device, or what was done about it."""
        self.tables["events"].append(
            {
                "t_s": self._clock.unix_s(at_ns),
                "trial": self.trial,
                "request": request,
                "step": step,
                "layer": layer,
                "device": device,
                "event": event,
                "detail": detail,
            }
        )

    def write_failed(self, folder: Path) -> None:
        """Write what happened to devices in a trial that failed: a folder beside the one that it would have had."""
        self.tables = {"events": self.tables["events"]}
        self.write(failed_folder(folder))

    def write(self, folder: Path) -> None:
        """Write the tables into ``folder``, which appears when it is complete."""
        partial = folder.with_name(folder.name + ".part")
        try:
            if partial.exists():
                shutil.rmtree(partial)
            partial.mkdir(parents=True)
            for name, rows in self.tables.items():
                with (partial / f"{name}.jsonl").open("w") as file:
                    for row in rows:
                        file.write(json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n")
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def failed_folder(folder: Path) -> Path:
    """Return the folder of a trial that failed, beside the one that it would have had."""
    return folder.with_name(folder.name + ".failed")
