"""Products with the weights of an expert, which are held in the run's element type or as int8.

int8 weights are symmetric with one scale for each output: W = q * scale. Whole numbers up to 127 are exact in every
element type, so that the product is taken with them and its outputs are scaled, which rounds no weight at all. Float16
is too narrow for that (its largest number is 65504): there the weights themselves are scaled. Either way they are
converted a block at a time, small enough for the processor's cache: what is read from memory is the int8.
"""

from __future__ import annotations

from typing import Dict, NamedTuple, Optional, Tuple

import torch

__all__ = ["Matrix", "Products"]

#: Weights that are converted at once. On a GPU a block is large: there starting a kernel costs more than its memory.
_BLOCK_WEIGHTS = {"cpu": 1 << 20, "cuda": 1 << 23}


class Matrix(NamedTuple):
    """A matrix of an expert.

    Attributes:
        weight: (inputs, outputs), as a row vector is multiplied with it: a transposed view.
        scale: (outputs,), float32, what the outputs of int8 weights are multiplied with; ``None`` for other weights.
    """

    weight: torch.Tensor
    scale: Optional[torch.Tensor] = None


class Products:
    """Multiplies rows with matrices; keeps the memory for blocks of converted weights.

    Not for several threads at once.
    """

    def __init__(self) -> None:
        self._blocks: Dict[Tuple[int, torch.dtype, str], torch.Tensor] = {}

    def multiply(self, rows: torch.Tensor, matrix: Matrix, out: torch.Tensor) -> None:
        """Write the product of rows (N, inputs) and a matrix to ``out`` (N, outputs)."""
        if matrix.scale is None:
            torch.mm(rows, matrix.weight, out=out)
            return
        by_output, narrow = matrix.weight.t(), rows.dtype == torch.float16
        block = self._block(rows)
        for start in range(0, len(by_output), len(block)):
            piece = by_output[start : start + len(block)]
            end = start + len(piece)
            weights = block[: len(piece)]
            if narrow:
                weights.copy_(piece * matrix.scale[start:end, None])
            else:
                weights.copy_(piece)
            torch.mm(rows, weights.t(), out=out[:, start:end])
        if not narrow:
            out.mul_(matrix.scale)

    def _block(self, rows: torch.Tensor) -> torch.Tensor:
        """Return memory for some outputs' weights in the rows' element type, (outputs, inputs)."""
        inputs, device = rows.shape[1], rows.device
        key = (inputs, rows.dtype, str(device))
        if key not in self._blocks:
            outputs = max(1, _BLOCK_WEIGHTS.get(device.type, _BLOCK_WEIGHTS["cpu"]) // inputs)
            self._blocks[key] = torch.empty(outputs, inputs, dtype=rows.dtype, device=device)
        return self._blocks[key]
