"""The base station's side of a layer of experts: decide, send out, wait for all, weigh, sum.

The answers are weighed and summed exactly as transformers' ``grouped_mm`` does, so that the result has the same bits.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np
import torch

from payloads.wdmoe.bs.fleet import FleetSpec
from payloads.wdmoe.bs.link_feed import LinkFeed
from payloads.wdmoe.bs.links import LinkControl
from payloads.wdmoe.bs.pacing import LinkPacing
from payloads.wdmoe.decision import Decision
from payloads.wdmoe.dispatch import Decided, Decides, DispatchRow
from payloads.wdmoe.holders import Several, first_holders, serving_devices
from payloads.wdmoe.link_state import LinkState
from payloads.wdmoe.routing import Routing
from payloads.wire.client import (
    Answer,
    Channel,
    DeviceLostError,
    DeviceRefusedError,
    Exchange,
    Request,
)
from payloads.wire.frames import FrameError, Kind, pack_dispatch, pack_lists, unpack_result

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Beside", "Dispatcher", "served_by"]

#: Given which experts answer (N, E), ``None`` for all of them, what is added (N, H).
Beside = Callable[[Optional[torch.Tensor]], torch.Tensor]


class _Part(NamedTuple):
    """One device's share of a layer: which of the pairs, and the request that asks for them."""

    device: int
    places: NDArray[np.int64]
    tokens: int
    request: Request


