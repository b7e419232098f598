"""What the links did in a trial: the link daemon's history as rows of the tables ``links`` and ``throughput``. Pure.

A trial may hold tens of thousands of changes, so that all of it is done on arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from payloads.linkd.channel import DIRECTIONS
from testbed.errors import TestbedError
from testbed.links.scenario import OfTrial

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["history_problems", "history_tables"]

Floats = NDArray[np.float64]


def history_problems(answer: Mapping[str, Any], host: str) -> list[str]:
    """Return what went wrong with the links while they were played, in words; nothing where all went well.

    Args:
        answer: What ``linkd history`` answered.
        host: The host that answered.
    """
    problems = []
    if answer.get("line_died_unix_s") is not None:
        problems.append(f"{host}: the user-space line died, so that the links were not what was asked")
    if answer.get("failed") is not None:
        problems.append(f"{host}: a change of the links failed: {answer['failed']}")
    if answer.get("lost"):
        problems.append(f"{host}: the first {answer['lost']} changes of the links are not in the records")
    return problems


def history_tables(
    answer: Mapping[str, Any],
    *,
    trial: OfTrial,
    backends: Mapping[str, Mapping[str, str]],
    started_unix: float,
    window_s: tuple[float, float],
) -> dict[str, pd.DataFrame]:
    """Return what ``linkd history`` answered as frames of the tables ``links`` and ``throughput``.

    A change has a row for each device and direction whose rate it changed; what ``set`` put in force is recorded
    when it is set. Samples are those of the trial itself, not of the verification before it.

    Args:
        answer: The answer.
        trial: The trial that it was recorded in.
        backends: What shapes each device's directions.
        started_unix: The run's start in unix seconds on the clock of the host that answered.
        window_s: The trial's start and end, in seconds since the run's start.

    Raises:
        TestbedError: It is no history.
    """
    try:
        devices = [str(name) for name in answer["devices"]]
        return {
            "links": _changes(answer["changes"], devices, trial, backends, started_unix),
            "throughput": _samples(answer["samples"], devices, trial, started_unix, window_s),
        }
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise TestbedError(f"the link daemon's history cannot be read: {error}") from error


def _changes(
    changes: Sequence[Sequence[Any]],
    devices: Sequence[str],
    trial: OfTrial,
    backends: Mapping[str, Mapping[str, str]],
    started_unix: float,
) -> pd.DataFrame:
    import pandas as pd

    rates = _array([change[3:5] for change in changes], len(devices))
    before = np.concatenate([np.full((1, *rates.shape[1:]), np.nan), rates[:-1]]) if len(rates) else rates
    changed = (rates != before) & ~np.isnan(rates)
    causes = np.array([str(change[1]) for change in changes], dtype=object)
    changed[causes == "set"] = False
    number, direction, device = np.nonzero(changed)
    names = np.array(devices, dtype=object)
    shaped_by = [[backends.get(name, {}).get(way) for name in devices] for way in DIRECTIONS]
    times = np.array([change[0] for change in changes], dtype=float)
    reasons = np.array([change[2] for change in changes], dtype=object)
    return pd.DataFrame(
        {
            "t_s": times[number] - started_unix,
            "trial": trial.name,
            "scenario": trial.scenario,
            "device": names[device],
            "direction": np.array(DIRECTIONS, dtype=object)[direction],
            "backend": np.array(shaped_by, dtype=object)[direction, device],
            "cause": causes[number],
            "why": reasons[number],
            "asked_mbit": rates[number, direction, device],
        }
    )


def _samples(
    samples: Sequence[Sequence[Any]],
    devices: Sequence[str],
    trial: OfTrial,
    started_unix: float,
    window_s: tuple[float, float],
) -> pd.DataFrame:
    import pandas as pd

    times = np.array([sample[0] for sample in samples], dtype=float) - started_unix
    counted = _array([sample[1:3] for sample in samples], len(devices))
    backlog = _array([sample[3:5] for sample in samples], len(devices))
    sent = np.diff(counted, axis=0)
    begins, ends = times[:-1], times[1:]
    inside = (ends > window_s[0]) & (begins < window_s[1]) & (ends > begins)
    # A class that was made anew counts from nought: nothing can be said of that interval.
    number, direction, device = np.nonzero(inside[:, None, None] & (sent >= 0))
    waiting = pd.array(backlog[1:][number, direction, device], dtype="Float64")
    return pd.DataFrame(
        {
            "t_s": ends[number],
            "trial": trial.name,
            "device": np.array(devices, dtype=object)[device],
            "direction": np.array(DIRECTIONS, dtype=object)[direction],
            "interval_s": (ends - begins)[number],
            "frame_bytes": sent[number, direction, device].astype(np.int64),
            "backlog_bytes": waiting.astype("Int64"),
        }
    )


def _array(rows: Sequence[Sequence[Sequence[float | None]]], devices: int) -> Floats:
    """Return the numbers of both directions as an array [row, direction, device]; null is NaN."""
    if not rows:
        return np.empty((0, len(DIRECTIONS), devices))
    array = np.array(rows, dtype=float)
    if array.shape != (len(rows), len(DIRECTIONS), devices):
        raise ValueError(f"{devices} numbers for each direction were expected")
    return array
