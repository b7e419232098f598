"""The logs of a board, read into rows of the run's tables: times on the run's clock, one row a reading."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import InputError
from testbed.telemetry.clocks import DeviceClock

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["board_rows", "power_rows"]


def power_rows(path: Path, device: str, offsets: pd.DataFrame, started_unix: float) -> pd.DataFrame:
    """Return the rows of the table ``power`` from a power log.

    Args:
        path: The log: lines of ``mono_ns,rail,mw``.
        device: The device's name.
        offsets: The rows of the table ``clocks`` that are about this device.
        started_unix: The run's start in unix seconds on the base station's clock.

    Raises:
        InputError: The log is none, or nothing tells what the device's clock showed.
    """
    return _rows(path, device, offsets, started_unix, ("rail", "mw"))


def board_rows(path: Path, device: str, offsets: pd.DataFrame, started_unix: float) -> pd.DataFrame:
    """Return the rows of the table ``boards`` from a jtop log; as :func:`power_rows`.

    Args:
        path: The log: lines of ``mono_ns,key,value``.
        device: The device's name.
        offsets: The rows of the table ``clocks`` that are about this device.
        started_unix: The run's start in unix seconds on the base station's clock.
    """
    return _rows(path, device, offsets, started_unix, ("key", "value"))


def _rows(
    path: Path, device: str, offsets: pd.DataFrame, started_unix: float, columns: tuple[str, str]
) -> pd.DataFrame:
    import pandas as pd

    name, value = columns
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError.at(path, None, "", f"cannot be read: {error.strerror}") from error
    # A last line without its end is one that was being written when the logger was killed.
    whole = content[: content.rfind(b"\n") + 1]
    header = ["mono_ns", name, value]
    if not whole:
        return pd.DataFrame(columns=["t_s", "device", name, value])
    if whole.split(b"\n", 1)[0] != ",".join(header).encode():
        raise InputError.at(path, 1, "", f"expected the header {','.join(header)}")
    try:
        frame = pd.read_csv(BytesIO(whole), dtype={"mono_ns": "int64", name: "str", value: "float64"})
    except (ValueError, pd.errors.ParserError) as error:
        raise InputError.at(path, None, "", f"a line does not fit the header: {error}") from error
    if frame.isna().any(axis=None):
        line = int(frame.isna().any(axis=1).to_numpy().argmax()) + 2
        raise InputError.at(path, line, "", f"expected three values: {','.join(header)}")
    clock = DeviceClock.from_estimates(offsets["t_s"], offsets["offset_s"], started_unix, device)
    return pd.DataFrame(
        {
            "t_s": clock.run_seconds(frame["mono_ns"].to_numpy()),
            "device": device,
            name: frame[name],
            value: frame[value],
        }
    )
