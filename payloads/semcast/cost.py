"""What a network's work costs: operations and bytes, counted while it runs, which say how long a board takes."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator, NamedTuple

import torch
from torch import nn

__all__ = ["Cost", "counted"]


class Cost(NamedTuple):
    """What some work costs.

    Attributes:
        operations: Multiplications and additions of convolutions and linear layers.
        traffic_bytes: Bytes through memory: the weights once for each use, and what the layers give out.
    """

    operations: int
    traffic_bytes: int


class _Meter:
    """Adds up what layers do."""

    def __init__(self) -> None:
        self.operations = 0
        self.traffic_bytes = 0

    @property
    def cost(self) -> Cost:
        """What was counted so far."""
        return Cost(self.operations, self.traffic_bytes)

    def count(self, layer: nn.Module, _: object, answer: torch.Tensor) -> None:
        """Count one use of a layer: each number that it gives out takes a row of its weights."""
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        self.operations += 2 * answer.numel() * weight[0].numel()
        self.traffic_bytes += weight.numel() * weight.element_size() + answer.numel() * answer.element_size()


@contextmanager
def counted(network: nn.Module) -> Iterator[_Meter]:
    """Count what a network does until the end; the numbers are in what this gives."""
    meter = _Meter()
    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(meter.count) for layer in layers]
    try:
        yield meter
    finally:
        for hook in hooks:
            hook.remove()
