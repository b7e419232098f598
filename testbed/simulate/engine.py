"""One trial on a virtual clock: the base station's own policies decide, the latency model says what it takes. Pure.

The order of things is the base station's: an allocation before a token and before a layer, the layer's dispatches all
at once, the next layer when the last answer is there. The same world gives the same records, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from payloads.station.link_state import LinkState, VirtualLinks
from payloads.wdmoe.bounds import bounds_of
from payloads.wdmoe.buckets import Buckets
from payloads.wdmoe.decision import decider_of
from payloads.wdmoe.latency import message_bytes
from payloads.wdmoe.routing import Loads, Routing, Selection
from payloads.wdmoe.tally import Tally
from testbed.simulate.carry import Carried, Carrier
from testbed.simulate.routing import Traced
from testbed.simulate.world import Ask, TrialPlan, World

__all__ = ["Change", "DispatchBlock", "RequestRecord", "TokenRecord", "TrialRecord", "simulate_trial"]

Floats = NDArray[np.float64]


class RequestRecord(NamedTuple):
    """One prompt answered; times in seconds since the trial's start."""

    request: str
    warmup: bool
    prompt_tokens: int
    output_tokens: int
    start_s: float
    first_s: float
    last_s: float


class TokenRecord(NamedTuple):
    """One token made; times in seconds since the trial's start, or as the name says."""

    request: str
    position: int
    token: int
    done_s: float
    duration_ms: float
    bs_ms: float
    bound_ms: float | None = None


class DispatchBlock(NamedTuple):
    """The dispatches of one layer in one token step: a column for each device that was sent something."""

    request: str
    step: int
    layer: int
    devices: NDArray[np.int64]
    values: Mapping[str, NDArray[Any]]


class Change(NamedTuple):
    """Shares that came into force at a time, in seconds since the trial's start."""

    at_s: float
    why: str
    shares: Floats


@dataclass
class TrialRecord:
    """What happened in one trial.

    Attributes:
        trial: The trial.
        end_s: How long it took.
        requests: Its prompts.
        tokens: Its tokens.
        dispatches: Its dispatches, if they are wanted.
        changes: The allocations, in order.
        selection: What became of the router's choice in the requests that count, by stage, layer and device.
        routing: How often the router asked for each expert, by stage and layer.
    """

    trial: TrialPlan
    end_s: float = 0.0
    requests: list[RequestRecord] = field(default_factory=list)
    tokens: list[TokenRecord] = field(default_factory=list)
    dispatches: list[DispatchBlock] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    selection: list[dict[str, Any]] = field(default_factory=list)
    routing: list[dict[str, Any]] = field(default_factory=list)


def simulate_trial(world: World, trial: TrialPlan) -> TrialRecord:
    """Simulate one trial.

    Args:
        world: What it follows from.
        trial: One of the world's trials.
    """
    return _Simulation(world, trial).run()


