"""The mathematics of the experts, with the very numerics of transformers' ``grouped_mm`` implementation.

There, all rows are sorted by expert and each expert's block is one matrix product in the run's element
type; the activation is applied to the whole sorted batch. The same products over the same blocks give the
same bits here. Weighing and summing the answers is left to the base station.
"""

from __future__ import annotations

from typing import Callable, Dict, List, NamedTuple, Sequence, Tuple

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


#: Dispatches of up to so many pairs share one memory between the products; so many ways to part it are kept.
_KEPT_PAIRS, _KEPT_MOST = 64, 64


class NotHeldError(Exception):
    """The device is asked for something that it does not hold."""


class _Inner(NamedTuple):
    """Memory for what is between the two products of some experts' pairs (P).

    Attributes:
        sizes: The pairs of each expert.
        gate: (P, I), what the activation is applied to.
        up: (P, I), what its outcome is multiplied with.
        gated: (P, I), the product of both.
        gate_up_parts: Of each expert, its pairs' gate and up in one piece (pairs, 2 I).
        gated_parts: Of each expert, its part of ``gated``.
    """

    sizes: List[int]
    gate: torch.Tensor
    up: torch.Tensor
    gated: torch.Tensor
    gate_up_parts: Sequence[torch.Tensor]
    gated_parts: Sequence[torch.Tensor]

    @classmethod
    def of(cls, sizes: List[int], memory: torch.Tensor) -> _Inner:
        """Return what experts with so many pairs each have of a memory (3, P or more, I)."""
        pairs, width = sum(sizes), memory.shape[2]
        gate_up = memory[:2].reshape(-1, 2 * width)[:pairs]
        gated = memory[2, :pairs]
        gate, up = gate_up.chunk(2, dim=-1)
        return cls(sizes, gate, up, gated, gate_up.split_with_sizes(sizes), gated.split_with_sizes(sizes))


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
        self._memory = self._room(_KEPT_PAIRS)
        self._kept: Dict[bytes, _Inner] = {}

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
        total, on_host = len(dispatch.indices), self._device.type == "cpu"
        answer = bytearray(total * row_bytes(dispatch.dtype, self._hidden))
        rows = self._rows(dispatch)
        as_computed = dispatch.dtype == self.dtype
        if as_computed:
            host = torch.frombuffer(answer, dtype=self._torch_dtype).view(total, self._hidden)
        else:
            host = torch.empty(total, self._hidden, dtype=self._torch_dtype)
        out = host if on_host else torch.empty_like(host, device=self._device)
        inner = self._inner(dispatch.counts)
        self._each(self._parts(rows, inner.sizes), [each.gate_up for each in weights], inner.gate_up_parts)
        torch.mul(self._activation(inner.gate), inner.up, out=inner.gated)
        self._each(inner.gated_parts, [each.down for each in weights], self._parts(out, inner.sizes))
        if not on_host:
            host.copy_(out)
        if not as_computed:
            torch.frombuffer(answer, dtype=torch.uint8).view(total, -1).copy_(
                encode_rows(host, dispatch.dtype)
            )
        return answer

    def _rows(self, dispatch: Dispatch) -> torch.Tensor:
        """Return the row of each pair (P, H); the only one (1, H) where each expert gets it once."""
        if dispatch.dtype == self.dtype:
            rows = torch.frombuffer(dispatch.data, dtype=self._torch_dtype).view(dispatch.rows, self._hidden)
        else:
            received = torch.frombuffer(dispatch.data, dtype=torch.uint8).view(dispatch.rows, -1)
            rows = decode_rows(received, dispatch.dtype, self._torch_dtype)
        if dispatch.rows > 1 or len(dispatch.indices) > len(dispatch.experts):
            indices = torch.frombuffer(dispatch.indices, dtype=torch.int16).to(torch.int32)
            rows = rows.index_select(0, indices)
        return rows if self._device.type == "cpu" else rows.to(self._device)

    def _inner(self, counts: memoryview) -> _Inner:
        """Return memory for what is between the products; while tokens are decoded, the same again and again."""
        key = counts.tobytes()
        inner = self._kept.get(key)
        if inner is None:
            sizes = counts.tolist()
            if sum(sizes) > _KEPT_PAIRS:
                return _Inner.of(sizes, self._room(sum(sizes)))
            if len(self._kept) >= _KEPT_MOST:
                self._kept.clear()
            inner = self._kept[key] = _Inner.of(sizes, self._memory)
        return inner

    def _room(self, pairs: int) -> torch.Tensor:
        """Return memory for what is between the products of so many pairs (3, P, I)."""
        return torch.empty(3, pairs, self._intermediate, dtype=self._torch_dtype, device=self._device)

    @staticmethod
    def _parts(rows: torch.Tensor, sizes: List[int]) -> Sequence[torch.Tensor]:
        """Return each expert's rows."""
        if rows.shape[0] == 1:
            return [rows] * len(sizes)
        return rows.split_with_sizes(sizes)

    def _each(
        self, rows: Sequence[torch.Tensor], matrices: Sequence[Matrix], out: Sequence[torch.Tensor]
    ) -> None:
        for some, matrix, into in zip(rows, matrices, out):
            self._products.multiply(some, matrix, into)
