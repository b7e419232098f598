"""What a latency model does not know before a run: the links' delays, their leaves, and the devices' round trips."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Dict, Mapping, NamedTuple, Optional, Sequence

import numpy as np

from payloads.linkd.client import Client
from payloads.linkd.errors import LinkdError
from payloads.linkd.model import Framing, expected_ms, takes_first_frame
from payloads.station.link_feed import LinkControlError, Rates
from payloads.wdmoe.bs.links import ask_links
from payloads.wdmoe.latency import LatencyModel
from payloads.wire.clock import Offset
from payloads.wire.connection import record_bytes
from payloads.wire.frames import PING_BYTES, PONG_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["UNSHAPED", "LinkFacts", "link_facts", "refined"]


class LinkFacts(NamedTuple):
    """What links are beside their rates.

    Attributes:
        delay_ms: The one-way delay that each device's link is given.
        first_frame: Whether the first frame of a message takes its time too; ``None`` where nothing is shaped.
    """

    delay_ms: Mapping[str, float]
    first_frame: Optional[bool]

    def delays_ms(self, devices: Sequence[str]) -> NDArray[np.float64]:
        """Return the delays (D,) in the order of some devices."""
        return np.array([self.delay_ms.get(name, 0.0) for name in devices])


UNSHAPED = LinkFacts({}, None)


def link_facts(path: Path) -> LinkFacts:
    """Ask linkd what the links are beside their rates.

    Raises:
        LinkControlError: linkd does not run, or does not answer.
    """
    try:
        with Client(path) as client:
            links = ask_links(client)
    except LinkdError as error:
        raise LinkControlError(f"the links cannot be followed: {error}") from error
    backends = [backend for link in links for backend in link["backends"].values() if backend is not None]
    return LinkFacts(
        {link["device"]: float(link.get("delay_ms") or 0.0) for link in links},
        any(map(takes_first_frame, backends)) if backends else None,
    )


def refined(
    model: LatencyModel,
    devices: Sequence[str],
    offsets: Mapping[str, Offset],
    rates: Rates,
    facts: LinkFacts,
) -> LatencyModel:
    """Return a latency model of these very devices, with what was found out about them and their links.

    A device whose round trip nobody has measured yet gets that of its clock's pings, less what their few bytes and the
    link's delay are known to take.

    Args:
        model: The model as it was told.
        devices: The devices that hold experts, in the order of the columns.
        offsets: Their clocks, with the round trips behind them.
        rates: The rates that were in force.
        facts: What the links are beside that.

    Raises:
        LatencyError: The model does not know one of the devices.
    """
    model = model.limited(devices)
    if facts.first_frame is not None:
        model = model.with_first_frame(facts.first_frame)
    framing = Framing.of_mtu(model.mtu)
    fixed_ms: Dict[str, float] = {}
    for name, speed in zip(model.devices, model.speeds):
        if speed.fixed_ms is None and name in offsets:
            takes_ms = 2 * facts.delay_ms.get(name, 0.0)
            for size, rate_mbit in zip((PING_BYTES, PONG_BYTES), rates.get(name, (None, None))):
                if rate_mbit is not None:
                    # What TLS adds counts wherever headers do.
                    wire_bytes = record_bytes(size) if model.tls and framing is not None else size
                    takes_ms += expected_ms(wire_bytes, rate_mbit, framing, first_frame=model.first_frame)
            fixed_ms[name] = max(0.0, offsets[name].rtt_ns / 1e6 - takes_ms)
    return model.with_fixed_ms(fixed_ms)
