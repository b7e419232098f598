"""Links that are shaped by the sockets themselves: the base station keeps each device's connection at its rates.

linkd plays the channel and tells what rates are in force; this end's sockets and, by a frame in front of the next
dispatch, the workers' take them over. Nothing here waits: what linkd has said is read before a layer's dispatches
and while their answers are awaited.
"""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Dict, Mapping, Optional, Tuple, Type

from payloads.station.link_feed import LinkFeed
from payloads.wire.channel import Channel, DeviceLostError
from payloads.wire.client import Exchange

__all__ = ["LinkPacing"]

_Rates = Tuple[Optional[float], Optional[float]]


class LinkPacing:
    """Follows linkd while a trial runs; a context manager that leaves the connections without a limit.

    Args:
        feed: What linkd says.
        exchange: The loop that asks the devices.
        channels: The connection to each device, by name.
    """

    def __init__(self, feed: LinkFeed, exchange: Exchange, channels: Mapping[str, Channel]) -> None:
        self._feed = feed
        self._exchange = exchange
        self._channels = channels
        self._paced: Dict[str, _Rates] = {}
        self._obey()

    def __enter__(self) -> LinkPacing:
        self._exchange.follow(self._feed.fileno(), self.follow)
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self._exchange.unfollow(self._feed.fileno())
        for name in self._paced:
            with contextlib.suppress(DeviceLostError):  # a connection that is gone has no limit any more
                self._channels[name].pace(None, None)

    def follow(self) -> None:
        """Take over what linkd has said since the last time.

        Raises:
            LinkControlError: linkd went away: nobody knows the rates any more.
            DeviceLostError: A connection is gone.
        """
        self._feed.follow()
        if self._seen != self._feed.version:
            self._obey()

    def _obey(self) -> None:
        self._seen = self._feed.version
        gone: Optional[DeviceLostError] = None
        for name, wanted in self._feed.rates.items():
            channel = self._channels.get(name)
            if channel is not None and self._paced.get(name) != wanted:
                self._paced[name] = wanted  # where the connection is gone, the next one begins with it
                try:
                    channel.pace(*wanted)
                except DeviceLostError as error:
                    gone = gone or error
        if gone is not None:
            raise gone
