"""Recorded rates: CSV and Mahimahi traces, read and written, and averaged over blocks of any length.

CSV: a header, then one row for each change of the rate. ``time_s,rate_mbit`` for one direction or both alike, or
``time_s,downlink_mbit,uplink_mbit``. A rate holds until the next row's time. A last row with a time and no rates is the
end; without it the last rate holds as long as the one before it. Times are counted from the first row's. Empty lines
and lines that begin with ``#`` are skipped.

Mahimahi (mm-link): one time in milliseconds a line, rising, each an opportunity to deliver 1504 bytes; two packets in a
millisecond are two lines. mm-link's manual speaks of 1500 bytes, its source counts 1504 (a packet of 1500 and the 4
bytes of its TUN), and so does this module unless told otherwise. The trace ends, and starts again, at its last time.
What is delivered at a time was earned before it: a block has the deliveries after its start and up to its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from testbed.errors import InputError
from testbed.links.channels.pathloss import Array

__all__ = [
    "OPPORTUNITY_BYTES",
    "Trace",
    "block_means",
    "mahimahi_times",
    "read_trace",
    "write_csv",
    "write_mahimahi",
]

OPPORTUNITY_BYTES = 1504
_MAX_FILE_BYTES = 64 << 20
_MAX_ROWS = 2_000_000
_MAX_MBIT = 1e6
_ONE = ("time_s", "rate_mbit")
_BOTH = ("time_s", "downlink_mbit", "uplink_mbit")


@dataclass(frozen=True, eq=False)
class Trace:
    """Rates over time, each holding until the next one's time.

    Attributes:
        t_s: When each rate begins, rising from 0; shape (n,).
        duration_s: When the last one ends.
        downlink_mbit: The downlink's rates; shape (n,).
        uplink_mbit: The uplink's rates; shape (n,).
    """

    t_s: Array
    duration_s: float
    downlink_mbit: Array
    uplink_mbit: Array


def read_trace(path: Path, *, bin_ms: float = 100.0, opportunity_bytes: int = OPPORTUNITY_BYTES) -> Trace:
    """Read a trace: CSV where the name ends in ``.csv``, otherwise Mahimahi.

    Args:
        path: The file.
        bin_ms: Over how long the deliveries of a Mahimahi trace are averaged.
        opportunity_bytes: What one line of a Mahimahi trace delivers.

    Raises:
        InputError: The file cannot be read, or holds a mistake: its line, and what was expected there.
    """
    lines = _lines(path)
    if path.suffix.lower() == ".csv":
        return _csv(path, lines)
    times_ms = _deliveries(path, lines)
    return _binned(times_ms, bin_ms / 1e3, opportunity_bytes)


def _lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise InputError.at(
                path, None, "", f"a trace of at most {_MAX_FILE_BYTES >> 20} MiB was expected"
            )
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError.at(path, None, "", f"text in UTF-8 was expected ({error.reason})") from None
    except OSError as error:
        raise InputError.at(path, None, "", f"cannot be read: {error.strerror or error}") from None
    if len(lines) > _MAX_ROWS:
        raise InputError.at(path, None, "", f"a trace of at most {_MAX_ROWS} lines was expected")
    return lines


def _told(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of every line that says something."""
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text and not text.startswith("#"):
            yield number, text


def _csv(path: Path, lines: Sequence[str]) -> Trace:
    told = _told(lines)
    header_line, header = next(told, (1, ""))
    names = tuple(name.strip() for name in header.split(","))
    if names not in (_ONE, _BOTH):
        wanted = f"the header `{','.join(_ONE)}` or `{','.join(_BOTH)}` was expected"
        raise InputError.at(path, header_line, "", f"{wanted}, not {header[:60]!r}")
    rows: list[list[float]] = []
    end: int | None = None
    for number, text in told:
        cells = text.split(",")
        if len(cells) != len(names):
            raise InputError.at(path, number, "", f"{len(names)} numbers were expected, not {len(cells)}")
        if end is not None:
            raise InputError.at(path, number, "", "nothing was expected below the end, a row without rates")
        if rows and not any(cell.strip() for cell in cells[1:]):
            cells = [cells[0], *(str(rate) for rate in rows[-1][1:])]
            end = number
        row = [_cell(path, number, name, cell) for name, cell in zip(names, cells, strict=True)]
        if rows and row[0] <= rows[-1][0]:
            raise InputError.at(
                path, number, "time_s", f"a time after {rows[-1][0]:g} was expected, not {row[0]:g}"
            )
        rows.append(row)
    if not rows:
        raise InputError.at(path, header_line, "", "no rates stand below the header")
    table = np.array(rows)
    t_s = table[:, 0] - table[0, 0]
    if end is not None:
        return Trace(t_s[:-1], float(t_s[-1]), table[:-1, 1], table[:-1, -1])
    last_s = float(t_s[-1] - t_s[-2]) if len(t_s) > 1 else 1.0
    return Trace(t_s, float(t_s[-1]) + last_s, table[:, 1], table[:, -1])