class _Simulation:
    """A trial under way."""

    def __init__(self, world: World, trial: TrialPlan) -> None:
        self._world = world
        self._trial = trial
        self._now_s = 0.0
        channel = world.links[trial.scenario, trial.repeat]
        delay_ms = self._delay_ms = world.delays_ms[trial.scenario]
        self._links = VirtualLinks(channel, world.devices) if channel is not None else None
        policy = world.policies[trial.policy]
        self._model = world.model.with_activations(policy.activations)
        self._carrier = Carrier(channel, self._model, delay_ms)
        self._decider = decider_of(
            policy.selection,
            policy.bandwidth,
            self._model,
            world.device_of,
            self._state(),
            delay_ms=delay_ms,
        )
        self._buckets = Buckets(self._model)
        self._tally = Tally(world.devices)
        self._bounds = bounds_of(policy.selection, self._decider) if world.bounds else None
        self._record = TrialRecord(trial)

    def run(self) -> TrialRecord:
        state = self._state()
        if state is not None:
            self._give(self._decider.begin(state), f"start of {self._trial.name}")
        for ask in self._trial.asks:
            self._answer(ask, self._world.traces[ask.trace])
        self._record.end_s = self._now_s
        self._set_bounds()
        self._record.selection = self._tally.rows()
        self._record.routing = self._tally.routing_rows()
        return self._record

    def _state(self) -> LinkState | None:
        return self._links.at(self._now_s) if self._links is not None else None

    def _give(self, shares: Any, why: str) -> None:
        if shares is not None and self._links is not None:
            self._links.give(shares, why)
            self._record.changes.append(Change(self._now_s, why, self._links.shares))

    def _allocate(self, shares: Any, why: str) -> float:
        """Let the base station put shares in force, if any; return what it takes, in seconds."""
        if shares is None or self._links is None:
            return 0.0
        allocating_s = self._model.allocating_s()
        self._now_s += allocating_s
        self._give(shares, why)
        return allocating_s

    def _answer(self, ask: Ask, trace: Traced) -> None:
        start_s = last_s = self._now_s
        ends = []
        for step in range(trace.steps):
            bs_s = self._step(ask, trace, step)
            ends.append(self._now_s)
            duration_ms = 1e3 * (self._now_s - last_s)
            last_s = self._now_s
            token = int(trace.tokens[step])
            self._record.tokens.append(TokenRecord(ask.request, step, token, last_s, duration_ms, 1e3 * bs_s))
        self._record.requests.append(
            RequestRecord(ask.request, ask.warmup, trace.prompt_tokens, trace.steps, start_s, ends[0], last_s)
        )

    def _step(self, ask: Ask, trace: Traced, step: int) -> float:
        """Make one token; return the time at the base station, in seconds."""
        shares = self._decider.before_token(ask.request, step, self._state())
        allocating_s = self._allocate(shares, f"step {step} of {ask.request}")
        rows = trace.rows(step)
        whole_s = self._model.station_s(rows.stop - rows.start, trace.layers)
        outside_s = self._model.station_s(rows.stop - rows.start, 0)
        self._now_s += outside_s
        for layer in range(trace.layers):
            self._now_s += (whole_s - outside_s) / trace.layers
            allocating_s += self._layer(ask, trace, step, layer)
        return whole_s + allocating_s

    def _layer(self, ask: Ask, trace: Traced, step: int, layer: int) -> float:
        """Compute one layer on the devices; return what sharing the band for it takes, in seconds."""
        routing = trace.routing(layer, step)
        links = self._state()
        device_of = self._world.serving(layer, routing.index, self._decider.costs(links))
        decision = self._decider.decide(layer, step, routing, links, device_of)
        allocating_s = self._allocate(decision.shares, f"layer {layer} step {step}")
        state = self._state()
        predicted_s = self._predicted_s(decision.loads, state)
        begin_s = self._begin_s(decision.loads, predicted_s)
        carried = self._carrier.carry(begin_s, decision.loads, state)
        if self._decider.observe is not None:
            seconds = np.where(carried.loaded, carried.done - begin_s, np.nan)
            self._decider.observe(layer, step, decision.loads, seconds)
        if self._bounds is not None:
            done_s = float(carried.done.max(where=carried.loaded, initial=self._now_s))
            best = None if self._links is None else self._links.best(self._now_s, done_s)
            self._bounds.add((ask.request, step), layer, step, routing, device_of, best)
        if not ask.warmup:
            self._tally.add(layer, step, routing, decision.selection, device_of)
        if self._world.detail:
            dropped = _dropped(routing, decision.selection, device_of, len(self._world.devices))
            times = {"sent_s": begin_s, "predicted_ms": 1e3 * predicted_s}
            self._note(ask, step, layer, decision.loads, carried, {**times, "dropped": dropped})
        self._now_s = float(carried.done.max(where=carried.loaded, initial=self._now_s))
        return allocating_s

    def _set_bounds(self) -> None:
        if self._bounds is not None:
            waits_s = self._bounds.waits_s()
            self._record.tokens[:] = [
                one._replace(bound_ms=one.bs_ms + 1e3 * waits_s[one.request, one.position])
                for one in self._record.tokens
            ]

    def _predicted_s(self, loads: Loads, state: LinkState | None) -> Floats:
        """Return (D,) what the base station's records would say was expected, after what was sent before."""
        down, up = _rates(state, len(self._world.devices))
        return np.asarray(self._buckets.dispatch_s(loads, down, up, self._now_s, self._delay_ms), float)

    def _begin_s(self, loads: Loads, predicted_s: Floats) -> Floats:
        """Return (D,) when each dispatch begins: they are sent in turn, the longest last, as the model counts it."""
        begin_s = np.full(len(predicted_s), self._now_s)
        devices = np.flatnonzero(loads.pairs > 0)
        if len(devices) > 1 and (sending_s := self._model.sending_s(loads)) > 0:
            order = devices[np.argsort(predicted_s[devices], kind="stable")]
            begin_s[order] += np.linspace(0.0, sending_s, len(order))
        return begin_s

    def _note(
        self,
        ask: Ask,
        step: int,
        layer: int,
        loads: Loads,
        carried: Carried,
        more: Mapping[str, NDArray[Any]],
    ) -> None:
        """Keep a row for each device that was sent something."""
        out, back = message_bytes(loads, self._model.row_bytes, self._model.tls)
        columns: dict[str, NDArray[Any]] = {
            "tokens": loads.tokens,
            "assignments": loads.pairs,
            "bytes_out": out,
            "bytes_back": back,
            "received_s": carried.received,
            "replied_s": carried.replied,
            "done_s": carried.done,
            "compute_ms": 1e3 * (carried.replied - carried.received),
            **more,
        }
        devices = np.flatnonzero(carried.loaded)
        values = {name: column[devices] for name, column in columns.items()}
        self._record.dispatches.append(DispatchBlock(ask.request, step, layer, devices, values))


def _rates(state: LinkState | None, devices: int) -> Floats:
    """Return (2, D), the rates in force in Mbit/s; without limit where nothing shapes the links."""
    return np.full((2, devices), np.inf) if state is None else state.rates_mbit()


def _dropped(
    routing: Routing, selection: Selection, device_of: NDArray[np.int64], devices: int
) -> NDArray[np.int64]:
    """Return (D,) how many pairs the router wanted of each device and it did not get."""
    lost = ~selection.keep | (selection.index != routing.index)
    return np.bincount(device_of[routing.index[lost]], minlength=devices)
