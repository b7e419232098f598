"""The power model of an emulated board, without any input or output.

A board has one load between 0 and 1. Its power does not follow at once: the load passes a first-order lag
with the time constant tau, and a rail draws ``idle_mw + active_mw * level`` of the lagged load. Between
two moments with a constant load both the level and its integral have a closed form, so that neither the
tick rate of the emulator nor the sampling rate of a logger enters the truth: :func:`energy_mj` is what a
logger's integral is held against.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from testbed.boards.model import RailPower

__all__ = [
    "Backlog",
    "LoadStep",
    "RailPower",
    "area",
    "energy_mj",
    "parse_script",
    "relax",
    "run_script",
    "steps_between",
]


@dataclass(frozen=True)
class LoadStep:
    """A constant load for some time.

    Attributes:
        seconds: How long.
        load: The load, from 0 to 1.
    """

    seconds: float
    load: float


def relax(level: float, load: float, seconds: float, tau_s: float) -> float:
    """Return the lagged load after some time of constant load."""
    return load + (level - load) * math.exp(-seconds / tau_s)


def area(level: float, load: float, seconds: float, tau_s: float) -> float:
    """Return the integral of the lagged load over some time of constant load, in seconds."""
    return load * seconds - (level - load) * tau_s * math.expm1(-seconds / tau_s)


def run_script(level: float, steps: Iterable[LoadStep], tau_s: float) -> tuple[float, float]:
    """Return the lagged load after a script and its integral over the script, in seconds."""
    total = 0.0
    for step in steps:
        total += area(level, step.load, step.seconds, tau_s)
        level = relax(level, step.load, step.seconds, tau_s)
    return level, total


def energy_mj(rail: RailPower, steps: Sequence[LoadStep], *, level: float, tau_s: float) -> float:
    """Return the energy of a rail over a script in mJ, in closed form.

    Args:
        rail: The rail.
        steps: The script, from its beginning.
        level: The lagged load when the script begins.
        tau_s: The time constant in seconds.
    """
    duration_s = sum(step.seconds for step in steps)
    return rail.idle_mw * duration_s + rail.active_mw * run_script(level, steps, tau_s)[1]


def steps_between(script: Sequence[LoadStep], start_s: float, end_s: float) -> Iterator[LoadStep]:
    """Yield the parts of a script between two times after its beginning.

    Args:
        script: The script.
        start_s: The first time, in seconds after the script's beginning.
        end_s: The second time. What lies behind the script's end is not yielded.
    """
    begin = 0.0
    for step in script:
        end = begin + step.seconds
        overlap = min(end, end_s) - max(begin, start_s)
        if overlap > 0:
            yield LoadStep(overlap, step.load)
        begin = end


def parse_script(data: object) -> list[LoadStep]:
    """Return the load script of parsed JSON: a list of pairs of seconds and load.

    Raises:
        ValueError: It is something else; the message says what.
    """
    if not isinstance(data, list) or not data:
        raise ValueError("a load script is a list of [seconds, load] pairs")
    steps = []
    for number, pair in enumerate(data, start=1):
        numbers = (
            isinstance(pair, list)
            and len(pair) == 2
            and all(isinstance(value, int | float) for value in pair)
        )
        if not numbers or any(isinstance(value, bool) for value in pair):
            raise ValueError(f"step {number}: expected [seconds, load], got {pair!r}")
        seconds, load = float(pair[0]), float(pair[1])
        if not 0 < seconds < math.inf or not 0 <= load <= 1:
            raise ValueError(f"step {number}: expected seconds above 0 and a load from 0 to 1, got {pair!r}")
        steps.append(LoadStep(seconds, load))
    return steps


class Backlog:
    """Turns a counter of busy nanoseconds into loads that never lose any of it.

    A worker adds to its counter in lumps of up to 20 ms, so that one tick may see more busy time than has
    passed. The excess is carried to the next tick: the sum of load times time stays the sum of the busy
    time.
    """

    def __init__(self) -> None:
        self._last: int | None = None
        self._carried_ns = 0

    def load(self, counter_ns: int | None, elapsed_ns: int) -> float:
        """Return the load since the last call.

        Args:
            counter_ns: The counter now, or None where there is none.
            elapsed_ns: The time since the last call.
        """
        # A new file, or a counter that went back, is a new worker: it starts from its own zero.
        last = counter_ns if self._last is None else self._last
        added = (
            0
            if counter_ns is None or last is None
            else counter_ns - last
            if counter_ns >= last
            else counter_ns
        )
        self._last = counter_ns
        if elapsed_ns <= 0:
            self._carried_ns += added
            return 0.0
        busy = min(self._carried_ns + added, elapsed_ns)
        # A second is far more than a lump; whatever put more into the counter than time allows is
        # not believed.
        self._carried_ns = min(self._carried_ns + added - busy, 1_000_000_000)
        return busy / elapsed_ns
