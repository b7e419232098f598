"""A run as a trace for chrome://tracing or Perfetto: what took time as slices, power and rates as lines.

Slices are trials, and requests, tokens and dispatches, or the frames of a broadcast and what each device did of them;
lines are each board's power, and the rate asked of each link; marks are devices that were lost, late or back again.
Requests that were answered at once lie side by side.
The format is the JSON of the Trace Event Format: ``X`` a slice with a duration, ``C`` a counter, ``i`` a mark, ``M`` a
name; times in microseconds. A process stands for a host.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from testbed.records.energy import total_power
from testbed.records.run import Run
from testbed.report.rates import asked_steps, samples_of

__all__ = ["trace_events", "write_trace"]

STATION = 1
_TRIALS = 1
_FRAMES = 2
_ON_DEVICE = {1: "dispatches"}
_IMAGES_ON_DEVICE = {1: "images"}
_DISPATCH_FACTS = ("step", "iteration", "batch", "tokens", "bytes_out", "bytes_back")


def write_trace(run: Run, out: Path) -> Path:
    """Write a run's trace as JSON.

    Args:
        run: The run; quality passes are left out.
        out: The file; an earlier one is replaced as a whole.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f"{out.name}.part")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
        for number, event in enumerate(trace_events(run)):
            file.write((",\n" if number else "") + json.dumps(event, separators=(",", ":")))
        file.write("\n]}\n")
    unfinished.replace(out)
    return out


def trace_events(run: Run) -> Iterator[dict[str, Any]]:
    """Yield the events of a run's trace.

    Args:
        run: The run.
    """
    hosts = {name: STATION + 1 + place for place, name in enumerate(run.devices)}
    lanes = _lanes(run.requests)
    threads = {_TRIALS: "trials"}
    if run.broadcast:
        threads |= {_FRAMES: "frames"}
    else:
        for lane in range(max(lanes.values(), default=0) + 1):
            end = f" {lane + 1}" if lane else ""
            threads |= {_thread(lane): f"requests{end}", _thread(lane) + 1: f"tokens{end}"}
    yield from _names(STATION, "base station", threads)
    for name, host in hosts.items():
        yield from _names(host, name, _IMAGES_ON_DEVICE if run.broadcast else _ON_DEVICE)
    for row in run.trials.to_dict("records"):
        title = f"{row['trial']} {row['policy']} {row['scenario']}"
        facts = {"repeat": int(row["repeat"]), "state": str(row["state"])}
        yield _slice(title, STATION, _TRIALS, row["t_start_s"], row["t_end_s"], facts)
    for row in run.requests.to_dict("records"):
        end_s = row["t_start_s"] + row["e2el_ms"] / 1000
        facts = {"output_tokens": int(row["output_tokens"]), "warmup": bool(row["warmup"])}
        if pd.notna(row["finish"]):
            facts["finish"] = str(row["finish"])
        thread = _thread(lanes[row["trial"], row["request"]])
        yield _slice(f"{row['trial']} {row['request']}", STATION, thread, row["t_start_s"], end_s, facts)
    for row in run.tokens.to_dict("records"):
        begin_s = row["t_s"] - row["duration_ms"] / 1000
        facts = {"trial": str(row["trial"]), "request": str(row["request"])}
        facts |= {key: int(row[key]) for key in ("iteration", "lost", "rerouted") if pd.notna(row[key])}
        thread = _thread(lanes.get((row["trial"], row["request"]), 0)) + 1
        yield _slice(f"token {row['position']}", STATION, thread, begin_s, row["t_s"], facts)
    yield from _marks(run, hosts)
    yield from _frames(run, hosts)
    yield from _dispatches(run, hosts)
    for name, host in hosts.items():
        power = total_power(run, name)
        for t_s, mw in zip(power.t_s, power.mw, strict=True):
            yield _event("C", "power", host, 0, t_s) | {"args": {"W": round(float(mw) / 1000, 3)}}
    yield from _rates(run, hosts)