def _cell(path: Path, line: int, name: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = np.nan
    least, most = (-1e12, 1e12) if name == "time_s" else (0.0, _MAX_MBIT)
    if not least <= value <= most:
        wanted = "a time in seconds" if name == "time_s" else f"a rate from 0 to {_MAX_MBIT:g} Mbit/s"
        raise InputError.at(path, line, name, f"{wanted} was expected, not {cell.strip()!r}")
    return value


def _deliveries(path: Path, lines: Sequence[str]) -> Array:
    times: list[int] = []
    for number, text in _told(lines):
        # A dozen digits are thirty years.
        if not (text.isascii() and text.isdigit() and len(text) <= 12):
            raise InputError.at(
                path, number, "", f"a time in whole milliseconds was expected, not {text[:40]!r}"
            )
        if times and int(text) < times[-1]:
            raise InputError.at(path, number, "", f"a time of at least {times[-1]} was expected, not {text}")
        times.append(int(text))
    if not times or times[-1] == 0:
        raise InputError.at(
            path, len(lines) or None, "", "a delivery after 0 ms was expected: the trace has no length"
        )
    return np.array(times, dtype=float)


def _binned(times_ms: Array, bin_s: float, opportunity_bytes: int) -> Trace:
    """Return the mean rates of bins; the last one may be shorter."""
    end_s = float(times_ms[-1]) / 1e3
    count = max(1, int(np.ceil(end_s / bin_s - 1e-9)))
    edges = np.append(np.arange(count) * bin_s, end_s)
    # A bin has what is delivered after its start and up to its end; at 0 that would be nobody's, so it is the first's.
    arrived = np.searchsorted(times_ms, edges * 1e3 + 1e-6, side="right")
    arrived[0] = 0
    rates = np.diff(arrived) * opportunity_bytes * 8 / 1e6 / np.diff(edges)
    return Trace(edges[:-1], end_s, rates, rates)


def block_means(t_s: Array, duration_s: float, rates: Array, edges_s: Array) -> Array:
    """Return the mean rates between edges of a trace that starts again at its end.

    The data that a trace carries is kept, however its steps and the blocks lie to each other.

    Args:
        t_s: When each rate begins, rising from 0; shape (n,).
        duration_s: When the last one ends.
        rates: The rates; shape (n,).
        edges_s: The edges, rising and at least 0; shape (m + 1,).

    Returns:
        The means, of shape (m,).
    """
    bounds = np.append(t_s, duration_s)
    carried = np.concatenate([[0.0], np.cumsum(rates * np.diff(bounds))])
    rounds = np.floor(edges_s / duration_s)
    phase = edges_s - rounds * duration_s
    total = rounds * carried[-1] + np.interp(phase, bounds, carried)
    means: Array = np.maximum(np.diff(total) / np.diff(edges_s), 0.0)
    return means


def write_csv(path: Path, trace: Trace) -> None:
    """Write a trace as CSV, so that reading it gives the same rates and the same end.

    Args:
        path: The file.
        trace: The trace.
    """
    rows = [
        f"{float(t)!r},{float(down)!r},{float(up)!r}"
        for t, down, up in zip(trace.t_s, trace.downlink_mbit, trace.uplink_mbit, strict=True)
    ]
    end = f"{float(trace.duration_s)!r},,"
    path.write_text("\n".join([",".join(_BOTH), *rows, end]) + "\n", encoding="utf-8")


def write_mahimahi(
    path: Path, trace: Trace, direction: str, *, opportunity_bytes: int = OPPORTUNITY_BYTES
) -> None:
    """Write one direction of a trace for Mahimahi.

    Args:
        path: The file.
        trace: The trace.
        direction: ``downlink`` or ``uplink``.
        opportunity_bytes: What one line delivers.

    Raises:
        ValueError: The trace is shorter than a millisecond, or would take too many lines.
    """
    rates: Any = trace.downlink_mbit if direction == "downlink" else trace.uplink_mbit
    times = mahimahi_times(trace.t_s, trace.duration_s, rates, opportunity_bytes=opportunity_bytes)
    path.write_text("".join(f"{time}\n" for time in times), encoding="ascii")


def mahimahi_times(
    t_s: Array, duration_s: float, rates: Array, *, opportunity_bytes: int = OPPORTUNITY_BYTES
) -> list[int]:
    """Return the delivery times in ms: each opportunity when its bytes have been earned, the last one at the end.

    Never more than one opportunity away from what the trace carries up to any time, milliseconds being whole.
    The trace's end has to be marked by an opportunity, whether it has been earned by then or not.

    Raises:
        ValueError: The trace is shorter than a millisecond, or would take too many lines.
    """
    end_ms = round(duration_s * 1e3)
    if end_ms < 1:
        raise ValueError("a Mahimahi trace is at least a millisecond long")
    bounds = np.append(t_s, duration_s)
    carried = np.concatenate([[0.0], np.cumsum(rates * np.diff(bounds))])
    packet_mbit = opportunity_bytes * 8 / 1e6
    if carried[-1] / packet_mbit > _MAX_ROWS:
        raise ValueError(f"a Mahimahi trace of more than {_MAX_ROWS} lines would come out")
    count = int(carried[-1] / packet_mbit + 1e-9)
    earned = np.arange(1, count + 1) * packet_mbit
    # The step in which each is earned has a rate: a step without one earns nothing.
    step = np.clip(np.searchsorted(carried, earned, side="left"), 1, len(rates)) - 1
    when_s = bounds[step] + (earned - carried[step]) / np.maximum(rates[step], 1e-300)
    times = np.clip(np.ceil(when_s * 1e3 - 1e-6), 1, end_ms).astype(int).tolist()
    if not times or times[-1] != end_ms:
        times.append(end_ms)
    return [int(time) for time in times]
