"""How long a verification of links takes, from what is timed and at which rates. Pure."""

from __future__ import annotations

from payloads.linkd.model import expected_ms, refill_s
from testbed.config.campaign_base import Verify
from testbed.links.scenario import LinkRate, ShapingPlan

__all__ = ["probe_row_count", "probe_seconds"]

# Before each message two short ones are timed; each waits until the bucket is full again, and 2 ms more.
_WAITS = 3
_REST_S = 0.002
_CONNECT_S = 0.4
_FULL_LOAD_S = 3.0  # until the other links are full, and the load's own start and end


def probe_row_count(plan: ShapingPlan, verify: Verify, *, busy: bool) -> int:
    """Return how many rows the probes of a plan's links give.

    Args:
        plan: The links.
        verify: What is timed.
        busy: Whether each size is also timed while all other devices are at full load.
    """
    directions = sum(len(_rates(link)) for link in plan.links)
    return directions * len(verify.message_bytes) * (2 if busy else 1)


def probe_seconds(plan: ShapingPlan, verify: Verify, *, busy: bool) -> float:
    """Return how many seconds the probes of a plan's links take, where none has to be repeated.

    Args:
        plan: The links.
        verify: What is timed.
        busy: Whether each size is also timed while all other devices are at full load.
    """
    return sum(_link_seconds(link, verify, busy=busy) for link in plan.links)


def _link_seconds(link: LinkRate, verify: Verify, *, busy: bool) -> float:
    rates = _rates(link)
    wait_s = _REST_S + max((refill_s(rate) for rate in rates), default=0.0)
    waits_s = _WAITS * (wait_s + 2 * link.delay_ms / 1e3)
    once = sum(
        expected_ms(size, rate, first_frame=True) / 1e3 + waits_s
        for rate in rates
        for size in verify.message_bytes
    )
    seconds = _CONNECT_S + verify.repeats * once
    return 2 * seconds + _FULL_LOAD_S if busy else seconds


def _rates(link: LinkRate) -> list[float]:
    return [rate for rate in (link.downlink_mbit, link.uplink_mbit) if rate is not None]
