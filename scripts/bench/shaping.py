#!/usr/bin/env python3
"""What linkd's links are worth: asked and delivered, for messages and for long flows. Needs root and iproute2.

    python scripts/bench/shaping.py [--quick] [--only sizes|change|rerate ...] [--json FILE]

In network namespaces of its own, all in one run on one machine:

- ``sizes``: messages of 1 KiB to 1 MiB at 5 to 200 Mbit/s, both ways, idle and with three other devices at full
  load in both directions (TCP, the same rate), beside the usual HTB recipe and tcconfig's command list;
- ``change``: a change of the 16 leaves of 8 devices through linkd beside 16 ``tc`` processes;
- ``rerate``: 8 full devices, both directions at once, re-rated 50 times a second: delivered against asked.

The exit status is 1 when a floor is missed, which is named.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ["PYTHONPATH"] = sys.path[0]

from shaping_lab import INTERFACE, PORT, PROBE_PORT, Lab
from shaping_rivals import Recipe, apply_recipe, find_tcset, has_netem, htb_recipe, take_away, tcconfig_recipe

from payloads.linkd.client import Client
from payloads.linkd.links import DIRECTIONS, Link
from payloads.linkd.load import LoadProcess
from payloads.linkd.model import ETHERNET, bucket_bytes, limit_bytes
from payloads.linkd.plan import LEAF_MAJOR, LEAVES, ROOT_HANDLE
from payloads.linkd.probe import Settings, percentile, probe_links
from payloads.wire.auth import read_key

PARTS = ("sizes", "change", "rerate")
KIB = 1024
FULL_LOAD = 0.85
RETRIES = 4
FLOOR_TIMES = 15.0
FLOOR_SHARE = 0.03
ACK_BYTES = ETHERNET.header_bytes


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    rates_mbit: tuple[float, ...]
    message_bytes: tuple[int, ...]
    repeats: int
    within_s: float
    rivals_busy: bool
    changes: int
    rerate_s: float


WHOLE = Extent((5, 20, 100, 200), tuple(n * KIB for n in (1, 4, 8, 32, 128, 1024)), 25, 2.0, True, 60, 30.0)
QUICK = Extent((20, 200), (8 * KIB, 128 * KIB), 9, 0.5, False, 15, 6.0)


def main() -> int:
    """Measure, print the tables, and return 1 when a floor was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less of everything: under a minute")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part, and so again")
    parser.add_argument("--rates", help="for sizes: Mbit/s with commas between")
    parser.add_argument(
        "--leaf",
        choices=("auto", *LEAVES),
        default="tbf",
        help="linkd's leaf for sizes and rerate (default: tbf)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("this needs root: network namespaces and queueing disciplines", file=sys.stderr)
        return 2
    extent = QUICK if options.quick else WHOLE
    rates = tuple(float(rate) for rate in options.rates.split(",")) if options.rates else extent.rates_mbit
    parts = options.only or PARTS
    result: dict[str, Any] = {"machine": machine()}
    print("; ".join(f"{key} {value}" for key, value in result["machine"].items()), flush=True)
    began = time.monotonic()
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        if "sizes" in parts:
            with Lab(4, Path(folder)) as lab:
                result["sizes"], result["tcconfig"] = sizes(lab, extent, rates, options.leaf)
            missed += print_sizes(result["sizes"], result["tcconfig"])
    with tempfile.TemporaryDirectory() as folder:
        if "change" in parts or "rerate" in parts:
            with Lab(8, Path(folder)) as lab:
                if "change" in parts:
                    lab.start_daemon("--leaf", "tbf")
                    result["change"] = change(lab, extent.changes)
                    missed += print_change(result["change"])
                if "rerate" in parts:
                    lab.start_daemon("--leaf", options.leaf)
                    result["rerate"] = rerate(lab, extent.rerate_s)
                    missed += print_rerate(result["rerate"])
    result |= {"took_s": round(time.monotonic() - began, 1), "missed": missed}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"\n{result['took_s']:.0f} s; "
        + ("all floors held" if not missed else f"{len(missed)} floors missed:")
    )
    for line in missed:
        print(f"  {line}")
    return 1 if missed else 0


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    return {
        "kernel": f"{platform.system()} {platform.release()}",
        "processors": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
    }


