"""The trials of a world on several processors. A process of its own knows the engine and no more."""

from __future__ import annotations

from collections.abc import Iterator

from testbed.simulate.engine import TrialRecord, simulate_trial
from testbed.simulate.processes import each_of
from testbed.simulate.world import World

__all__ = ["trial_records"]

_WORTH_LAYERS = 20_000
"""A process takes a second to start, a layer some hundred microseconds."""

_held: list[World] = []


def trial_records(world: World, jobs: int) -> Iterator[TrialRecord]:
    """Yield what happened in each trial, in order.

    Args:
        world: What is simulated.
        jobs: How many processes may work on it, where it is worth one; the records do not depend on that.
    """
    if jobs <= 1 or len(world.trials) == 1 or _work(world) < _WORTH_LAYERS:
        for trial in world.trials:
            yield simulate_trial(world, trial)
        return
    yield from each_of(_simulate, range(len(world.trials)), jobs, _take, world)


def _work(world: World) -> int:
    """Return how many layers there are, those of many tokens counted as several."""
    size = {
        name: trace.layers * (trace.steps + trace.prompt_tokens // 100)
        for name, trace in world.traces.items()
    }
    return sum(size[ask.trace] for trial in world.trials for ask in trial.asks)


def _take(world: World) -> None:
    _held[:] = [world]


def _simulate(number: int) -> TrialRecord:
    world = _held[0]
    return simulate_trial(world, world.trials[number])
