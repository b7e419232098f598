"""The mathematics of the experts, with the very numerics of transformers' ``grouped_mm`` implementation.

There, all rows are sorted by expert and each expert's block is one matrix product in the run's element
type; the activation is applied to the whole sorted batch. The same products over the same blocks give the
same bits here. Weighing and summing the answers is left to the base station.
"""

from __future__ import annotations

from typing import Callable, Dict, List, Sequence, Tuple

import torch

from payloads.wdmoe.wire_rows import decode_rows, encode_rows
from payloads.wdmoe.worker.products import Matrix, Products
from payloads.wdmoe.worker.shards import ExpertWeights
from payloads.wire.frames import Dispatch, row_bytes

__all__ = ["ACTIVATIONS", "ExpertBank", "NotHeldError"]

ACTIVATIONS: Dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "relu": torch.nn.functional.relu,
}


class NotHeldError(Exception):
    """The device is asked for something that it does not hold."""


class ExpertBank:
    """The experts of one device.

    Attributes:
        dtype: Name of the element type of rows and weights.
    """

    def __init__(
        self,
        experts: Dict[Tuple[int, int], ExpertWeights],
        dtype: str,
        hidden: int,
        intermediate: int,
        activation: str,
        device: torch.device,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise NotHeldError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
        self.dtype = dtype
        self._experts = experts
        self._torch_dtype: torch.dtype = getattr(torch, dtype)
        self._hidden = hidden
        self._intermediate = intermediate
        self._activation = ACTIVATIONS[activation]
        self._device = device
        self._products = Products()

    def find(self, dispatch: Dispatch) -> List[ExpertWeights]:
        """Return the weights that a dispatch asks for.

        Raises:
            NotHeldError: One of them is not here, or the rows have another width.
        """
        if dispatch.hidden != self._hidden:
            raise NotHeldError(f"expected rows of {self._hidden} elements, got {dispatch.hidden}")
        missing = [e for e in dispatch.experts if (dispatch.layer, e) not in self._experts]
        if missing:
            raise NotHeldError(f"does not hold layer {dispatch.layer} expert {missing[0]}")
        return [self._experts[dispatch.layer, e] for e in dispatch.experts]

    def run(self, dispatch: Dispatch, weights: Sequence[ExpertWeights]) -> bytearray:
        """Compute a dispatch; return one unweighted row for each of its (token, expert) pairs, as bytes."""
        total = len(dispatch.indices)
        answer = bytearray(total * row_bytes(dispatch.dtype, self._hidden))
        data = torch.frombuffer(answer, dtype=torch.uint8).view(total, -1)
        as_computed = dispatch.dtype == self.dtype
        with torch.no_grad():
            host = (
                data.view(self._torch_dtype)
                if as_computed
                else torch.empty(total, self._hidden, dtype=self._torch_dtype)
            )
            received = torch.frombuffer(dispatch.data, dtype=torch.uint8).view(dispatch.rows, -1)
            rows = decode_rows(received, dispatch.dtype, self._torch_dtype)
            if dispatch.rows != 1 or total != 1:
                indices = torch.frombuffer(dispatch.indices, dtype=torch.int16).to(torch.int32)
                rows = rows.index_select(0, indices)
            rows = rows.to(self._device)
            out = host if self._device.type == "cpu" else torch.empty_like(host, device=self._device)
            inner = torch.empty(total, 2 * self._intermediate, dtype=self._torch_dtype, device=self._device)
            self._each(rows, [w.gate_up for w in weights], dispatch.counts, inner)
            gate, up = inner.chunk(2, dim=-1)
            self._each(self._activation(gate) * up, [w.down for w in weights], dispatch.counts, out)
            if out is not host:
                host.copy_(out)
            if not as_computed:
                data.copy_(encode_rows(host, dispatch.dtype))
        return answer

    def _each(
        self, rows: torch.Tensor, matrices: Sequence[Matrix], counts: memoryview, out: torch.Tensor
    ) -> None:
        start = 0
        for matrix, count in zip(matrices, counts):
            end = start + count
            self._products.multiply(rows[start:end], matrix, out[start:end])
            start = end