def links_of(lab: Lab, rate_mbit: float) -> list[Link]:
    """Return the links of all devices at one rate."""
    return [Link(name, lab.address(name), PORT, PROBE_PORT, rate_mbit, rate_mbit) for name in lab.devices]


def tolerance(rate_mbit: float) -> float:
    """Return the share of the expected time that a median may be off."""
    return 0.08 if rate_mbit > 100 else 0.05


def sizes(lab: Lab, extent: Extent, rates: Sequence[float], leaf: str) -> tuple[list[dict[str, Any]], str]:
    """Time messages through each shaper; return the rows, and what tcconfig was."""
    tcset, about = find_tcset()
    shapers: dict[str, Recipe | None] = {"linkd": None, "htb": htb_recipe}
    if tcset is not None:
        netem = has_netem(lab)
        shapers["tcconfig"] = tcconfig_recipe(tcset, netem)
        about += "" if netem else ", its netem leaves left out (none in this kernel)"
    rows = []
    for rate in rates:
        for name, recipe in shapers.items():
            rows += [{"shaper": name, **row} for row in through(lab, recipe, rate, extent, leaf)]
    return rows, about


def through(lab: Lab, recipe: Recipe | None, rate: float, extent: Extent, leaf: str) -> list[dict[str, Any]]:
    """Time messages through linkd, or through a recipe."""
    links = links_of(lab, rate)
    backends: dict[tuple[str, str], str | None] = {}
    if recipe is None:
        lab.start_daemon("--leaf", leaf)
        with Client(lab.socket_file) as client:
            client.set([link.as_json() for link in links])
            shown = client.show()["links"]
        for row in shown:
            for direction in DIRECTIONS:
                backends[row["device"], direction] = row["backends"][direction]
    else:
        apply_recipe(lab, recipe, rate)
    settings = Settings(
        extent.message_bytes,
        repeats=extent.repeats,
        tolerance=tolerance(rate),
        retries=RETRIES if recipe is None else 0,
        busy=recipe is None or extent.rivals_busy,
        within_s=extent.within_s,
    )

    def load(others: Sequence[Link], seconds: float) -> LoadProcess:
        return LoadProcess(others, lab.key_file, seconds)

    try:
        key = read_key(lab.key_file)
        return list(probe_links(links, key, settings, backends, load, lab.devices[:1]))
    finally:
        if recipe is None:
            lab.stop_daemon()
        else:
            take_away(lab)


def print_sizes(rows: list[dict[str, Any]], tcconfig: str) -> list[str]:
    """Print measured beside expected times; return the floors that were missed."""
    shapers = [name for name in ("linkd", "htb", "tcconfig") if any(row["shaper"] == name for row in rows)]
    print(
        f"\nmessages: median less round trip in ms, and its ratio to the expected time; tcconfig: {tcconfig}"
    )
    backends = sorted({str(row["backend"]) for row in rows if row["shaper"] == "linkd"})
    print(f"linkd: {', '.join(backends)}")
    heads = [f"{name} {state}" for name in shapers for state in ("idle", "busy")]
    print(f"{'Mbit/s':>6} {'way':<8} {'KiB':>5} {'expected':>9}" + "".join(f"{head:>20}" for head in heads))
    cells = {(r["asked_mbit"], r["direction"], r["message_bytes"], r["shaper"], r["state"]): r for r in rows}
    missed = []
    for rate, direction, size in dict.fromkeys(key[:3] for key in cells):
        line = f"{rate:>6g} {direction:<8} {size // KIB:>5}"
        line += f" {cells[rate, direction, size, 'linkd', 'idle']['expected_ms']:>9.2f}"
        for shaper in shapers:
            for state in ("idle", "busy"):
                row = cells.get((rate, direction, size, shaper, state))
                line += f"{'':>20}" if row is None else f"{_cell(row):>20}"
                if row is not None and shaper == "linkd":
                    missed += _floors(row)
        print(line)
    loads = [row["load_share"] for row in rows if row["shaper"] == "linkd" and row["state"] == "busy"]
    again = [row for row in rows if row["shaper"] == "linkd" and row["attempts"] > 1]
    print(f"{len(again)} of linkd's rows were measured more than once, at most {RETRIES + 1} times"
          + "".join(f"; {r['asked_mbit']:g} Mbit/s {r['direction']} {r['message_bytes'] // KIB} KiB {r['state']}:"
                    f" {r['attempts']}" for r in again))  # fmt: skip
    if loads:
        least, median = min(loads), statistics.median(loads)
        print(f"the least full link of the others under load: {median:.3f} of its rate (worst {least:.3f})")
    return missed


