"""What a server counts: numbers that its thread alone changes, and any thread may read."""

from __future__ import annotations

import threading
from typing import Dict

__all__ = ["REFUSALS", "ServerCounts"]

#: Why a connection is not let in: it did not prove what it is, it said nothing in time, there are too many.
REFUSALS = ("handshake", "silent", "full")


class ServerCounts:
    """What happened to a server since it began.

    Attributes:
        connected: Connections that proved themselves.
        refused: Connections that did not come in, by reason (see :data:`REFUSALS`).
        closed: Connections that had proved themselves and ended.
        broken: Those of them that were closed for a frame that broke the format.
        wire_in: Bytes received over connections that are closed.
        wire_out: Bytes sent over connections that are closed.
        moving: Held while a connection changes its state: who adds up all connections finds each once.
    """

    __slots__ = ("broken", "closed", "connected", "moving", "refused", "wire_in", "wire_out")

    def __init__(self) -> None:
        self.connected = 0
        self.refused: Dict[str, int] = dict.fromkeys(REFUSALS, 0)
        self.closed = 0
        self.broken = 0
        self.wire_in = 0
        self.wire_out = 0
        self.moving = threading.Lock()
