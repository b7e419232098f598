"""How fast a board is, for one that a faster machine stands for. Pure: services and simulators use it alike."""

from __future__ import annotations

from typing import NamedTuple, Optional

__all__ = ["Pace"]


class Pace(NamedTuple):
    """The speed of a board; a term that is ``None`` does not bind.

    Attributes:
        ops_per_s: Operations per second.
        bytes_per_s: Bytes per second from memory.
    """

    ops_per_s: Optional[float]
    bytes_per_s: Optional[float]

    def seconds(self, operations: int, traffic_bytes: int) -> float:
        """Return how long some work takes: the slower of computing and of reading memory; 0 where nothing binds."""
        compute_s = operations / self.ops_per_s if self.ops_per_s else 0.0
        return max(compute_s, traffic_bytes / self.bytes_per_s if self.bytes_per_s else 0.0)
