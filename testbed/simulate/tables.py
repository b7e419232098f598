"""What happened in simulated trials as the tables of a run: the same columns, the same meanings. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from payloads.linkd.channel import DIRECTIONS, Channel
from payloads.station.rates import channel_states, rates_mbit, start_shares
from testbed.links.history import history_tables
from testbed.simulate.engine import TrialRecord
from testbed.simulate.world import World

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BACKEND", "trial_tables"]

BACKEND = "simulated"
"""What the table ``links`` says that shapes a link."""

Tables = dict[str, "pd.DataFrame"]


def trial_tables(world: World, record: TrialRecord, started_s: float) -> Tables:
    """Return one trial's rows by table.

    Args:
        world: What was simulated.
        record: What happened.
        started_s: When the trial began, in seconds since the run's start.
    """
    import pandas as pd

    name = record.trial.name
    requests = pd.DataFrame(
        [
            {
                "trial": name,
                "request": one.request,
                "warmup": one.warmup,
                "prompt_tokens": one.prompt_tokens,
                "output_tokens": one.output_tokens,
                "t_start_s": started_s + one.start_s,
                "ttft_ms": 1e3 * (one.first_s - one.start_s),
                "e2el_ms": 1e3 * (one.last_s - one.start_s),
            }
            for one in record.requests
        ]
    )
    tokens = pd.DataFrame(
        [
            {
                "trial": name,
                "request": one.request,
                "position": one.position,
                "iteration": iteration,
                "token": one.token,
                "t_s": started_s + one.done_s,
                "duration_ms": one.duration_ms,
                "bs_ms": one.bs_ms,
                "bound_ms": one.bound_ms,
            }
            for iteration, one in enumerate(record.tokens)
        ]
    )
    tables = {
        "requests": requests,
        "tokens": tokens,
        "dispatches": _dispatches(world, record, started_s),
        "selection": pd.DataFrame([{"trial": name, **row} for row in record.selection]),
        "routing": pd.DataFrame([{"trial": name, **row} for row in record.routing]),
        "links": _links(world, record, started_s),
        "trials": pd.DataFrame([_trial_row(world, record, started_s)]),
    }
    return {table: frame for table, frame in tables.items() if len(frame)}


def _trial_row(world: World, record: TrialRecord, started_s: float) -> dict[str, Any]:
    trial = record.trial
    return {
        "trial": trial.name,
        "order": trial.order,
        "policy": trial.policy,
        "scenario": trial.scenario,
        "repeat": trial.repeat,
        "concurrency": 1,
        "state": "completed",
        "t_start_s": started_s,
        "t_end_s": started_s + record.end_s,
        # Simulated links are what they are asked to be.
        "links_ok": True if world.links[trial.scenario, trial.repeat] is not None else None,
    }


def _dispatches(world: World, record: TrialRecord, started_s: float) -> pd.DataFrame:
    import pandas as pd

    if not record.dispatches:
        return pd.DataFrame()
    counts = [len(block.devices) for block in record.dispatches]
    passes = {(one.request, one.position): iteration for iteration, one in enumerate(record.tokens)}

    def spread(values: list[Any]) -> Any:
        return np.repeat(np.array(values), counts)

    columns: dict[str, Any] = {
        "trial": record.trial.name,
        "request": spread([block.request for block in record.dispatches]),
        "step": spread([block.step for block in record.dispatches]),
        "layer": spread([block.layer for block in record.dispatches]),
        "iteration": spread([passes[block.request, block.step] for block in record.dispatches]),
        "batch": 1,
        "device": np.array(world.devices)[np.concatenate([block.devices for block in record.dispatches])],
    }
    for key in record.dispatches[0].values:
        columns[key] = np.concatenate([block.values[key] for block in record.dispatches])
    stamps = ("sent", "received", "replied", "done")
    sent, received, replied, done = (started_s + columns.pop(f"{stamp}_s") for stamp in stamps)
    # An answer leaves when it is computed, and is there when its last bit is: nothing says when its first one is.
    columns |= {
        "t_send_s": sent,
        "t_done_s": done,
        "t_received_s": received,
        "t_started_s": received,
        "t_computed_s": replied,
        "t_replied_s": replied,
    }
    return pd.DataFrame(columns)


def _links(world: World, record: TrialRecord, started_s: float) -> pd.DataFrame:
    """Return the rates that came into force: at the trial's start, with each block, and with each allocation."""
    import pandas as pd

    trial = record.trial
    channel = world.links[trial.scenario, trial.repeat]
    if channel is None:
        return pd.DataFrame()
    changes = list(_rate_changes(world, record, channel))
    delays_ms = world.delays_ms[trial.scenario]
    at_start = pd.DataFrame(
        [
            {
                "t_s": started_s,
                "trial": trial.name,
                "scenario": trial.scenario,
                "device": device,
                "direction": direction,
                "backend": BACKEND,
                "cause": "set",
                "asked_mbit": changes[0][3 + row][column],
                "delay_ms": float(delays_ms[column]),
            }
            for column, device in enumerate(world.devices)
            for row, direction in enumerate(DIRECTIONS)
        ]
    )
    if not world.detail or len(changes) == 1:
        return at_start
    backends = {device: dict.fromkeys(DIRECTIONS, BACKEND) for device in world.devices}
    answer: Mapping[str, Any] = {"devices": world.devices, "changes": changes, "samples": []}
    later = history_tables(
        answer, trial=trial, backends=backends, started_unix=-started_s, window_s=(0.0, record.end_s)
    )["links"]
    return pd.concat([at_start, later], ignore_index=True)


def _rate_changes(world: World, record: TrialRecord, channel: Channel) -> Iterator[tuple[Any, ...]]:
    """Yield when rates may have changed, the cause, the reason, and all rates then, as linkd's history has them."""
    columns = [channel.devices.index(name) for name in world.devices]
    states = channel_states(channel)[:, :, columns]
    block, shares = 0, start_shares(channel)[:, 0, columns]
    yield 0.0, "set", None, *rates_mbit(channel.rule, states[:, block], shares).tolist()
    if not world.detail:
        return
    events: list[tuple[float, str, str | None, Any]] = [
        (change.at_s, "allocate", change.why, change.shares) for change in record.changes
    ]
    events += [(at_s, "block", None, number) for at_s, number in _block_starts(channel, record.end_s)]
    for at_s, cause, why, what in sorted(events, key=lambda event: event[0]):
        if cause == "block":
            block = what
        else:
            shares = what
        yield at_s, cause, why, *rates_mbit(channel.rule, states[:, block], shares).tolist()


def _block_starts(channel: Channel, end_s: float) -> Iterator[tuple[float, int]]:
    """Yield when each block but the first begins before a time, and its number; the channel starts again at its end."""
    if len(channel.t_s) == 1:
        return
    for cycle in range(int(end_s / channel.duration_s) + 1):
        for number, begin_s in enumerate(channel.t_s):
            at_s = cycle * channel.duration_s + begin_s
            if at_s >= end_s:
                return
            if at_s > 0:
                yield at_s, number
