"""The base station's side of a layer of experts: select, send out, wait for all, weigh, sum.

:class:`RemoteExperts` takes the place of a model's experts class; it has no parameters. The answers are
weighed and summed exactly as transformers' ``grouped_mm`` does, so that the result has the same bits.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import nn

from payloads.wdmoe.families import Family
from payloads.wdmoe.fleet import FleetSpec
from payloads.wdmoe.gating import select
from payloads.wdmoe.links import LinkControl
from payloads.wdmoe.pacing import LinkPacing
from payloads.wire.client import (
    Answer,
    Channel,
    DeviceLostError,
    DeviceRefusedError,
    Exchange,
    Request,
)
from payloads.wire.frames import (
    DTYPE_BYTES,
    HEADER_BYTES,
    RESULT_HEAD_BYTES,
    FrameError,
    Kind,
    pack_dispatch,
    pack_lists,
    unpack_result,
)

__all__ = ["DispatchRow", "Dispatcher", "RemoteExperts", "load_model"]

_LAYER = re.compile(r"\.layers\.(\d+)\.")


class DispatchRow(NamedTuple):
    """What was seen of one dispatch. The first three stamps are the base station's, the others the device's.

    Attributes:
        request: The request it belongs to.
        step: The token step, 0 for the prompt.
        layer: The layer.
        device: The device.
        tokens: Token rows sent.
        assignments: (token, expert) pairs asked for.
        dropped: Pairs of this device that the policy dropped in this layer and step.
        bytes_out: Size of the dispatch's frame.
        bytes_back: Size of the answer's frame.
        sent_ns: It was given to the kernel.
        first_ns: The answer began to arrive.
        done_ns: The answer was complete.
        received_ns: The device had all of it.
        started_ns: The device began to compute.
        computed_ns: The device had computed, and waited for its pace.
        replied_ns: The device gave its answer to the kernel.
        late: Whether the real computation took longer than the pace asked for.
    """

    request: str
    step: int
    layer: int
    device: str
    tokens: int
    assignments: int
    dropped: int
    bytes_out: int
    bytes_back: int
    sent_ns: int
    first_ns: int
    done_ns: int
    received_ns: int
    started_ns: int
    computed_ns: int
    replied_ns: int
    late: bool


class _Part(NamedTuple):
    """One device's share of a layer: which of the router's pairs, and the request that asks for them."""

    channel: Channel
    places: np.ndarray[Any, np.dtype[np.int64]]
    tokens: int
    request: Request


class Dispatcher:
    """Sends out layers and keeps a record of every dispatch.

    Attributes:
        policy: Settings of the expert selection.
        request: Name of the request that runs, for the records.
        step: Its token step, for the records.
        wall_ns: Time spent waiting for devices so far.
        rows: One entry for each dispatch so far.
        control: Allocates bandwidth between layers and tokens; ``None`` where the policy leaves the links alone.
        pacing: Keeps the devices' sockets at the links' rates; ``None`` where something else shapes them.
    """

    def __init__(self, exchange: Exchange) -> None:
        self.policy: Mapping[str, Any] = {"kind": "top_k", "k": 1 << 30}
        self.request = ""
        self.step = 0
        self.wall_ns = 0
        self.rows: List[DispatchRow] = []
        self.control: Optional[LinkControl] = None
        self.pacing: Optional[LinkPacing] = None
        self._exchange = exchange
        self._holders: List[List[Tuple[Channel, ...]]] = []

    def place(self, fleet: FleetSpec, channels: Mapping[str, Channel]) -> None:
        """Take over a placement."""
        self._holders = [
            [tuple(channels[name] for name in holders) for holders in layer] for layer in fleet.placement
        ]

    @property
    def devices(self) -> List[str]:
        """The devices that hold an expert, by name."""
        return sorted({channel.name for layer in self._holders for holders in layer for channel in holders})

    def begin_step(self, step: int) -> None:
        """Begin a token step of the request.

        Raises:
            LinkControlError: The bandwidth could not be allocated.
        """
        self.step = step
        if self.control is not None:
            self.control.before_token(self.request, step)

    def layer(
        self, layer: int, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Compute one layer of experts on the devices.

        Args:
            layer: The layer.
            hidden: (N, H), the tokens.
            index: (N, k), the router's choice of experts.
            weights: (N, k), their weights.

        Returns:
            (N, H), the weighted sum of the experts' answers.

        Raises:
            DeviceError: A device was lost or refused.
            LinkControlError: The bandwidth could not be allocated, or the links' rates not followed.
        """
        tokens, chosen = index.shape
        selection = select(self.policy, index.numpy(), weights.float().numpy())
        # The same call as in transformers: this sort is not stable, and the order of the rows is its.
        sorted_experts, sorted_places = torch.sort(index.reshape(-1))
        experts, places = sorted_experts.numpy(), sorted_places.numpy()
        whole = bool(selection.keep.all())
        dropped: Mapping[str, int] = {}
        if not whole:
            kept = selection.keep.reshape(-1)[places]
            dropped = Counter(self._holders[layer][expert][0].name for expert in experts[~kept].tolist())
            experts, places = experts[kept], places[kept]
            weights = torch.from_numpy(selection.weights).to(weights.dtype)
        parts = self._split(layer, hidden, experts, places, chosen)
        if self.control is not None:
            self.control.before_layer(layer, self.step, _loads(parts, hidden.shape[1], hidden.dtype))
        if self.pacing is not None:
            self.pacing.follow()
        begun_ns = time.monotonic_ns()
        answers = self._ask(layer, parts)
        self.wall_ns += time.monotonic_ns() - begun_ns
        answered = (torch.empty if whole else torch.zeros)(
            tokens * chosen, hidden.shape[1], dtype=hidden.dtype
        )
        target = _bytes_of(answered)
        for part, answer in zip(parts, answers):
            self._take(layer, part, answer, target, dropped.get(part.channel.name, 0))
        weighted = answered * weights.reshape(-1, 1)
        return weighted.view(tokens, chosen, -1).sum(dim=1).to(hidden.dtype)

    def _split(
        self,
        layer: int,
        hidden: torch.Tensor,
        experts: np.ndarray[Any, np.dtype[np.int64]],
        places: np.ndarray[Any, np.dtype[np.int64]],
        chosen: int,
    ) -> List[_Part]:
        """Build each device's request from the pairs, sorted by expert."""
        ends = [*(np.flatnonzero(experts[1:] != experts[:-1]) + 1).tolist(), len(experts)]
        shares: Dict[Channel, List[Tuple[int, int, int]]] = {}
        load: Dict[Channel, int] = {}
        start = 0
        for end in ends:
            expert = int(experts[start])
            # An expert's tokens stay together: with several holders the least loaded one gets them all.
            channel = min(self._holders[layer][expert], key=lambda holder: load.get(holder, 0))
            shares.setdefault(channel, []).append((expert, start, end))
            load[channel] = load.get(channel, 0) + end - start
            start = end
        rows = _bytes_of(hidden.contiguous())
        dtype = str(hidden.dtype).replace("torch.", "")
        return [
            self._part(layer, channel, share, places, rows, chosen, dtype, hidden.shape[1])
            for channel, share in shares.items()
        ]

    def _part(
        self,
        layer: int,
        channel: Channel,
        share: List[Tuple[int, int, int]],
        places: np.ndarray[Any, np.dtype[np.int64]],
        rows: np.ndarray[Any, np.dtype[np.uint8]],
        chosen: int,
        dtype: str,
        width: int,
    ) -> _Part:
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
        return _Part(
            channel, mine, len(data), Request(channel, sequence, [frame, data.reshape(-1).data, lists])
        )

    def _ask(self, layer: int, parts: List[_Part]) -> List[Answer]:
        try:
            return self._exchange.ask([part.request for part in parts], Kind.RESULT)
        except DeviceLostError as error:
            raise DeviceLostError(error.device, f"{error.reason} during layer {layer}") from error

    def _take(
        self,
        layer: int,
        part: _Part,
        answer: Answer,
        target: np.ndarray[Any, np.dtype[np.uint8]],
        dropped: int,
    ) -> None:
        name = part.channel.name
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
            )
        )