def _cell(row: dict[str, Any]) -> str:
    ratio = "-" if row["ratio"] is None else f"{row['ratio']:.3f}"
    return f"{row['measured_ms']:.2f} {ratio:>6}{' ' if row['ok'] else '!'}"


def _floors(row: dict[str, Any]) -> list[str]:
    where = f"sizes: {row['asked_mbit']:g} Mbit/s {row['direction']} {row['message_bytes'] // KIB} KiB {row['state']}"
    missed = []
    if not row["ok"]:
        missed.append(f"{where}: {row['measured_ms']} ms, expected {row['expected_ms']} ms")
    if row["load_share"] is not None and row["load_share"] < FULL_LOAD:
        missed.append(f"{where}: the others were only {row['load_share']:.2f} full")
    return missed


def change(lab: Lab, count: int) -> dict[str, Any]:
    """Time a change of all 16 leaves through linkd and by 16 tc processes, in turn."""
    links = links_of(lab, 20)
    times: dict[str, list[float]] = {"linkd": [], "tc": []}
    with Client(lab.socket_file) as client:
        ifb = str(client.set([link.as_json() for link in links])["ifb"])
        for number in range(count + 2):
            for name, run in (("linkd", _by_linkd), ("tc", _by_tc)):
                rate = 10.0 + (2 * number + (name == "tc")) % 17
                began = time.perf_counter()
                run(client, lab, ifb, rate)
                if number >= 2:
                    times[name].append((time.perf_counter() - began) * 1e3)
    return {
        name: {"n": count, "median_ms": statistics.median(values), "p95_ms": percentile(values, 0.95)}
        for name, values in times.items()
    }


def _by_linkd(client: Client, lab: Lab, _ifb: str, rate: float) -> None:
    client.rerate({device: {f"{way}_mbit": rate for way in DIRECTIONS} for device in lab.devices})


def _by_tc(_client: Client, lab: Lab, ifb: str, rate: float) -> None:
    rated = f"tbf rate {rate * 1e6:.0f}bit burst {bucket_bytes(rate)} limit {limit_bytes(rate)}".split()
    for interface in (INTERFACE, ifb):
        for minor in range(1, 1 + len(lab.devices)):
            where = ("parent", f"{ROOT_HANDLE >> 16:x}:{minor:x}", "handle", f"{LEAF_MAJOR + minor:x}:")
            subprocess.run(["tc", "qdisc", "change", "dev", interface, *where, *rated], check=True)


def print_change(result: dict[str, Any]) -> list[str]:
    """Print both; return the floor if it was missed."""
    ours, theirs = result["linkd"], result["tc"]
    result["times"] = theirs["median_ms"] / ours["median_ms"]
    print(f"\nchange of 16 leaves, {ours['n']} times each, in ms")
    for name, row in (("linkd", ours), ("16 tc processes", theirs)):
        print(f"  {name:<16} median {row['median_ms']:7.2f}   p95 {row['p95_ms']:7.2f}")
    print(f"  linkd is {result['times']:.1f} times faster (p95: {theirs['p95_ms'] / ours['p95_ms']:.1f})")
    if result["times"] < FLOOR_TIMES:
        return [f"change: {result['times']:.1f} times faster, not {FLOOR_TIMES:g}"]
    return []


