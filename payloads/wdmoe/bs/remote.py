"""The base station's side of a layer of experts: decide, send out, wait for all, weigh, sum.

The answers are weighed and summed exactly as transformers' ``grouped_mm`` does, so that the result has the same bits.
A device that is lost or late is asked no more until it has been connected anew and checked; what becomes of its pairs
is the policy's matter (:mod:`payloads.wdmoe.bs.loss`).
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Callable, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
import torch

from payloads.station.link_feed import LinkFeed
from payloads.station.link_state import LinkState
from payloads.station.pacing import LinkPacing
from payloads.wdmoe.bs.asked import Asked, Pairs, dropped_of, loads_of_parcels, pairs_of
from payloads.wdmoe.bs.beside import Beside, keep_result, served_by, served_of
from payloads.wdmoe.bs.booking import Booking, Round, Taken
from payloads.wdmoe.bs.fleet import FleetSpec
from payloads.wdmoe.bs.links import LinkControl
from payloads.wdmoe.bs.losses import Losses
from payloads.wdmoe.bs.outcome import Outcome, OutcomeCount
from payloads.wdmoe.bs.packing import Gathered, Outgoing, Parcel, outgoing, split
from payloads.wdmoe.bs.patience import Expects, Waiting, patience_of
from payloads.wdmoe.dispatch import Decided, Decides
from payloads.wdmoe.routing import Routing
from payloads.wire.client import (
    Answer,
    Channel,
    DeviceError,
    DeviceLostError,
    Exchange,
    Request,
)
from payloads.wire.frames import FrameError, Kind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from payloads.wdmoe.bs.metrics import StationMetrics
    from payloads.wdmoe.costs import Costs

__all__ = ["Beside", "Dispatcher", "served_by"]


class Dispatcher:
    """Sends out layers and keeps a record of every dispatch.

    Attributes:
        decider: Decides what is sent; ``None`` sends all that the router asks for.
        activations: Element type of the rows on the wire; ``None`` for that of the computation.
        request: Name of the request that runs, for the records.
        step: Its token step, for the records; where several requests share an iteration, that of the oldest.
        iteration: Number of the pass through the model, for the records.
        batch: How many requests share it.
        deadline_ns: When nobody waits for it any more, on the monotonic clock; ``None`` for never.
        wall_ns: Time spent waiting for devices so far.
        decided: One entry for each decision since somebody took them; ``None`` where nobody will.
        feed: Tells the links' rates; ``None`` where nothing shapes them.
        control: Puts shares of the band in force; ``None`` where the policy leaves the links alone.
        pacing: Keeps the devices' sockets at the links' rates; ``None`` where something else shapes them.
        losses: Who is gone, and what is done about it.
        expects: Tells what devices are expected to take; ``None`` where nobody knows, and a device may take as long
            as it makes progress.
        booking: What was dispatched so far.
    """

    def __init__(self, exchange: Exchange) -> None:
        self.decider: Optional[Decides] = None
        self.activations: Optional[str] = None
        self.request = ""
        self.step = 0
        self.iteration = 0
        self.batch = 1
        self.deadline_ns: Optional[int] = None
        self.wall_ns = 0
        self.decided: Optional[List[Decided]] = None
        self.feed: Optional[LinkFeed] = None
        self.control: Optional[LinkControl] = None
        self.pacing: Optional[LinkPacing] = None
        self.losses = Losses(lambda: self.whose)
        self.expects: Optional[Expects] = None
        self.booking = Booking()
        self._exchange = exchange
        self._channels: List[Channel] = []
        self._count = OutcomeCount()

    @property
    def devices(self) -> Tuple[str, ...]:
        """The devices that hold an expert, by name; their order is that of all arrays over devices."""
        return self.losses.reach.devices

    @property
    def device_of(self) -> NDArray[np.int64]:
        """(L, E), the device that serves each expert when all are there; the first of those that hold it."""
        return self.losses.reach.device_of

    @property
    def metrics(self) -> Optional[StationMetrics]:
        """What counts what is sent and answered; ``None`` where nobody looks."""
        return self.booking.metrics

    @property
    def outcome(self) -> Optional[Outcome]:
        """What the tokens of this pass got, in the order of the rows; ``None`` before its first layer."""
        return self._count.outcome()

    @property
    def wants_scores(self) -> bool:
        """Whether somebody looks at what the router thinks of every expert."""
        return self.decider is not None or self.losses.policy.kind != "fail"

    def place(self, fleet: FleetSpec, channels: Mapping[str, Channel]) -> None:
        """Take over a placement, with all of its devices connected."""
        self.losses.place(fleet.placement)
        self._channels = [channels[name] for name in self.devices]
        self._exchange.gone.clear()

    @property
    def whose(self) -> Tuple[Optional[str], Optional[int]]:
        """The request that runs and its token step, for the records; neither where several share the iteration."""
        return (self.request, self.step) if self.batch == 1 else (None, None)

    def look(self) -> None:
        """Look around while there is nothing to do, so that the next request finds everything as it is.

        Devices that went are sought, those that are back are taken back, and linkd is heard, which drops a watcher
        that is too far behind.

        Raises:
            LinkControlError: The links can no longer be followed.
        """
        self._exchange.look()
        if self.feed is not None:
            self.feed.follow()
        self._hear_unasked(None)
        self.losses.take_back()

    def begin_step(self, step: int, oldest: Optional[str] = None) -> None:
        """Begin a pass through the model: a token step of the request, or one of several requests.

        Args:
            step: The token step, 0 for a prompt.
            oldest: The request that was there first, of all that are under way; ``None`` for the one that runs. An
                allocation that is made once looks at what was sent until another request is the oldest.

        Raises:
            LinkControlError: The bandwidth could not be allocated.
        """
        self.step = step
        self._count = OutcomeCount()
        self.losses.take_back()
        if self.decider is None:
            return
        shares = self.decider.before_token(self.request if oldest is None else oldest, step, self.links())
        if shares is not None and self.control is not None:
            self.control.give(shares, f"step {step} of {self.request}" if step else f"before {self.request}")

    def layer(
        self,
        layer: int,
        hidden: torch.Tensor,
        index: torch.Tensor,
        weights: torch.Tensor,
        scores: Optional[torch.Tensor] = None,
        beside: Optional[Beside] = None,
    ) -> torch.Tensor:
        """Compute one layer of experts on the devices.

        Args:
            layer: The layer.
            hidden: (N, H), the tokens.
            index: (N, k), the router's choice of experts.
            weights: (N, k), their weights.
            scores: (N, E), what the router thinks of every expert; a decider needs it.
            beside: What the base station adds of its own (N, H), given which experts answer (N, E), ``None`` for
                all of them; worked out while the devices compute.

        Returns:
            (N, H), the weighted sum of the experts' answers, and what is added.

        Raises:
            DeviceError: A device was lost or refused.
            LinkControlError: The bandwidth could not be allocated, or the links' rates not followed.
        """
        tokens, chosen = index.shape
        routing: Optional[Routing] = None
        links: Optional[LinkState] = None
        if scores is not None and self.wants_scores:
            routing = Routing(index.numpy(), weights.float().numpy(), scores.numpy())
            links = None if self.decider is None else self.links()
        costs = partial(self._costs, links)
        device_of = self.losses.reach.serving(layer, index.numpy(), costs)
        decided: Optional[Decided] = None
        keep: Optional[NDArray[np.bool_]] = None
        dropped: Mapping[int, int] = {}
        if self.decider is not None and routing is not None:
            decided = self._decide(layer, routing, device_of, links)
            selection = decided.decision.selection
            keep = None if selection.keep.all() else selection.keep
            replaced = selection.index is not routing.index
            if keep is not None or replaced:
                dropped = dropped_of(routing, selection, device_of)
            if replaced:
                index = torch.from_numpy(selection.index)
            # What loses and replaces nothing keeps its weights to the bit.
            if selection.weights is not routing.weights:
                weights = torch.from_numpy(selection.weights).to(weights.dtype)
        given = routing.weights if decided is None and routing is not None else None
        given = decided.decision.selection.weights if decided is not None else given
        asked = Asked(layer, index.numpy(), keep, device_of, routing, given)
        pairs = _in_order(index)
        if keep is not None:
            kept = keep.reshape(-1)[pairs.places]
            pairs = Pairs(pairs.experts[kept], pairs.places[kept])
        if self.losses.reach.gone:
            pairs = self.losses.first(asked, pairs, costs, self.deadline_ns)
        out = outgoing(layer, self.step, hidden, chosen, self.activations)
        added: List[torch.Tensor] = []
        meanwhile = self.booking.settle
        if beside is not None:
            meanwhile = partial(self._meanwhile, beside, asked, added)
        served = asked.keep
        answered = self._answered(asked, out, pairs, meanwhile, hidden.dtype, dropped, decided)
        if beside is not None and asked.keep is not served:
            # Somebody was lost on the way: others answer than was thought.
            added = [beside(served_of(asked.index, asked.keep, len(asked.device_of)))]
        if asked.weights is not None:
            weights = torch.from_numpy(asked.weights).to(weights.dtype)
        self._count.add(tokens, chosen, keep, asked.lost, asked.rerouted)
        if self.metrics is not None:
            self.metrics.missed(keep, asked.lost, asked.rerouted)
        weighted = answered * weights.reshape(-1, 1)
        total = weighted.view(tokens, chosen, -1).sum(dim=1).to(hidden.dtype)
        return total + added[0] if added else total

    def links(self) -> Optional[LinkState]:
        """Return the links as they are now; ``None`` where nothing shapes them.

        Raises:
            LinkControlError: Nobody knows.
        """
        if self.feed is None:
            return None
        self.feed.follow()
        return self.feed.links(self.devices) if self.control is None else self.control.links()

    def _meanwhile(self, beside: Beside, asked: Asked, added: List[torch.Tensor]) -> None:
        """Do what needs no answer, while the devices work."""
        keep_result(beside, asked.index, asked.keep, len(asked.device_of), added)
        self.booking.settle()

    def _costs(self, links: Optional[LinkState]) -> Optional[Costs]:
        """Return what sending takes; ``None`` where nobody knows."""
        costs = getattr(self.decider, "costs", None)
        return None if costs is None else costs(links)

    def _decide(
        self, layer: int, routing: Routing, device_of: NDArray[np.int64], links: Optional[LinkState]
    ) -> Decided:
        assert self.decider is not None
        decision = self.decider.decide(layer, self.step, routing, links, device_of)
        if decision.shares is not None and self.control is not None:
            self.control.give(decision.shares, f"layer {layer} step {self.step}")
        decided = Decided(layer, self.step, routing, device_of, links, decision, self.iteration)
        if self.decided is not None:
            self.decided.append(decided)
        return decided

    def _answered(
        self,
        asked: Asked,
        out: Outgoing,
        pairs: Pairs,
        meanwhile: Optional[Callable[[], None]],
        dtype: torch.dtype,
        dropped: Mapping[int, int],
        decided: Optional[Decided],
    ) -> torch.Tensor:
        """Ask for pairs, and again for those whose device is lost, until the policy is content.

        Returns:
            (N k, H), the answers' rows; zeros where nobody was asked.
        """
        if self.pacing is not None:
            try:
                self.pacing.follow()
            except DeviceLostError as error:
                self._exchange.disconnect(self._channels[self.devices.index(error.device)])
        if self.control is not None:
            self.control.settle()
        gathered: Optional[Gathered] = None
        while True:
            first, whole = gathered is None, asked.keep is None
            parcels = split(out, *pairs, asked.device_of, self._next_sequence)
            begun_ns = time.monotonic_ns()
            outcomes = self._gather(asked, parcels, meanwhile, decided if first else None)
            self.wall_ns += time.monotonic_ns() - begun_ns
            meanwhile = None
            if gathered is None:
                whole = whole and not any(isinstance(outcome, DeviceError) for outcome in outcomes)
                gathered = Gathered(out, dtype, whole)
                if decided is not None:
                    decided.sent_ns = begun_ns
            failed: List[Parcel] = []
            taken: List[Taken] = []
            for parcel, outcome in zip(parcels, outcomes):
                problem: Optional[DeviceError]
                if isinstance(outcome, Answer):
                    problem = self._take(gathered, out, parcel, outcome, dropped if first else {}, taken)
                else:
                    problem = outcome
                if problem is not None:
                    failed.append(parcel)
                    self._failed(asked, parcel.device, problem)
            # What is asked a second time, nobody had expected.
            expected = decided.expected if first and decided is not None else None
            where = self.iteration, self.batch
            self.booking.add(Round(self.devices, self.whose, where, expected, taken))
            self._hear_unasked(asked.layer)
            if not failed:
                if first and decided is not None:
                    self._observe(asked, parcels, outcomes, decided)
                return gathered.rows()
            again = pairs_of(asked.index, np.concatenate([parcel.places for parcel in failed]))
            begun_ns = time.monotonic_ns()
            pairs = self.losses.settled(asked, again, self.deadline_ns)
            self.wall_ns += time.monotonic_ns() - begun_ns

    def _hear_unasked(self, layer: Optional[int]) -> None:
        """Hear of devices whose connections broke while nothing was asked of them.

        Raises:
            DeviceLostError: As :meth:`Losses.unasked`.
        """
        if self._exchange.gone:
            gone, self._exchange.gone = self._exchange.gone, []
            self.losses.unasked(gone, layer)

    def _gather(
        self,
        asked: Asked,
        parcels: Sequence[Parcel],
        meanwhile: Optional[Callable[[], None]],
        decided: Optional[Decided],
    ) -> Sequence[Union[Answer, DeviceError]]:
        requests = [Request(self._channels[one.device], one.sequence, one.buffers) for one in parcels]
        waiting = Waiting(self.losses.policy, self.expects, self.links, self.deadline_ns)
        patience = patience_of(waiting, asked, parcels, len(self.devices), decided)
        return self._exchange.gather(requests, Kind.RESULT, meanwhile, patience)

    def _failed(self, asked: Asked, device: int, error: DeviceError) -> None:
        if isinstance(error, DeviceLostError):
            self.losses.lose(device, error, asked.layer)
        else:
            self.losses.refused(asked, device, error)

    def _observe(
        self,
        asked: Asked,
        parcels: Sequence[Parcel],
        answers: Sequence[Union[Answer, DeviceError]],
        decided: Decided,
    ) -> None:
        """Tell the policy what the layer took, where it learns from that."""
        assert self.decider is not None
        observe = self.decider.observe
        if observe is None:
            return
        seconds = np.full(len(self.devices), np.nan)
        for parcel, answer in zip(parcels, answers):
            assert isinstance(answer, Answer)
            seconds[parcel.device] = (answer.done_ns - answer.sent_ns) / 1e9
        loads = decided.decision.loads
        if asked.keep is not None and asked.lost is not None:
            loads = loads_of_parcels(parcels, asked.index, asked.device_of, len(self.devices))
        observe(asked.layer, self.step, loads, seconds)

    def _next_sequence(self, device: int) -> int:
        return self._channels[device].next_sequence()

    def _take(
        self,
        gathered: Gathered,
        out: Outgoing,
        parcel: Parcel,
        answer: Answer,
        dropped: Mapping[int, int],
        taken: List[Taken],
    ) -> Optional[DeviceLostError]:
        """Take an answer; return what is wrong with it, if anything is: its device is not trusted any more."""
        try:
            result = gathered.take(out, parcel, answer.payload)
        except FrameError as error:
            gathered.clear(parcel)
            self._exchange.disconnect(self._channels[parcel.device])
            return DeviceLostError(self.devices[parcel.device], str(error))
        taken.append(Taken(parcel, dropped.get(parcel.device, 0), answer, result))
        return None


def _in_order(index: torch.Tensor) -> Pairs:
    """Return the pairs of a choice (N, k) in the order in which the rows of transformers' ``grouped_mm`` are."""
    if index.shape[0] == 1:  # no expert comes twice, and so there is one order
        experts = index.numpy()[0]
        places = experts.argsort()
        return Pairs(experts[places], places)
    # The same call as there: this sort is not stable.
    ordered, order = torch.sort(index.reshape(-1))
    return Pairs(ordered.numpy(), order.numpy())