def _rates(run: Run, hosts: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Yield what was asked of each link, and what crossed it, as counters of its device."""
    steps = asked_steps(run)
    for (name, direction), asked in steps.items():
        for t_s, mbit in zip(asked.t_s, asked.mbit, strict=True):
            if pd.notna(mbit):
                value = {"Mbit/s": round(float(mbit), 4)}
                yield _event("C", f"{direction} asked for", hosts[name], 0, t_s) | {"args": value}
    for row in samples_of(run, steps).to_dict("records"):
        # A counter holds until its next value, so that of an interval stands at its begin.
        value = {"Mbit/s": round(float(row["mbit"]), 4)}
        title = f"{row['direction']} crossed"
        yield _event("C", title, hosts[str(row["device"])], 0, row["begin_s"]) | {"args": value}


def _dispatches(run: Run, hosts: dict[str, int]) -> Iterator[dict[str, Any]]:
    rows = run.dispatches[run.dispatches["trial"].isin(set(run.trials["trial"]))]
    for row in rows.to_dict("records"):
        host = hosts[str(row["device"])]
        facts = {
            "trial": str(row["trial"]),
            **({"request": str(row["request"])} if pd.notna(row["request"]) else {}),
            **{key: int(row[key]) for key in _DISPATCH_FACTS if pd.notna(row[key])},
        }
        layer = f"layer {row['layer']}"
        received, replied = row["t_received_s"], row["t_replied_s"]
        if pd.isna(received) or pd.isna(replied):
            yield _slice(f"{layer} (no device time stamps)", host, 1, row["t_send_s"], row["t_done_s"], facts)
            continue
        yield _slice(f"{layer} downlink", host, 1, row["t_send_s"], received, facts)
        yield _slice(f"{layer} on device", host, 1, received, replied, facts)
        if pd.notna(row["t_started_s"]) and pd.notna(row["t_computed_s"]):
            yield _slice(f"{layer} experts", host, 1, row["t_started_s"], row["t_computed_s"], {})
        yield _slice(f"{layer} uplink", host, 1, replied, row["t_done_s"], facts)


def _frames(run: Run, hosts: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Yield the frames of a broadcast that were sent: encoding and sending, and each device's air and decoding."""
    sent = run.frames[run.frames["t_send_s"].notna() & run.frames["t_done_s"].notna()]
    for row in sent.to_dict("records"):
        facts: dict[str, Any] = {"trial": str(row["trial"]), "set": str(row["set"]), "pair": str(row["pair"])}
        facts |= {"share": float(row["share"]), "symbols": int(row["symbols"])}
        title, begin_s = f"frame {row['frame']}", float(row["t_send_s"])
        if pd.notna(row["encode_ms"]):
            yield _slice(
                f"{title} encode", STATION, _FRAMES, begin_s - row["encode_ms"] / 1000, begin_s, facts
            )
        yield _slice(title, STATION, _FRAMES, begin_s, row["t_done_s"], facts)
    images = run.images.merge(sent[["trial", "frame", "t_send_s"]], on=["trial", "frame"], how="inner")
    for row in images.dropna(subset=["device", "air_ms"]).to_dict("records"):
        host, begin_s = hosts[str(row["device"])], float(row["t_send_s"])
        facts = {
            "trial": str(row["trial"]),
            "user": int(row["user"]),
            "psnr_db": round(float(row["psnr_db"]), 2),
        }
        there_s = begin_s + row["air_ms"] / 1000
        yield _slice(f"frame {row['frame']} air", host, 1, begin_s, there_s, facts)
        if pd.notna(row["decode_ms"]):
            end_s = there_s + row["decode_ms"] / 1000
            yield _slice(f"frame {row['frame']} decode", host, 1, there_s, end_s, facts)


def _lanes(requests: pd.DataFrame) -> dict[tuple[str, str], int]:
    """Return a lane for each request, so that those of one lane follow each other."""
    lanes: dict[tuple[str, str], int] = {}
    ends: list[float] = []
    for row in requests.sort_values("t_start_s", kind="stable").to_dict("records"):
        begin_s, end_s = row["t_start_s"], row["t_start_s"] + row["e2el_ms"] / 1000
        # One that begins when another ends may share its lane, however the stamps were rounded.
        lane = next((place for place, end in enumerate(ends) if end <= begin_s + 1e-6), len(ends))
        ends[lane : lane + 1] = [end_s]
        lanes[str(row["trial"]), str(row["request"])] = lane
    return lanes


def _thread(lane: int) -> int:
    return 2 + 2 * lane


def _marks(run: Run, hosts: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Yield what happened to the devices, each on its device, or on the base station where it was none of them."""
    for row in run.events.to_dict("records"):
        facts: dict[str, Any] = {"trial": str(row["trial"])}
        facts |= {key: str(row[key]) for key in ("request", "detail") if pd.notna(row[key])}
        facts |= {key: int(row[key]) for key in ("step", "layer") if pd.notna(row[key])}
        host, thread = (hosts[row["device"]], 1) if row["device"] in hosts else (STATION, _TRIALS)
        yield _event("i", str(row["event"]), host, thread, row["t_s"]) | {"s": "p", "args": facts}


def _names(host: int, title: str, threads: dict[int, str]) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "name": "process_name", "pid": host, "args": {"name": title}}
    yield {"ph": "M", "name": "process_sort_index", "pid": host, "args": {"sort_index": host}}
    for number, name in threads.items():
        yield {"ph": "M", "name": "thread_name", "pid": host, "tid": number, "args": {"name": name}}


def _event(kind: str, name: str, host: int, thread: int, t_s: float) -> dict[str, Any]:
    return {"ph": kind, "name": name, "pid": host, "tid": thread, "ts": round(float(t_s) * 1e6, 1)}


def _slice(
    name: str, host: int, thread: int, begin_s: float, end_s: float, facts: dict[str, Any]
) -> dict[str, Any]:
    length = round(max(0.0, float(end_s) - float(begin_s)) * 1e6, 1)
    return _event("X", name, host, thread, begin_s) | {"dur": length, "args": facts}
