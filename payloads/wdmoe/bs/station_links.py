"""What a base station does with its links while it works: follow them, have sockets follow them, share their band."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional

from payloads.station.devices import Devices
from payloads.station.link_feed import LinkFeed
from payloads.station.pacing import LinkPacing
from payloads.wdmoe.allocation.bandwidth import LEAVE_ALONE
from payloads.wdmoe.bs.links import LinkControl, LinkControlError
from payloads.wdmoe.bs.remote import Dispatcher
from payloads.wire.client import Exchange

__all__ = ["StationLinks"]


class StationLinks:
    """The links of a base station.

    Attributes:
        path: linkd's socket; ``None`` where nothing shapes the links.
        paced: The same, where sockets are to be kept at the links' rates.

    Args:
        dispatcher: Told of the links.
        exchange: The loop that drives the connections.
        devices: The connections.
        path: As above.
        pacing: Whether the devices' sockets are to be kept at the rates that linkd tells.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        exchange: Exchange,
        devices: Devices,
        path: Optional[Path],
        pacing: bool,
    ) -> None:
        self.path = path
        self.paced = path if pacing else None
        self._dispatcher = dispatcher
        self._exchange = exchange
        self._devices = devices

    @contextmanager
    def following(self, links: Optional[Path]) -> Iterator[None]:
        """Follow the links, and let the sockets follow them too, until the end; then all is as before."""
        dispatcher = self._dispatcher
        with ExitStack() as stack:
            stack.callback(self._leave)
            if links is not None:
                dispatcher.feed = stack.enter_context(LinkFeed(links))
                if self.paced is not None:
                    pacing = LinkPacing(dispatcher.feed, self._exchange, self._devices.channels)
                    dispatcher.pacing = stack.enter_context(pacing)
            yield

    @contextmanager
    def allocating(self, trial: str, bandwidth: Mapping[str, Any]) -> Iterator[Optional[LinkControl]]:
        """Let the links follow the policy until the end, where it has a wish."""
        if bandwidth["kind"] == LEAVE_ALONE["kind"]:
            yield None
            return
        dispatcher = self._dispatcher
        if self.path is None or dispatcher.feed is None:
            text = "the policy allocates bandwidth, and this base station was started without --links"
            raise LinkControlError(f"{text}; only links that linkd shapes can be allocated")
        control = LinkControl(self.path, dispatcher.feed, str(bandwidth["kind"]), trial, dispatcher.devices)
        with control:
            dispatcher.control = control
            yield control

    def _leave(self) -> None:
        dispatcher = self._dispatcher
        dispatcher.decider = dispatcher.decided = dispatcher.expects = dispatcher.activations = None
        dispatcher.control = dispatcher.pacing = dispatcher.feed = None
