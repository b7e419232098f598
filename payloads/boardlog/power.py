"""The power sampler: every rail, at a steady rate, with raw time stamps."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Callable

from payloads.boardlog.rails import Rail, RailFile, find_rails, read_rail_mw
from payloads.boardlog.ticks import Lines, ticks
from payloads.services.ready import announce_ready

__all__ = ["BoardLogError", "Sampler", "record_power"]

_SILENT_S = 5.0
_SAY_AGAIN_S = 60.0


class BoardLogError(Exception):
    """Why a logger cannot go on, in one line for people."""


class Sampler:
    """Reads all rails of a board.

    Args:
        rails: The rails; their files are opened here and stay open.
    """

    def __init__(self, rails: list[Rail]) -> None:
        self._rails = [(rail.name, [RailFile(source) for source in rail.sources]) for rail in rails]
        self._heard_s = time.monotonic()
        self._said_s: dict[str, float] = {}

    def sample(self) -> str:
        """Return one line for each rail that answered, all with the time of the middle of the reading.

        Raises:
            BoardLogError: No rail has answered for some seconds.
        """
        begun_ns = time.monotonic_ns()
        found = []
        for name, files in self._rails:
            try:
                found.append((name, read_rail_mw(files)))
            except (OSError, ValueError) as error:
                self._say(name, error)
        ended_ns = time.monotonic_ns()
        if found:
            self._heard_s = time.monotonic()
        elif time.monotonic() - self._heard_s > _SILENT_S:
            raise BoardLogError(f"no power rail has answered for {_SILENT_S:g} s")
        stamp = (begun_ns + ended_ns) // 2
        return "".join(f"{stamp},{name},{power_mw:.3f}\n" for name, power_mw in found)

    def _say(self, name: str, error: Exception) -> None:
        """Report a rail that does not answer, but not at every sample."""
        now_s = time.monotonic()
        if now_s - self._said_s.get(name, -_SAY_AGAIN_S) >= _SAY_AGAIN_S:
            self._said_s[name] = now_s
            print(f"{name}: not read: {error}", file=sys.stderr, flush=True)


def record_power(root: Path, out: Path, hz: float, stopped: Callable[[float], bool]) -> None:
    """Append the power of all rails to a file until told to stop.

    Args:
        root: Where sysfs is.
        out: The file: lines of ``mono_ns,rail,mw``.
        hz: Samples a second.
        stopped: Waits for the seconds given and returns True when it is time to end.
    """
    rails = find_rails(root)
    if not rails:
        raise BoardLogError(f"no power rail under {root}/bus/i2c/devices: is this a Jetson?")
    sampler, lines = Sampler(rails), Lines(out, "mono_ns,rail,mw")
    announced = False
    for _ in ticks(hz, stopped):
        lines.write(sampler.sample())
        if not announced:
            announce_ready()
            announced = True
    lines.close()
