"""What crossed the shaped links in a trial, counted by the kernel and added up from the records. Pure.

Both must agree: the kernel counts frames, the records whole messages of the data plane, and between them lie the
headers of Ethernet, IP and TCP, a fixed number of bytes a frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["HEADER_BYTES", "traffic_rows", "unexplained_bytes"]

HEADER_BYTES = 14 + 20 + 32  # Ethernet, IPv4 and TCP with time stamps
DIRECTIONS = {"downlink": ("out", "bytes_out"), "uplink": ("back", "bytes_back")}


def traffic_rows(
    trial: str,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    control_bytes: Mapping[str, Mapping[str, int]],
    dispatches: Iterable[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return one row for each device and direction of the table ``traffic``.

    Args:
        trial: The trial.
        before: What ``linkd show`` answered before the trial.
        after: What it answered after it.
        control_bytes: Bytes of handshakes and pings by device, ``out`` and ``back``.
        dispatches: The trial's rows of the table ``dispatches``.
    """
    first = {link["device"]: link for link in before["links"]}
    listed = list(dispatches)
    rows = []
    for link in after["links"]:
        device = link["device"]
        for direction, (side, column) in DIRECTIONS.items():
            start, end = first[device][direction], link[direction]
            rows.append(
                {
                    "trial": trial,
                    "device": device,
                    "direction": direction,
                    "frame_bytes": end["bytes"] - start["bytes"],
                    "frames": end["packets"] - start["packets"],
                    "drops": end["drops"] - start["drops"],
                    "dispatch_bytes": sum(int(row[column]) for row in listed if row["device"] == device),
                    "control_bytes": int(control_bytes.get(device, {}).get(side, 0)),
                }
            )
    return rows


def unexplained_bytes(row: Mapping[str, Any]) -> int:
    """Return the bytes that the kernel counted and neither headers nor the records account for."""
    counted = int(row["frame_bytes"]) - HEADER_BYTES * int(row["frames"])
    return counted - int(row["dispatch_bytes"]) - int(row["control_bytes"])
