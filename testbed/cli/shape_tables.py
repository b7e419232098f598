"""`testbed shape`: how links, their rates and their verification are printed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.cli.common import print_table, say

if TYPE_CHECKING:
    from testbed.config.inventory import Inventory

__all__ = [
    "print_backends",
    "print_in_force",
    "print_links",
    "print_preview",
    "print_verification",
    "write_csv",
]

DIRECTIONS = ("downlink", "uplink")


def print_backends(lab: Inventory, answers: Mapping[str, Mapping[str, Any]]) -> None:
    """Print what each host can shape links with, what the inventory allows with a star."""
    from testbed.links.backends import BACKENDS, choices

    rows = [("host", "backend", "works", "why not")]
    for name, answer in answers.items():
        asked = choices(lab.host(name), lab.network)
        side = "device-" if lab.host(name).is_device else "bs-"
        for backend in BACKENDS:
            if backend.startswith((side, "socket-")):
                why = answer["backends"][backend]
                mark = f"{backend} *" if backend in asked else backend
                rows.append((name, mark, "no" if why else "yes", why or ""))
    print_table(rows, keys=2)
    print(f"* may be used: `network.shaping` is {lab.network.shaping}, `leaf` is {lab.network.leaf}")


def print_preview(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the rates that scenarios give each device; a column that is empty everywhere is left out."""
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "scenario": ("scenario", str),
        "device": ("device", str),
        "direction": ("direction", str),
        "model": ("model", str),
        "distance_m": ("distance m", _number),
        "path_loss_db": ("path loss dB", _number),
        "snr_db": ("SNR dB", _number),
        "share": ("share", _number),
        "mean_mbit": ("mean Mbit/s", _number),
        "p5_mbit": ("p5", _number),
        "p50_mbit": ("p50", _number),
        "p95_mbit": ("p95", _number),
        "outage": ("outage", lambda value: f"{value:.1%}"),
        "delay_ms": ("delay ms", _number),
        "jitter_ms": ("jitter ms", _number),
        "loss_percent": ("loss %", _number),
    }
    rare = ("distance_m", "path_loss_db", "snr_db", "delay_ms", "jitter_ms", "loss_percent")
    shown = {key: how for key, how in columns.items() if key not in rare or any(row[key] for row in rows)}
    print_table(
        [
            tuple(title for title, _ in shown.values()),
            *(
                tuple("" if row[key] is None else how(row[key]) for key, (_, how) in shown.items())
                for row in rows
            ),
        ],
        keys=3,
    )


def print_links(answers: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the links that hosts have shaped: rates, what gives them, and counters."""
    rows = [
        ("device", "direction", "Mbit/s", "delay ms", "share", "by", "bytes", "frames", "drops", "waiting")
    ]
    for answer in answers.values():
        for link in answer["links"]:
            for direction in DIRECTIONS:
                if link[f"{direction}_mbit"] is None:
                    continue
                counts = link.get(direction) or {}
                counted = ("bytes", "packets", "drops", "backlog_bytes")
                rows.append(
                    (
                        link["device"],
                        direction,
                        _number(link[f"{direction}_mbit"]),
                        _impairment(link),
                        _number(link["shares"][direction]),
                        link["backends"][direction],
                        *("-" if counts.get(key) is None else str(counts[key]) for key in counted),
                    )
                )
    if len(rows) == 1:
        print("no links are shaped")
        return
    print_table(rows, keys=2)
    playing = [name for name, answer in answers.items() if answer.get("playing")]
    if playing:
        print(f"a channel is played (by {', '.join(playing)})")
    for name, answer in answers.items():
        if answer.get("line") == "died":
            say(
                f"warning: {name}: the user-space line has died; the links are not what was asked until they are set"
            )


def print_in_force(links: Sequence[Mapping[str, Any]], verified: Sequence[Mapping[str, Any]]) -> None:
    """Print the rates that are in force, and how they were verified."""
    rows = [("device", "direction", "Mbit/s", "delay ms", "by", "verified")]
    for link in links:
        mine = [row for row in verified if all(row[key] == link[key] for key in ("device", "direction"))]
        state = "no" if not mine else "ok" if all(row["ok"] for row in mine) else "OFF"
        rate, delay = _number(link["asked_mbit"]), _number(link["delay_ms"])
        rows.append((link["device"], link["direction"], rate, delay, link["backend"], state))
    print_table(rows, keys=2)
    sys.stdout.flush()
    off = [row for row in verified if not row["ok"]]
    if off:
        say(
            f"warning: {len(off)} of {len(verified)} probes are off; `testbed shape verify` shows all of them"
        )


def print_verification(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print what was verified, what is off in red on a terminal."""
    head = ("links", "device", "direction", "state", "bytes", "Mbit/s", "expected ms", "median ms", "p95 ms")
    cells = [
        (
            row["scenario"],
            row["device"],
            row["direction"],
            row["state"],
            str(row["message_bytes"]),
            _number(row["asked_mbit"]),
            f"{row['expected_ms']:.2f}",
            f"{row['measured_ms']:.2f}",
            f"{row['p95_ms']:.2f}",
            "-" if row["ratio"] is None else f"{row['ratio']:.3f}",
            "ok" if row["ok"] else "OFF",
        )
        for row in rows
    ]
    off = [number for number, row in enumerate(rows, 1) if not row["ok"]]
    print_table([(*head, "ratio", ""), *cells], keys=5, red=off)
    print(f"{len(off)} of {len(rows)} are off" if off else f"all {len(rows)} are within their tolerance")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows of a verification to a file."""
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _impairment(link: Mapping[str, Any]) -> str:
    text = _number(link["delay_ms"])
    if link["jitter_ms"]:
        text += f" ± {_number(link['jitter_ms'])}"
    if link["loss_percent"]:
        text += f", {_number(link['loss_percent'])} % lost"
    return text
