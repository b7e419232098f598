"""The running budget of one layer: mass that may be lost, saved up from token to token and spent where it buys most.

Each token of a layer is granted ``1 - tau`` of mass to lose. It does not have to be lost there and then: what is not
spent is kept. Dropping is worth it where it saves many seconds for little quality, and how much is much is told by a
*price* in seconds for each unit of quality: the price at which what the last tokens could have done would have used up
exactly what is granted. At one price everywhere no exchange of one token's loss for another's would gain anything,
which is what makes a budget over a whole answer better than the same budget for each token.
"""

from __future__ import annotations

from collections import deque
from typing import Deque, List, Sequence, Tuple

__all__ = ["Account"]

Step = Tuple[float, float]
"""Seconds gained for a unit of quality, and the mass that it loses."""

_PARTS = 32
"""The price is worked out anew whenever this part of what is remembered has changed."""


class Account:
    """The budget of one layer.

    Attributes:
        balance: The mass that may be lost now.
        price: Seconds that a unit of quality has to save.

    Args:
        grant: Mass that each token adds.
        cap: For how many tokens mass can be saved up.
        memory: How many tokens the price is worked out from.
        reserve: Mass that the price tries to keep in hand, for a bargain that comes along.
    """

    def __init__(self, grant: float, cap: float, memory: int, reserve: float) -> None:
        self.balance = 0.0
        self.price = 0.0
        self._grant = grant
        self._most = grant * cap
        self._reserve = min(reserve, self._most)
        self._steps: Deque[List[Step]] = deque(maxlen=memory)
        self._count = 0

    def grant(self) -> float:
        """Add one token's mass; return what may be lost now."""
        self.balance = min(self.balance + self._grant, max(self._most, self._grant))
        return self.balance

    def spend(self, lost: float) -> None:
        """Take away what a token lost."""
        self.balance -= lost

    def learn(self, steps: Sequence[Step]) -> None:
        """Remember what one token could have done, each step with what it saves and loses."""
        self._steps.append(list(steps))
        self._count += 1
        # A price from few tokens changes fast, one from many slowly.
        if self._count % max(1, len(self._steps) // _PARTS) == 0:
            self._reprice()

    def _reprice(self) -> None:
        seen = len(self._steps)
        # What is in hand beyond the reserve is spent over the time that is remembered.
        room = self._grant * seen + (self.balance - self._reserve) * seen / (self._steps.maxlen or seen)
        self.price = 0.0
        for rate, lost in sorted((step for steps in self._steps for step in steps), reverse=True):
            room -= lost
            if room < 0.0:
                self.price = rate
                return
