"""When a channel's next block is due. No clock of its own, so that it can be tested."""

from __future__ import annotations

from typing import Optional

from payloads.linkd.channel import Channel

__all__ = ["Player"]


class Player:
    """Plays a channel from a moment on, again and again.

    Times are absolute: what was late does not make the next one late, and blocks that have passed are left out.

    Args:
        channel: The channel.
        started_s: The moment of its beginning, on the caller's clock.
    """

    def __init__(self, channel: Channel, started_s: float) -> None:
        self._channel = channel
        self._started_s = started_s
        self.block = channel.block_at(0.0)

    def due(self, now_s: float) -> Optional[int]:
        """Return the block that has begun since this was asked last, or None where the old one goes on."""
        block = self._channel.block_at(now_s - self._started_s)
        if block == self.block:
            return None
        self.block = block
        return block

    def next_s(self, now_s: float) -> Optional[float]:
        """Return when to ask :meth:`due` next: when the next block begins, at once where it has begun already.

        None where there is only one block.
        """
        elapsed_s = now_s - self._started_s
        wait_s = self._channel.next_block_in_s(elapsed_s)
        if wait_s is None:
            return None
        return now_s + wait_s if self._channel.block_at(elapsed_s) == self.block else now_s