def rerate(
    lab: Lab, seconds: float, hz: float = 50.0, low: float = 2.0, high: float = 10.0
) -> dict[str, Any]:
    """Re-rate 8 full devices in both directions; return delivered and asked bytes of each link and direction."""
    links = links_of(lab, (low + high) / 2)
    asked: dict[tuple[str, str], float] = dict.fromkeys(
        ((device, way) for device in lab.devices for way in DIRECTIONS), 0.0
    )
    draw = random.Random(3).uniform
    late_ms: list[float] = []
    with Client(lab.socket_file) as client:
        client.set([link.as_json() for link in links])
        with LoadProcess(links, lab.key_file, seconds + 60) as load:
            time.sleep(4.0)
            rates = dict.fromkeys(asked, (low + high) / 2)
            before, received_before = _counters(client, load)
            began = since = time.monotonic()
            for number in range(1, int(seconds * hz) + 1):
                time.sleep(max(0.0, began + number / hz - time.monotonic()))
                new = {key: draw(low, high) for key in asked}
                sent = time.monotonic()
                client.rerate({d: {f"{w}_mbit": new[d, w] for w in DIRECTIONS} for d in lab.devices})
                done = time.monotonic()
                late_ms.append((done - began - number / hz) * 1e3)
                now = (sent + done) / 2
                for key, rate in rates.items():
                    asked[key] += rate * 1e6 / 8 * (now - since)
                rates, since = new, now
            after, received_after = _counters(client, load)
            now = time.monotonic()
            for key, rate in rates.items():
                asked[key] += rate * 1e6 / 8 * (now - since)
    rows = []
    for device, way in asked:
        sent_bytes = after[device, way][0] - before[device, way][0]
        packets = after[device, way][1] - before[device, way][1]
        payload = received_after[device][way] - received_before[device][way]
        # What came is payload; of the frames that carried it the class tells how many were acknowledgements.
        frames = payload / ETHERNET.payload_bytes
        received = payload + ETHERNET.header_bytes * frames + ACK_BYTES * max(0.0, packets - frames)
        rows.append({
            "device": device, "direction": way, "asked_bytes": round(asked[device, way]),
            "class_bytes": sent_bytes, "received_bytes": round(received),
            "class_share": sent_bytes / asked[device, way], "received_share": received / asked[device, way],
        })  # fmt: skip
    return {"seconds": seconds, "hz": hz, "from_mbit": low, "to_mbit": high, "late_p95_ms": percentile(late_ms, 0.95),
            "rows": rows}  # fmt: skip


def _counters(client: Client, load: LoadProcess) -> tuple[dict[tuple[str, str], tuple[int, int]], Any]:
    """Return bytes and frames of each class, and what the receivers have."""
    shown = client.show()["links"]
    _time_s, received = load.counts()
    return {
        (row["device"], way): (row[way]["bytes"], row[way]["packets"]) for row in shown for way in DIRECTIONS
    }, received


def print_rerate(result: dict[str, Any]) -> list[str]:
    """Print delivered against asked; return the floors that were missed."""
    rows = result["rows"]
    print(
        f"\n8 full devices, both ways, re-rated {result['hz']:g} times a second for {result['seconds']:g} s between"
        f" {result['from_mbit']:g} and {result['to_mbit']:g} Mbit/s: delivered / integral of the asked rates"
    )
    missed = []
    for what, of in (("class", "kernel's class counters"), ("received", "receivers")):
        shares = sorted(row[f"{what}_share"] for row in rows)
        total = sum(row[f"{what}_bytes"] for row in rows) / sum(row["asked_bytes"] for row in rows)
        print(f"  {of:<24} sum {total:.4f}   links from {shares[0]:.4f} to {shares[-1]:.4f}")
        missed += [
            f"rerate: {row['device']} {row['direction']}: {of}: {row[f'{what}_share']:.4f} of the asked bytes"
            for row in rows
            if abs(row[f"{what}_share"] - 1) > FLOOR_SHARE
        ]
    return missed


if __name__ == "__main__":
    sys.exit(main())
