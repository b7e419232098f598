"""From the power of a broadcast run to joules: per trial, and per image that a device decoded.

The window of a trial's energy goes from the begin of the first frame's encoding to the end of the last frame: to the
moment when the last user's answer was there. Idle time between frames is part of it, and so is the frame for warming
up that goes before another model, set or number of slots; the first one of a trial is not. Trials that were never on
air have no window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from testbed.records.energy import energy_columns, window_joules

if TYPE_CHECKING:
    from testbed.records.run import Run

__all__ = ["image_energy"]


def image_energy(run: Run) -> pd.DataFrame:
    """Return the energy of each completed trial on each device.

    Args:
        run: A run of semantic broadcast.

    Returns:
        One row a trial that was on air and device. ``images`` is how many images the device decoded in it,
        ``joules_per_image`` is ``joules`` over that; the other columns are those of
        :func:`testbed.records.energy.run_energy`.
    """
    counts = run.images[~run.images["on_paper"] & run.images["device"].notna()]
    decoded = counts.groupby(["trial", "device"]).size()
    rows = []
    for row in window_joules(run, _windows(run)):
        images = int(decoded.get((row["trial"], row["device"]), 0))
        rows.append(
            row | {"images": images, "joules_per_image": row["joules"] / images if images else float("nan")}
        )
    columns = energy_columns("images", "joules_per_image")
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)


def _windows(run: Run) -> pd.DataFrame:
    """Return each completed trial's window, in the order of running."""
    frames = run.frames.dropna(subset=["t_send_s", "t_done_s"])
    begins = frames["t_send_s"] - frames["encode_ms"].fillna(0.0) / 1000
    windows = (
        frames.assign(begin_s=begins)
        .groupby("trial", sort=False)
        .agg(t_start_s=("begin_s", "min"), t_end_s=("t_done_s", "max"))
        .reset_index()
    )
    return run.completed[["trial", "policy", "scenario", "repeat"]].merge(windows, on="trial", how="inner")
