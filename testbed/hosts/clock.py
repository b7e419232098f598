"""A host's clock beside ours, bounded from both sides by questions and answers over a connection that is open."""

from __future__ import annotations

import time
from collections.abc import Callable

from testbed.config.inventory import Host
from testbed.errors import CommandError
from testbed.hosts.steps import Command
from testbed.hosts.transport import Transport

__all__ = ["measure_clock"]

EXCHANGES = 8


def measure_clock(
    host: Host, transport: Transport, *, good_error_s: float, clock: Callable[[], float] = time.time
) -> tuple[float, float] | None:
    """Return a host's clock minus ours, and how far off that can be at most.

    What a host reads lies between the sending of the question and the arrival of the answer, whatever the network and
    the machines were busy with: each exchange is a bound from both sides, and all of them hold.

    Args:
        host: The host.
        transport: The way to it.
        good_error_s: Where the error is this small, no more is asked.
        clock: Our own clock, in unix seconds.

    Returns:
        None where the host cannot tell its time to a fraction of a second.
    """
    low, high = float("-inf"), float("inf")
    for _ in range(EXCHANGES):
        before = clock()
        try:
            answer = transport.run(Command(host.name, "date +%s.%N", "ask for the time", 30.0))
            reading = float(answer.stdout)
        except (CommandError, ValueError):
            return None
        own_low, own_high = reading - clock(), reading - before
        low, high = max(low, own_low), min(high, own_high)
        if low > high:  # a clock was set meanwhile: what was known before says nothing now
            low, high = own_low, own_high
        if high - low <= 2 * good_error_s:
            break
    return (low + high) / 2, (high - low) / 2
