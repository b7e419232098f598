"""What is made of a run when its last step is done: power tables, the state in the manifest, the report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.config.inventory import Inventory
from testbed.errors import InputError
from testbed.records import RecordWriter, load_run, read_manifest, write_manifest
from testbed.telemetry.logs import board_rows, power_rows, radio_rows

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["finish", "update_manifest"]

LOGS = (
    ("power", "power.csv", power_rows),
    ("boards", "jtop.csv", board_rows),
    ("radio", "wifi.csv", radio_rows),
)
"""The logs of a board: the table that each becomes a part of, its file, and what reads it."""


def update_manifest(folder: Path, **changes: Any) -> dict[str, Any]:
    """Change some keys of a run's manifest and return it whole."""
    manifest = {**read_manifest(folder), **changes}
    write_manifest(folder, manifest)
    return manifest


def finish(folder: Path, inventory: Inventory, state: str) -> Path:
    """Turn the boards' logs into tables, write the run's state and build its report; return the report's path.

    Args:
        folder: The run's folder.
        inventory: The fleet.
        state: ``completed``, ``failed`` or ``interrupted``.
    """
    started_unix = float(read_manifest(folder)["started_unix"])
    if state != "completed":  # whatever comes now, a run that has ended is not left as one that is running
        update_manifest(folder, state=state)
    records = RecordWriter(folder)
    run = load_run(folder)
    clocks = run.clocks
    for device in inventory.devices:
        logs = folder / "boards" / device.name
        offsets = clocks[clocks["device"] == device.name]
        if offsets.empty:
            continue  # no trial reached the device: nothing says what its clock showed
        for table, name, rows in LOGS:
            if not (logs / name).exists():
                continue
            try:
                read = rows(logs / name, device.name, offsets, started_unix)
                # A run of the same name, whose folder here is gone, may have left its part of the log on the board.
                read = read[read["t_s"] >= 0]
                records.write(table, device.name, _with_earlier(getattr(run, table), device.name, read))
            except InputError as error:
                # One damaged log must not cost the others; the report says that its power is missing.
                print(f"warning: {error.message}", file=sys.stderr)
    update_manifest(folder, state=state)
    from testbed.report.page import write_report

    return write_report(load_run(folder), folder / "report.html")


def _with_earlier(known: pd.DataFrame, device: str, read: pd.DataFrame) -> pd.DataFrame:
    """Put what was known before a log begins in front of it: a board that was set up anew begins its log anew."""
    import pandas as pd

    known = known[known["device"] == device]
    earlier = known[known["t_s"] < read["t_s"].min()] if len(read) else known
    return pd.concat([earlier, read], ignore_index=True) if len(earlier) else read
