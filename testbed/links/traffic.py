"""What crossed the shaped links in a trial, counted by the kernel and added up from the records. Pure.

Both must agree: the kernel counts frames, the records whole messages of the data plane, and between them lie the
headers of Ethernet, IP and TCP, a fixed number of bytes a frame, and what TCP sent again: its frames are counted as
frames, and its payload is told by the socket that sent it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["HEADER_BYTES", "dispatch_bytes", "traffic_rows", "unexplained_bytes"]

HEADER_BYTES = 14 + 20 + 32  # Ethernet, IPv4 and TCP with time stamps
DIRECTIONS = {"downlink": "out", "uplink": "back"}


def traffic_rows(
    trial: str,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    control_bytes: Mapping[str, Mapping[str, int]],
    data_bytes: Mapping[str, Mapping[str, int]],
    retransmitted_bytes: Mapping[str, Mapping[str, int | None]] | None = None,
) -> list[dict[str, Any]]:
    """Return one row for each device and direction of the table ``traffic``.

    Args:
        trial: The trial.
        before: What ``linkd show`` answered before the trial.
        after: What it answered after it.
        control_bytes: Bytes of handshakes and pings by device, ``out`` and ``back``.
        data_bytes: Bytes of the workload's own messages by device, ``out`` and ``back``.
        retransmitted_bytes: Payload that TCP sent again by device, ``out`` and ``back``, as far as the kernel tells.
    """
    first = {link["device"]: link for link in before["links"]}
    rows = []
    for link in after["links"]:
        device = link["device"]
        for direction, side in DIRECTIONS.items():
            start, end = first[device].get(direction), link.get(direction)
            resent = (retransmitted_bytes or {}).get(device, {}).get(side)
            rows.append(
                {
                    "trial": trial,
                    "device": device,
                    "direction": direction,
                    "frame_bytes": _more(start, end, "bytes"),
                    "frames": _more(start, end, "packets"),
                    "drops": _more(start, end, "drops"),
                    "dispatch_bytes": int(data_bytes.get(device, {}).get(side, 0)),
                    "control_bytes": int(control_bytes.get(device, {}).get(side, 0)),
                    "retransmitted_bytes": resent,
                }
            )
    return rows


def dispatch_bytes(dispatches: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Return the bytes of dispatches by device, ``out`` and ``back``.

    Args:
        dispatches: Rows of the table ``dispatches``.
    """
    sums: dict[str, dict[str, int]] = {}
    for row in dispatches:
        of_device = sums.setdefault(str(row["device"]), dict.fromkeys(DIRECTIONS.values(), 0))
        for side in DIRECTIONS.values():
            of_device[side] += int(row[f"bytes_{side}"])
    return sums


def _more(start: Mapping[str, int] | None, end: Mapping[str, int] | None, key: str) -> int | None:
    """Return how much a counter has grown; None where nothing counts."""
    return None if start is None or end is None else end[key] - start[key]


def unexplained_bytes(row: Mapping[str, Any]) -> int:
    """Return the bytes that the kernel counted and neither headers, the records nor TCP itself account for.

    Above zero where segments carried TCP options beside time stamps (those that acknowledge selectively), below it
    where something was sent again that had been lost before it was counted.
    """
    counted = int(row["frame_bytes"]) - HEADER_BYTES * int(row["frames"])
    resent = row.get("retransmitted_bytes")
    # A table that was read back has NaN for what is not known.
    known = 0 if resent is None or resent != resent else int(resent)
    return counted - int(row["dispatch_bytes"]) - int(row["control_bytes"]) - known
