"""Links that are shaped by the sockets themselves: the base station keeps each device's connection at its rates.

linkd plays the channel and tells what rates are in force; this end's sockets and, by a frame in front of the next
dispatch, the workers' take them over. Nothing here waits: what linkd has said is read before a layer's dispatches
and while their answers are awaited.
"""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Dict, Mapping, Optional, Tuple, Type

from payloads.wdmoe.links import LinkControlError
from payloads.wire.channel import Channel, DeviceLostError
from payloads.wire.client import Exchange

__all__ = ["LinkPacing"]

_TIMEOUT_S = 5.0
_Rates = Tuple[Optional[float], Optional[float]]


class LinkPacing:
    """Follows linkd while a trial runs; a context manager that leaves the connections without a limit.

    Args:
        path: linkd's socket.
        exchange: The loop that asks the devices.
        channels: The connection to each device, by name.

    Raises:
        LinkControlError: linkd does not run, or does not answer.
    """

    def __init__(self, path: Path, exchange: Exchange, channels: Mapping[str, Channel]) -> None:
        self._exchange = exchange
        self._channels = channels
        self._paced: Dict[str, _Rates] = {}
        self._data = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(_TIMEOUT_S)
            self._socket.connect(str(path))
            self._socket.sendall(b'{"op": "watch"}\n')
            answer = self._next_line()
            if not answer.get("ok"):
                raise LinkControlError(f"the links cannot be followed: {answer.get('error')}")
            # The rates that are in force come first.
            self._obey(self._next_line())
            self._socket.setblocking(False)
        except OSError as error:
            self._socket.close()
            reason = error.strerror or "no answer in time"
            raise LinkControlError(f"the links cannot be followed: linkd at {path}: {reason}") from error
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> LinkPacing:
        self._exchange.follow(self._socket.fileno(), self.follow)
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self._exchange.unfollow(self._socket.fileno())
        self._socket.close()
        for name in self._paced:
            with contextlib.suppress(DeviceLostError):  # a connection that is gone has no limit any more
                self._channels[name].pace(None, None)

    def follow(self) -> None:
        """Take over what linkd has said since the last time.

        Raises:
            LinkControlError: linkd went away: nobody knows the rates any more.
            DeviceLostError: A connection is gone.
        """
        while True:
            try:
                part = self._socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                raise LinkControlError(f"the links can no longer be followed: {error.strerror}") from error
            if not part:
                raise LinkControlError("the links can no longer be followed: linkd went away")
            self._data += part
        lines = self._data.split(b"\n")
        self._data = lines.pop()
        for line in lines:
            self._obey(json.loads(line))

    def _obey(self, event: Mapping[str, Any]) -> None:
        if event.get("event") != "rates":
            return
        for name, rates in event["rates"].items():
            channel = self._channels.get(name)
            wanted = (rates.get("downlink_mbit"), rates.get("uplink_mbit"))
            if channel is not None and self._paced.get(name) != wanted:
                channel.pace(*wanted)
                self._paced[name] = wanted

    def _next_line(self) -> Dict[str, Any]:
        while b"\n" not in self._data:
            part = self._socket.recv(1 << 16)
            if not part:
                raise LinkControlError("the links cannot be followed: linkd hung up")
            self._data += part
        line, _, self._data = self._data.partition(b"\n")
        value: Dict[str, Any] = json.loads(line)
        return value
