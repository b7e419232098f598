"""The tables of the links: what was asked for and measured, and the bytes that crossed them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from testbed.links.traffic import HEADER_BYTES
from testbed.report.numbers import NO_VALUE, number, plain
from testbed.report.rates import CHANGE_CAUSES, LEAST_INTERVALS
from testbed.report.tables import Cell, DataTable, Header, count_cell, ms_cell

__all__ = [
    "UNEXPLAINED_MOST",
    "links_table",
    "lossy_devices",
    "rates_table",
    "too_much",
    "traffic_table",
    "traffic_totals",
]

UNEXPLAINED_MOST = 0.05
"""Above this share of the counted bytes, what neither records nor headers explain is marked."""

_CAUSES = {
    "block": "the channel moved on to its next block",
    "allocate": "the policy shared the bandwidth anew",
    "rerate": "somebody asked for another rate",
}


def links_table(summary: pd.DataFrame, colours: Mapping[str, str]) -> DataTable:
    """Return the probes by scenario, link, message size and state; what is off comes first, its rows in red.

    Args:
        summary: What :func:`testbed.report.figures_links.link_summary` gave.
        colours: The devices' colours.
    """
    delayed = bool((summary["delay_ms"] > 0).any())
    delay = Header(
        "delay (ms)", True, "one-way, asked for; it is in the unshaped round trip, not in the times here"
    )
    headers = [
        Header("scenario"),
        Header("device"),
        Header("direction"),
        Header("message (B)", True),
        Header("state", title="idle, or busy: all other devices at full load in both directions"),
        Header("asked (Mbit/s)", True, "a range where repeats have other rates"),
        Header("expected (ms)", True, "mean over the probes"),
        Header("median (ms)", True, "mean over probes of the median of each"),
        Header("p95 (ms)", True, "the greatest over the probes"),
        Header("ratio", True, "the least and the greatest of measured over expected"),
        Header("n", True, "messages behind the medians"),
        *([delay] if delayed else []),
        Header("backend", title="what shapes the link"),
        Header("verdict"),
    ]
    body, off = [], []
    for place, row in enumerate(summary.to_dict("records")):
        failed, judged = int(row["failed"]), int(row["judged"])
        if failed:
            off.append(place)
        verdict = f"{failed} of {judged} off" if failed else "ok" if judged else "not judged"
        body.append(
            [
                _name(row["scenario"]),
                Cell(str(row["device"]), colour=colours.get(str(row["device"]), "")),
                Cell(str(row["direction"])),
                Cell(f"{int(row['message_bytes']):,}", float(row["message_bytes"])),
                _name(row["state"]),
                _range(row["asked_low"], row["asked_high"], float(row["asked_high"]), "{:.4g}"),
                ms_cell(float(row["expected_ms"])),
                ms_cell(float(row["measured_ms"])),
                ms_cell(float(row["p95_ms"])),
                _range(row["low"], row["high"], float(row["worst"]), "{:.3f}"),
                count_cell(int(row["n"])),
                *([_delay(float(row["delay_ms"]))] if delayed else []),
                _name(row["backend"]),
                Cell(verdict, style="weak" if not judged else "", title=f"of {int(row['probes'])} probes"),
            ]
        )
    return DataTable(
        "links-table", "Verification: what the probes measured", headers, body, off=off, anchor="links-off"
    )


def rates_table(summary: pd.DataFrame, colours: Mapping[str, str], tolerance: float | None) -> DataTable:
    """Return the rates of the scenarios in which they change; a link that delivered more than was asked is in red.

    Args:
        summary: What :func:`testbed.report.rates.rate_summary` gave.
        colours: The devices' colours.
        tolerance: The share by which a link may miss its rate, or None.
    """
    causes = [cause for cause in CHANGE_CAUSES if summary[cause].sum() > 0]
    sampled = bool(summary["intervals"].sum())
    headers = [
        Header("scenario"),
        Header("device"),
        Header("direction"),
        Header("mean asked (Mbit/s)", True, "weighted by time, within completed trials"),
        Header("p5 (Mbit/s)", True, "for a twentieth of the time the rate asked for was so or lower"),
        Header("p95 (Mbit/s)", True, "for a twentieth of the time the rate asked for was higher"),
        *(Header(f"changes by {cause}", True, _CAUSES[cause]) for cause in causes),
        Header("saturated (s)", True, "time in sampled intervals at both ends of which something waited"),
        Header("delivered (B)", True, "frames counted in those intervals"),
        Header("asked (B)", True, "the integral of the rate asked for over them"),
        Header("delivered / asked", True),
        Header("trials", True),
    ]
    body, off = [], []
    for place, row in enumerate(summary.to_dict("records")):
        ratio, few = float(row["ratio"]), int(row["intervals"]) < LEAST_INTERVALS
        if too_much(row, tolerance):
            off.append(place)
        nothing = Cell(NO_VALUE, style="weak", title="not sampled" if not sampled else "never saturated")
        body.append(
            [
                Cell(str(row["scenario"])),
                Cell(str(row["device"]), colour=colours.get(str(row["device"]), "")),
                Cell(str(row["direction"])),
                Cell(number(row["mean_mbit"]), float(row["mean_mbit"]), "strong"),
                Cell(number(row["p5_mbit"]), float(row["p5_mbit"])),
                Cell(number(row["p95_mbit"]), float(row["p95_mbit"])),
                *(count_cell(int(row[cause])) for cause in causes),
                Cell(f"{row['saturated_s']:.1f}", float(row["saturated_s"])),
                count_cell(round(row["delivered_bytes"])) if row["intervals"] else nothing,
                count_cell(round(row["asked_bytes"])) if row["intervals"] else nothing,
                Cell(
                    plain(ratio, 3),
                    ratio,
                    "weak" if few else "",
                    title=f"of {int(row['intervals'])} intervals only" if few else "",
                )
                if row["intervals"]
                else nothing,
                count_cell(int(row["trials"])),
            ]
        )
    return DataTable("rates-table", "Rates that change within a trial", headers, body, True, off, "rates-off")


def too_much(row: Mapping[Any, Any], tolerance: float | None) -> bool:
    """Return whether a link delivered more than was asked for, by more than the tolerance, in enough intervals."""
    return (
        tolerance is not None
        and int(row["intervals"]) >= LEAST_INTERVALS
        and float(row["ratio"]) > 1 + tolerance
    )


def traffic_totals(traffic: pd.DataFrame) -> pd.DataFrame:
    """Return the bytes of each link over the run.

    Args:
        traffic: The table ``traffic``.

    Returns:
        ``device, direction, trials, frames, frame_bytes, header_bytes, dispatch_bytes, control_bytes,
        retransmitted_bytes, drops, unexplained_bytes, share`` (of the counted bytes that is unexplained). A count is
        missing where it is missing in any trial. What TCP sent again explains no more than there is to explain, since
        what was lost before it was counted was not counted twice.
    """
    counted = ["frames", "frame_bytes", "drops", "retransmitted_bytes"]
    known = ["dispatch_bytes", "control_bytes"]
    numbers = traffic.assign(**{name: traffic[name].astype("Float64") for name in (*counted, *known)})
    grouped = numbers.groupby(["device", "direction"], sort=False)
    whole = grouped[counted].count().eq(grouped.size(), axis=0)
    totals = grouped[known].sum().join(grouped[counted].sum().where(whole))
    totals = totals.astype("float64").assign(trials=grouped["trial"].nunique()).reset_index()
    totals["header_bytes"] = HEADER_BYTES * totals["frames"]
    explained = totals["header_bytes"] + totals["dispatch_bytes"] + totals["control_bytes"]
    left = totals["frame_bytes"] - explained
    again = totals["retransmitted_bytes"].fillna(0)
    totals["unexplained_bytes"] = left - again.clip(upper=left.clip(lower=0))
    totals["share"] = totals["unexplained_bytes"] / totals["frame_bytes"].where(totals["frame_bytes"] > 0)
    return totals


def lossy_devices(links: pd.DataFrame) -> frozenset[str]:
    """Return the devices whose links were asked to lose frames.

    Args:
        links: The table ``links``.
    """
    return frozenset(links.loc[links["loss_percent"].gt(0).fillna(False), "device"])


def traffic_table(
    totals: pd.DataFrame, colours: Mapping[str, str], lossy: frozenset[str] = frozenset()
) -> DataTable:
    """Return the bytes that the kernel counted beside those of the records.

    Args:
        totals: What :func:`traffic_totals` gave.
        colours: The devices' colours.
        lossy: The devices whose frames were lost on purpose: theirs are no alarm.
    """
    told = bool(totals["retransmitted_bytes"].notna().any())
    headers = [
        Header("device"),
        Header("direction"),
        Header("trials", True),
        Header("frames", True, "counted by the kernel at the shaped link"),
        Header("counted (B)", True, "bytes of those frames"),
        Header("messages (B)", True, "messages of the data plane in the records"),
        Header("control (B)", True, "handshakes and pings of the data plane"),
        Header("headers (B)", True, f"Ethernet, IP and TCP: {HEADER_BYTES} B a frame"),
        *(
            [Header("sent again (B)", True, "payload that TCP retransmitted, as its sender's kernel tells")]
            if told
            else []
        ),
        Header("unexplained", True, "what is left, as a share of the counted bytes"),
        Header("dropped frames", True),
    ]
    body = []
    for row in totals.to_dict("records"):
        share = float(row["share"])
        style = "bad" if abs(share) > UNEXPLAINED_MOST else ""
        text = f"{plain(share * 100, 2)}\N{NO-BREAK SPACE}%" if pd.notna(share) else NO_VALUE
        drops = float(row["drops"])
        body.append(
            [
                Cell(str(row["device"]), colour=colours.get(str(row["device"]), "")),
                Cell(str(row["direction"])),
                count_cell(int(row["trials"])),
                _counted(row["frames"]),
                _counted(row["frame_bytes"]),
                _counted(row["dispatch_bytes"]),
                _counted(row["control_bytes"]),
                _counted(row["header_bytes"]),
                *([_counted(row["retransmitted_bytes"])] if told else []),
                Cell(text, share, style),
                _counted(drops, "bad" if drops > 0 and row["device"] not in lossy else ""),
            ]
        )
    return DataTable("traffic-table", "Bytes that crossed the links in the trials", headers, body)


def _counted(value: float, style: str = "") -> Cell:
    if pd.isna(value):
        return Cell(NO_VALUE, math.nan, "weak", title="nothing counted it")
    return Cell(f"{round(value):,}", float(value), style)


def _delay(value: float) -> Cell:
    return Cell(NO_VALUE, style="weak") if math.isnan(value) else Cell(f"{value:g}", value)


def _name(value: object) -> Cell:
    return Cell(str(value)) if isinstance(value, str) else Cell(NO_VALUE, style="weak", title="not recorded")


def _range(low: float, high: float, raw: float, form: str) -> Cell:
    """Return two ends as one cell, or one number where they look alike."""
    if pd.isna(low) or pd.isna(high):
        return Cell(NO_VALUE, math.nan)
    ends = form.format(low), form.format(high)
    return Cell(ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}", raw)