class Dispatcher:
    """Sends out layers and keeps a record of every dispatch.

    Attributes:
        decider: Decides what is sent; ``None`` sends all that the router asks for.
        request: Name of the request that runs, for the records.
        step: Its token step, for the records.
        wall_ns: Time spent waiting for devices so far.
        rows: One entry for each dispatch so far.
        decided: One entry for each decision since somebody took them; ``None`` where nobody will.
        feed: Tells the links' rates; ``None`` where nothing shapes them.
        control: Puts shares of the band in force; ``None`` where the policy leaves the links alone.
        pacing: Keeps the devices' sockets at the links' rates; ``None`` where something else shapes them.
        devices: The devices that hold an expert, by name; their order is that of all arrays over devices.
        device_of: (L, E), the device that serves each expert; the first of those that hold it.
    """

    def __init__(self, exchange: Exchange) -> None:
        self.decider: Optional[Decides] = None
        self.request = ""
        self.step = 0
        self.wall_ns = 0
        self.rows: List[DispatchRow] = []
        self.decided: Optional[List[Decided]] = None
        self.feed: Optional[LinkFeed] = None
        self.control: Optional[LinkControl] = None
        self.pacing: Optional[LinkPacing] = None
        self.devices: Tuple[str, ...] = ()
        self.device_of: NDArray[np.int64] = np.zeros((0, 0), dtype=np.int64)
        self._exchange = exchange
        self._channels: List[Channel] = []
        self._several: Several = {}

    def place(self, fleet: FleetSpec, channels: Mapping[str, Channel]) -> None:
        """Take over a placement."""
        self.devices = tuple(sorted({name for layer in fleet.placement for names in layer for name in names}))
        self._channels = [channels[name] for name in self.devices]
        self.device_of, self._several = first_holders(fleet.placement, self.devices)

    def begin_step(self, step: int) -> None:
        """Begin a token step of the request.

        Raises:
            LinkControlError: The bandwidth could not be allocated.
        """
        self.step = step
        if self.decider is None:
            return
        shares = self.decider.before_token(self.request, step, self.links())
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
        device_of = self._serving(layer, index)
        decided: Optional[Decided] = None
        keep: Optional[NDArray[np.bool_]] = None
        dropped: Mapping[int, int] = {}
        if self.decider is not None and scores is not None:
            routing = Routing(index.numpy(), weights.float().numpy(), scores.numpy())
            decided = self._decide(layer, routing, device_of)
            selection = decided.decision.selection
            keep = None if selection.keep.all() else selection.keep
            replaced = selection.index is not routing.index
            if keep is not None or replaced:
                lost = ~selection.keep | (selection.index != routing.index)
                dropped = dict(
                    enumerate(
                        np.bincount(device_of[routing.index[lost]], minlength=len(self.devices)).tolist()
                    )
                )
            if replaced:
                index = torch.from_numpy(selection.index)
            # What loses and replaces nothing keeps its weights to the bit.
            if selection.weights is not routing.weights:
                weights = torch.from_numpy(selection.weights).to(weights.dtype)
        # The same call as in transformers: this sort is not stable, and the order of the rows is its.
        sorted_experts, sorted_places = torch.sort(index.reshape(-1))
        experts, places = sorted_experts.numpy(), sorted_places.numpy()
        if keep is not None:
            kept = keep.reshape(-1)[places]
            experts, places = experts[kept], places[kept]
        parts = self._split(layer, hidden, experts, places, chosen, device_of)
        if self.pacing is not None:
            self.pacing.follow()
        added: List[torch.Tensor] = []
        meanwhile: Optional[Callable[[], None]] = None
        if beside is not None:
            whole = keep is None and chosen == len(device_of)
            served = None if whole else served_by(index, keep, len(device_of))
            meanwhile = partial(_keep_result, beside, served, added)
        if self.control is not None:
            self.control.settle()
        begun_ns = time.monotonic_ns()
        answers = self._ask(layer, parts, meanwhile)
        self.wall_ns += time.monotonic_ns() - begun_ns
        answered = (torch.empty if keep is None else torch.zeros)(
            tokens * chosen, hidden.shape[1], dtype=hidden.dtype
        )
        target = _bytes_of(answered)
        for part, answer in zip(parts, answers):
            self._take(layer, part, answer, target, dropped.get(part.device, 0), decided)
        if decided is not None:
            decided.sent_ns = begun_ns
            self._observe(layer, parts, answers, decided.decision)
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

    def _decide(self, layer: int, routing: Routing, device_of: NDArray[np.int64]) -> Decided:
        assert self.decider is not None
        links = self.links()
        decision = self.decider.decide(layer, self.step, routing, links, device_of)
        if decision.shares is not None and self.control is not None:
            self.control.give(decision.shares, f"layer {layer} step {self.step}")
        decided = Decided(layer, self.step, routing, device_of, links, decision)
        if self.decided is not None:
            self.decided.append(decided)
        return decided

    def _observe(self, layer: int, parts: List[_Part], answers: List[Answer], decision: Decision) -> None:
        assert self.decider is not None
        seconds = np.full(len(self.devices), np.nan)
        for part, answer in zip(parts, answers):
            seconds[part.device] = (answer.done_ns - answer.sent_ns) / 1e9
        self.decider.observe(layer, self.step, decision.loads, seconds)

    def _serving(self, layer: int, index: torch.Tensor) -> NDArray[np.int64]:
        """Return the device (E,) that serves each expert."""
        several = self._several.get(layer)
        if several is None:
            first: NDArray[np.int64] = self.device_of[layer]
            return first
        return serving_devices(self.device_of[layer], several, index.numpy())

    def _split(
        self,
        layer: int,
        hidden: torch.Tensor,
        experts: NDArray[np.int64],
        places: NDArray[np.int64],
        chosen: int,
        device_of: NDArray[np.int64],
    ) -> List[_Part]:
        """Build each device's request from the pairs, sorted by expert."""
        ends = [*(np.flatnonzero(experts[1:] != experts[:-1]) + 1).tolist(), len(experts)]
        shares: Dict[int, List[Tuple[int, int, int]]] = {}
        start = 0
        for end in ends:
            expert = int(experts[start])
            shares.setdefault(int(device_of[expert]), []).append((expert, start, end))
            start = end
        rows = _bytes_of(hidden.contiguous())
        dtype = str(hidden.dtype).replace("torch.", "")
        return [
            self._part(layer, device, share, places, rows, chosen, dtype, hidden.shape[1])
            for device, share in shares.items()
        ]

    def _part(
        self,
        layer: int,
        device: int,
        share: List[Tuple[int, int, int]],
        places: NDArray[np.int64],
        rows: NDArray[np.uint8],
        chosen: int,
        dtype: str,
        width: int,
    ) -> _Part:
        channel = self._channels[device]
        if len(share) == 1:
            mine = places[share[0][1] : share[0][2]]
        else:
            mine = np.concatenate([places[start:end] for _, start, end in share])
        experts = [expert for expert, _, _ in share]
        counts = [end - start for _, start, end in share]
        if len(rows) == 1:
            data, numbers = rows, [0] * len(mine)
        else:
            # Each token's row travels once, even when several experts of the device want it.
            tokens, inverse = np.unique(mine // chosen, return_inverse=True)
            data, numbers = rows if len(tokens) == len(rows) else rows[tokens], inverse.tolist()
        lists = pack_lists(experts, counts, numbers)
        sequence = channel.next_sequence()
        frame = pack_dispatch(layer, dtype, self.step, len(data), width, len(share), len(mine), sequence)
        request = Request(channel, sequence, [frame, data.reshape(-1).data, lists])
        return _Part(device, mine, len(data), request)

    def _ask(self, layer: int, parts: List[_Part], meanwhile: Optional[Callable[[], None]]) -> List[Answer]:
        try:
            return self._exchange.ask([part.request for part in parts], Kind.RESULT, meanwhile)
        except DeviceLostError as error:
            raise DeviceLostError(error.device, f"{error.reason} during layer {layer}") from error

    def _take(
        self,
        layer: int,
        part: _Part,
        answer: Answer,
        target: NDArray[np.uint8],
        dropped: int,
        decided: Optional[Decided],
    ) -> None:
        name = part.request.channel.name
        try:
            result = unpack_result(answer.payload)
        except FrameError as error:
            raise DeviceRefusedError(name, str(error)) from error
        if (result.layer, result.step, result.assignments) != (layer, self.step, len(part.places)) or (
            len(result.data) != len(part.places) * target.shape[1]
        ):
            raise DeviceRefusedError(name, f"its answer does not fit the question for layer {layer}")
        target[part.places] = np.frombuffer(result.data, dtype=np.uint8).reshape(len(part.places), -1)
        self.rows.append(
            DispatchRow(
                request=self.request,
                step=self.step,
                layer=layer,
                device=name,
                tokens=part.tokens,
                assignments=len(part.places),
                dropped=dropped,
                bytes_out=answer.bytes_out,
                bytes_back=answer.bytes_back,
                sent_ns=answer.sent_ns,
                first_ns=answer.first_ns,
                done_ns=answer.done_ns,
                received_ns=result.received_ns,
                started_ns=result.started_ns,
                computed_ns=result.computed_ns,
                replied_ns=result.replied_ns,
                late=result.late,
                expected=None if decided is None else decided.expected,
                column=part.device,
            )
        )


def _bytes_of(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """Return a tensor's memory as a matrix of bytes: NumPy has no bfloat16."""
    view: NDArray[np.uint8] = tensor.view(torch.uint8).numpy()
    return view


def served_by(index: torch.Tensor, keep: Optional[NDArray[np.bool_]], experts: int) -> torch.Tensor:
    """Return which experts (N, E) answer each token.

    Args:
        index: (N, k), the experts chosen.
        keep: (N, k), which of them are asked; ``None`` for all.
        experts: E.
    """
    served = torch.zeros(index.shape[0], experts, dtype=torch.bool)
    if keep is None:
        return served.scatter_(1, index, True)
    rows, places = torch.from_numpy(keep).nonzero(as_tuple=True)
    served[rows, index[rows, places]] = True
    return served


def _keep_result(beside: Beside, served: Optional[torch.Tensor], results: List[torch.Tensor]) -> None:
    results.append(beside(served))
