"""The jtop logger: what the stock jetson-stats client reports, beside the power that we read ourselves.

jetson-stats is licensed under the AGPL-3.0: its client is called here, and nothing of it is copied.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any, Callable, Iterator

from payloads.boardlog.power import BoardLogError
from payloads.boardlog.ticks import Lines
from payloads.services.ready import announce_ready

__all__ = ["STALL_S", "Stopped", "readings", "record_jtop"]

_OFFLINE_C = -256
STALL_S = 5.0
_PAUSE_S = 0.5
_MAX_PAUSE_S = 5.0
# What this program leaves in its environment for its next execution.
_EARLIER = "TESTBED_JTOP_EARLIER"


class Stopped(BaseException):
    """SIGTERM or SIGINT came. Not an Exception: the client under us swallows those."""


class _StalledError(Exception):
    """The client has been silent for too long."""


def readings(client: Any) -> Iterator[tuple[str, float]]:
    """Yield the names and values of one report of jtop; what a board does not have is left out."""
    power = client.power or {}
    total = power.get("tot") or {}
    if "power" in total:
        yield "power_total_mw", total["power"]
    for name, rail in sorted((power.get("rail") or {}).items()):
        if "power" in rail:
            yield f"power_{_plain(name)}_mw", rail["power"]
    for name, zone in sorted((client.temperature or {}).items()):
        if zone.get("online", True) and zone.get("temp", _OFFLINE_C) != _OFFLINE_C:
            yield f"temp_{_plain(name)}_c", zone["temp"]
    for gpu in list(dict(client.gpu or {}).values())[:1]:
        if "load" in gpu.get("status", {}):
            yield "gpu_load_percent", gpu["status"]["load"]
    idle = (client.cpu or {}).get("total", {}).get("idle")
    if idle is not None:
        yield "cpu_load_percent", 100.0 - idle
    used_kib = dict(client.memory or {}).get("RAM", {}).get("used")
    if used_kib is not None:
        yield "ram_used_mb", used_kib * 1.024 / 1000


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", str(name))


def record_jtop(out: Path, hz: float, stall_s: float = STALL_S) -> None:
    """Append what jtop reports to a file until SIGTERM; begin anew whenever it falls silent.

    To begin anew this program is executed again: the client keeps its broken connection for the rest of the
    process (multiprocessing holds one for each address and thread), so a second client here would get it too.

    Args:
        out: The file: lines of ``mono_ns,key,value``.
        hz: Reports a second. The service obeys its first client, so there can be more or fewer.
        stall_s: The longest silence before a new connection is made.

    Raises:
        BoardLogError: jetson-stats is not installed for this Python.
    """
    try:
        from jtop import jtop
    except ImportError as error:
        raise BoardLogError(f"jetson-stats is not installed for {sys.executable}: {error}") from error
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _on_stop)
    signal.signal(signal.SIGALRM, _on_stall)
    lines = Lines(out, "mono_ns,key,value")
    begun_s = time.monotonic()
    try:
        try:
            reason = _follow(lambda: jtop(interval=1.0 / hz), lines, hz, stall_s)
        except Exception as error:  # whatever the client raises, the remedy is a new one
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        finally:
            _watch(0)
        pause_s, said = _earlier() if time.monotonic() - begun_s < 4 * stall_s else (_PAUSE_S, "")
        if reason != said:
            print(f"jtop: {reason}; connecting again", file=sys.stderr, flush=True)
        time.sleep(pause_s)
    except Stopped:
        lines.close()
        return
    os.environ[_EARLIER] = json.dumps([min(2 * pause_s, _MAX_PAUSE_S), reason])
    os.execv(sys.executable, [sys.executable, "-m", "payloads.boardlog", *sys.argv[1:]])


def _earlier() -> tuple[float, str]:
    """Return the pause that is due after one more failure, and what was said of the last one."""
    text = os.environ.get(_EARLIER)
    if text is None:
        return _PAUSE_S, ""
    pause_s, said = json.loads(text)
    return float(pause_s), str(said)


def _follow(connect: Callable[[], Any], lines: Lines, hz: float, stall_s: float) -> str:
    """Write down one client's reports until it ends; return why it did."""
    allowed_s = max(stall_s, 5 / hz)
    _watch(allowed_s)
    least_gap_ns, written_ns = round(0.5e9 / hz), 0
    with connect() as client:
        while client.ok():
            stamp = time.monotonic_ns()
            if stamp - written_ns < least_gap_ns:
                continue  # another client made the service faster than we were asked to be
            rows = "".join(f"{stamp},{key},{value:.6g}\n" for key, value in readings(client))
            if not rows:
                continue  # a report without a reading is silence
            lines.write(rows)
            announce_ready()
            written_ns = stamp
            _watch(allowed_s)
    return "the service ended the connection"


def _watch(seconds: float) -> None:
    """Raise _StalledError in this thread after so many seconds, unless called again; 0 calls it off."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _on_stop(*_: Any) -> None:
    raise Stopped


def _on_stall(*_: Any) -> None:
    # Once more, should whatever cleans up now hang as well.
    _watch(STALL_S)
    raise _StalledError("no report came")
