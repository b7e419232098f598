"""The logs of a board, read into rows of the run's tables: times on the run's clock, one row a reading."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import InputError
from testbed.telemetry.clocks import DeviceClock

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["board_rows", "power_rows", "radio_rows"]

_RADIO = ("signal_dbm", "noise_dbm", "tx_mbit", "tx_mcs", "rx_mbit", "rx_mcs", "width_mhz")


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
    return _rows(path, device, offsets, started_unix, "rail", ("mw",))


def board_rows(path: Path, device: str, offsets: pd.DataFrame, started_unix: float) -> pd.DataFrame:
    """Return the rows of the table ``boards`` from a jtop log; as :func:`power_rows`.

    Args:
        path: The log: lines of ``mono_ns,key,value``.
        device: The device's name.
        offsets: The rows of the table ``clocks`` that are about this device.
        started_unix: The run's start in unix seconds on the base station's clock.
    """
    return _rows(path, device, offsets, started_unix, "key", ("value",))


def radio_rows(path: Path, device: str, offsets: pd.DataFrame, started_unix: float) -> pd.DataFrame:
    """Return the rows of the table ``radio`` from a log of a wireless link; as :func:`power_rows`.

    Args:
        path: The log: lines of ``mono_ns,interface,signal_dbm,noise_dbm,tx_mbit,tx_mcs,rx_mbit,rx_mcs,width_mhz``;
            what the driver did not tell is empty.
        device: The device's name.
        offsets: The rows of the table ``clocks`` that are about this device.
        started_unix: The run's start in unix seconds on the base station's clock.
    """
    rows = _rows(path, device, offsets, started_unix, "interface", _RADIO, nullable=True)
    return rows.astype({"tx_mcs": "Int64", "rx_mcs": "Int64"})


def _rows(
    path: Path,
    device: str,
    offsets: pd.DataFrame,
    started_unix: float,
    name: str,
    values: tuple[str, ...],
    nullable: bool = False,
) -> pd.DataFrame:
    import pandas as pd

    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError.at(path, None, "", f"cannot be read: {error.strerror}") from error
    # A last line without its end is one that was being written when the logger was killed.
    whole = content[: content.rfind(b"\n") + 1]
    header = ["mono_ns", name, *values]
    if not whole:
        return pd.DataFrame(columns=["t_s", "device", name, *values])
    if whole.split(b"\n", 1)[0] != ",".join(header).encode():
        raise InputError.at(path, 1, "", f"expected the header {','.join(header)}")
    try:
        types = {"mono_ns": "int64", name: "str", **dict.fromkeys(values, "float64")}
        frame = pd.read_csv(BytesIO(whole), dtype=types)
    except (ValueError, pd.errors.ParserError) as error:
        raise InputError.at(path, None, "", f"a line does not fit the header: {error}") from error
    missing = frame[["mono_ns", name] if nullable else header].isna().any(axis=1).to_numpy()
    if missing.any():
        line = int(missing.argmax()) + 2
        raise InputError.at(path, line, "", f"expected {len(header)} values: {','.join(header)}")
    clock = DeviceClock.from_estimates(offsets["t_s"], offsets["offset_s"], started_unix, device)
    return pd.DataFrame(
        {
            "t_s": clock.run_seconds(frame["mono_ns"].to_numpy()),
            "device": device,
            name: frame[name],
            **{value: frame[value] for value in values},
        }
    )
