"""How long a board takes for the work of an expert: pure arithmetic, used by workers and simulators alike.

A gated feed-forward expert with model width m and inner width m_h needs 4 m m_h + 2 m_h m + eta m_h + m_h
operations a token (L_comp of WDMoE, a reconstruction; see the wdmoe reference). It also has to read its
weights once, however few tokens there are, which is what binds when one token is decoded at a time.
"""

from __future__ import annotations

from typing import Iterable, NamedTuple, Optional

from payloads.board.pace import Pace

__all__ = ["WEIGHT_BYTES", "ExpertShape"]

#: Operations of SiLU for one element (eta): negate, exponential, add, divide.
ACTIVATION_OPERATIONS = 4


#: Bytes of one weight, for weights that are held in another type than the computation's.
WEIGHT_BYTES = {"int8": 1}
_SCALE_BYTES = 4


class ExpertShape(NamedTuple):
    """The size of one expert.

    Attributes:
        hidden: Model width m.
        intermediate: Inner width m_h.
        element_bytes: Bytes of one number.
        weight_bytes: Bytes of one weight where weights are held in another type, with a scale of four bytes for each
            of their outputs; ``None`` where a weight is a number like any other.
    """

    hidden: int
    intermediate: int
    element_bytes: int
    weight_bytes: Optional[int] = None

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return 3 * self.hidden * self.intermediate

    @property
    def weights_bytes(self) -> int:
        """The bytes of all weights, as a device holds them."""
        if self.weight_bytes is None:
            return self.parameters * self.element_bytes
        return self.parameters * self.weight_bytes + _SCALE_BYTES * (2 * self.intermediate + self.hidden)

    def operations(self, tokens: int) -> int:
        """Return the operations for so many tokens; a multiplication and an addition count as two."""
        each = 6 * self.hidden * self.intermediate + (ACTIVATION_OPERATIONS + 1) * self.intermediate
        return tokens * each

    def traffic_bytes(self, tokens: int) -> int:
        """Return the bytes through memory: all weights once, each token's activations once."""
        activations = tokens * (2 * self.hidden + 3 * self.intermediate)
        return self.weights_bytes + activations * self.element_bytes

    def seconds(self, pace: Pace, tokens_by_expert: Iterable[int]) -> float:
        """Return what a board takes for one dispatch: its experts one after the other; 0 where nothing binds."""
        if pace.ops_per_s is None and pace.bytes_per_s is None:
            return 0.0
        return sum(
            pace.seconds(self.operations(tokens), self.traffic_bytes(tokens)) for tokens in tokens_by_expert
        )
