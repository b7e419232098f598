"""The tables of serving: throughput, and what happened when devices were lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from testbed.records.run import Run
from testbed.report.losses import LossRow
from testbed.report.numbers import NO_VALUE, number, with_interval
from testbed.report.tables import Cell, DataTable, Header, count_cell, interval_cell
from testbed.report.throughput import Throughput

__all__ = ["events_table", "losses_table", "throughput_table"]


def throughput_table(rows: Sequence[Throughput]) -> DataTable:
    """Return the throughput by policy and scenario."""
    headers = [
        Header("policy"),
        Header("scenario"),
        Header("at once", True, "requests that were answered at once, at most"),
        Header("trials", True, "trials behind the mean: each counts once"),
        Header("tokens/s", True),
        Header("95 % interval (tokens/s)", True, "over trials"),
        Header("answered in full", True, "requests that ended by themselves or at their length"),
    ]
    body = []
    for row in rows:
        value, interval = with_interval(row.tokens_per_s)
        body.append(
            [
                Cell(row.policy),
                Cell(row.scenario),
                Cell(NO_VALUE, style="weak") if row.concurrency is None else count_cell(row.concurrency),
                count_cell(row.tokens_per_s.n),
                Cell(value, row.tokens_per_s.value, "strong"),
                interval_cell(row.tokens_per_s, interval),
                _of(row.whole, row.requests),
            ]
        )
    return DataTable("throughput-table", "Throughput by policy and scenario", headers, body, grouped=True)


def losses_table(rows: Sequence[LossRow]) -> DataTable:
    """Return what became of requests and tokens, by policy and scenario."""
    headers = [
        Header("policy"),
        Header("scenario"),
        Header("trials completed", True),
        Header("lost", True, "connections to a device that broke"),
        Header("late", True, "deadlines that a device missed"),
        Header("back", True, "devices that were taken back"),
        Header("answered in full", True, "requests that ended by themselves or at their length"),
        Header("pairs lost (%)", True, "of the pairs that tokens were to get"),
        Header("rerouted (%)", True, "of the pairs that tokens were to get"),
        Header("tokens that lost any", True),
    ]
    body = [
        [
            Cell(row.policy),
            Cell(row.scenario),
            _of(row.trials - row.failed, row.trials),
            count_cell(row.lost),
            count_cell(row.late),
            count_cell(row.back),
            _of(row.whole, row.requests),
            _share(row.dropped, row.wanted),
            _share(row.rerouted, row.wanted),
            Cell(f"{row.touched:,} of {row.tokens:,}", float(row.touched)),
        ]
        for row in rows
    ]
    return DataTable("losses-table", "What became of requests and tokens", headers, body, grouped=True)


def events_table(run: Run, colours: Mapping[str, str], most: int) -> DataTable:
    """Return the events in time order: all, or where there are many, the first ones.

    Args:
        run: The run.
        colours: Each device's colour.
        most: How many are shown.
    """
    headers = [
        Header("time (s)", True, "since the run's start"),
        Header("trial"),
        Header("device"),
        Header("event"),
        Header("request"),
        Header("token", True, "the token that was being made"),
        Header("layer", True),
        Header("detail"),
    ]
    body = []
    for row in run.events.head(most).to_dict("records"):
        device = _text(row["device"])
        body.append(
            [
                Cell(f"{row['t_s']:.3f}", float(row["t_s"])),
                Cell(str(row["trial"])),
                Cell(device, colour=colours.get(device, "")) if device else Cell(NO_VALUE, style="weak"),
                Cell(str(row["event"]), style="bad" if row["event"] == "failed" else ""),
                Cell(_text(row["request"]) or NO_VALUE),
                _number(row["step"]),
                _number(row["layer"]),
                Cell(_text(row["detail"]), style="wrap"),
            ]
        )
    count = len(run.events)
    title = "Every event" if count <= most else f"The first {most:,} of {count:,} events"
    return DataTable("events-table", title, headers, body)


def _of(part: int, whole: int) -> Cell:
    return Cell(f"{part:,} of {whole:,}", float(part), "bad" if part < whole else "")


def _share(part: int, whole: int | None) -> Cell:
    if not whole:
        return Cell(NO_VALUE, style="weak", title="not recorded")
    percent = 100 * part / whole
    return Cell(number(percent, 2) if part else "0", percent)


def _number(value: object) -> Cell:
    return Cell(NO_VALUE, style="weak") if pd.isna(value) else count_cell(int(str(value)))


def _text(value: object) -> str:
    return "" if pd.isna(value) else str(value)