class RemoteExperts(nn.Module):
    """Takes the place of a model's experts: no parameters, every call goes to the devices.

    Attributes:
        number: The layer's number; known once the model is built.
        dispatcher: What sends it out.
    """

    def __init__(self, config: object) -> None:
        super().__init__()
        self.number = -1
        self.dispatcher: Optional[Dispatcher] = None

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Return the weighted sum of the experts' answers; shapes as in :meth:`Dispatcher.layer`."""
        if self.dispatcher is None:
            raise RuntimeError("the layer was not attached to a dispatcher")
        return self.dispatcher.layer(self.number, hidden_states, top_k_index, top_k_weights)


def load_model(folder: Path, family: Family, dtype: str, dispatcher: Dispatcher) -> Any:
    """Load a model without its experts from a folder in transformers' layout.

    No expert parameter is ever created: the class that would own them is replaced while the model is built.

    Returns:
        The model, in evaluation mode, its layers of experts attached to ``dispatcher``.
    """
    from transformers import AutoModelForCausalLM
    from transformers.monkey_patching import register_patch_mapping, unregister_patch_mapping
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    register_patch_mapping({family.experts_class: RemoteExperts})
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=getattr(torch, dtype), local_files_only=True
        )
    finally:
        unregister_patch_mapping([family.experts_class])
    model.eval().requires_grad_(False)
    for name, module in model.named_modules():
        if isinstance(module, RemoteExperts):
            match = _LAYER.search(f".{name}.")
            if match is None:
                raise RuntimeError(f"cannot tell the layer of the module {name}")
            module.number = int(match[1])
            module.dispatcher = dispatcher
    return model


def _loads(parts: List[_Part], width: int, dtype: torch.dtype) -> Dict[str, Tuple[int, int]]:
    """Return the bytes that a layer sends to each device and that its answer will have."""
    row_bytes = width * DTYPE_BYTES[str(dtype).replace("torch.", "")]
    head_bytes = HEADER_BYTES + RESULT_HEAD_BYTES
    return {
        part.channel.name: (sum(map(len, part.request.buffers)), head_bytes + len(part.places) * row_bytes)
        for part in parts
    }


def _bytes_of(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a tensor's memory as a matrix of bytes: NumPy has no bfloat16."""
    view: np.ndarray[Any, np.dtype[np.uint8]] = tensor.view(torch.uint8).numpy()
    return view
