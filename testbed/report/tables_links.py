"""The tables of the links: what was asked for and measured, and the bytes that crossed them."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from testbed.links.traffic import HEADER_BYTES
from testbed.report.numbers import NO_VALUE, plain
from testbed.report.tables import Cell, DataTable, Header, count_cell, ms_cell

__all__ = ["UNEXPLAINED_MOST", "links_table", "traffic_table", "traffic_totals"]

UNEXPLAINED_MOST = 0.05
"""Above this share of the counted bytes, what neither records nor headers explain is marked."""


def links_table(summary: pd.DataFrame, colours: Mapping[str, str]) -> DataTable:
    """Return the probes by scenario, link and message size.

    Args:
        summary: What :func:`testbed.report.figures_links.link_summary` gave.
        colours: The devices' colours.
    """
    headers = [
        Header("scenario"),
        Header("device"),
        Header("direction"),
        Header("asked (Mbit/s)", True),
        Header("message (B)", True),
        Header("expected (ms)", True),
        Header("measured (ms)", True, "mean over probes of the median of each"),
        Header("p95 (ms)", True, "the greatest over the probes"),
        Header("ratio", True, "the least and the greatest of measured over expected"),
        Header("probes", True),
        Header("messages", True),
        Header("verdict"),
    ]
    body = []
    for row in summary.to_dict("records"):
        failed = int(row["failed"])
        verdict = Cell(f"{failed} of {row['probes']} failed", style="bad") if failed else Cell("ok")
        low, high = plain(row["low"], 3), plain(row["high"], 3)
        body.append(
            [
                Cell(str(row["scenario"])),
                Cell(str(row["device"]), colour=colours.get(str(row["device"]), "")),
                Cell(str(row["direction"])),
                Cell(f"{row['asked_mbit']:g}", float(row["asked_mbit"])),
                Cell(f"{int(row['message_bytes']):,}", float(row["message_bytes"])),
                ms_cell(float(row["expected_ms"])),
                ms_cell(float(row["measured_ms"])),
                ms_cell(float(row["p95_ms"])),
                Cell(low if low == high else f"{low} to {high}", float(row["high"])),
                count_cell(int(row["probes"])),
                count_cell(int(row["n"])),
                verdict,
            ]
        )
    return DataTable("links-table", "Links asked for, expected and measured", headers, body)


def traffic_totals(traffic: pd.DataFrame) -> pd.DataFrame:
    """Return the bytes of each link over the run.

    Args:
        traffic: The table ``traffic``.

    Returns:
        ``device, direction, trials, frames, frame_bytes, header_bytes, dispatch_bytes, control_bytes, drops,
        unexplained_bytes, share`` (of the counted bytes that is unexplained).
    """
    grouped = traffic.groupby(["device", "direction"], sort=False)
    counted = ["frames", "frame_bytes", "dispatch_bytes", "control_bytes", "drops"]
    totals = grouped[counted].sum().assign(trials=grouped["trial"].nunique()).reset_index()
    totals["header_bytes"] = HEADER_BYTES * totals["frames"]
    explained = totals["header_bytes"] + totals["dispatch_bytes"] + totals["control_bytes"]
    totals["unexplained_bytes"] = totals["frame_bytes"] - explained
    totals["share"] = totals["unexplained_bytes"] / totals["frame_bytes"].where(totals["frame_bytes"] > 0)
    return totals


def traffic_table(totals: pd.DataFrame, colours: Mapping[str, str]) -> DataTable:
    """Return the bytes that the kernel counted beside those of the records.

    Args:
        totals: What :func:`traffic_totals` gave.
        colours: The devices' colours.
    """
    headers = [
        Header("device"),
        Header("direction"),
        Header("trials", True),
        Header("frames", True, "counted by the kernel at the shaped link"),
        Header("counted (B)", True, "bytes of those frames"),
        Header("dispatches (B)", True, "messages of the data plane in the records"),
        Header("control (B)", True, "handshakes and pings of the data plane"),
        Header("headers (B)", True, f"Ethernet, IP and TCP: {HEADER_BYTES} B a frame"),
        Header("unexplained", True, "what is left, as a share of the counted bytes"),
        Header("dropped frames", True),
    ]
    body = []
    for row in totals.to_dict("records"):
        share = float(row["share"])
        style = "bad" if abs(share) > UNEXPLAINED_MOST else ""
        text = f"{plain(share * 100, 2)}\N{NO-BREAK SPACE}%" if pd.notna(share) else NO_VALUE
        drops = int(row["drops"])
        body.append(
            [
                Cell(str(row["device"]), colour=colours.get(str(row["device"]), "")),
                Cell(str(row["direction"])),
                count_cell(int(row["trials"])),
                count_cell(int(row["frames"])),
                count_cell(int(row["frame_bytes"])),
                count_cell(int(row["dispatch_bytes"])),
                count_cell(int(row["control_bytes"])),
                count_cell(int(row["header_bytes"])),
                Cell(text, share, style),
                Cell(f"{drops:,}", float(drops), "bad" if drops else ""),
            ]
        )
    return DataTable("traffic-table", "Bytes that crossed the links in the trials", headers, body)
