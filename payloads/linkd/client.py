"""What talks to the daemon: one connection, one JSON line each way."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional, Sequence, Union

from payloads.linkd.errors import LinkdError, LinksError, NotRunningError, RefusedError

__all__ = ["Client"]

_TIMEOUT_S = 30.0


class Client:
    """A connection to the daemon; it may be kept open for many requests.

    Args:
        path: The daemon's socket.

    Raises:
        NotRunningError: Nobody answers there.
    """

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_TIMEOUT_S)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise NotRunningError(f"linkd does not run: {path}: {error.strerror}") from error
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the links stay as they are."""
        self._file.close()
        self._socket.close()

    def set(self, links: Sequence[Mapping[str, Any]], channel: Optional[str] = None) -> Dict[str, Any]:
        """Shape these links and no others, and start a new history.

        Args:
            links: The links, as :class:`payloads.linkd.plan.Link` has them.
            channel: A channel file on the daemon's host; its mean rates are in force until :meth:`play`.

        Returns:
            The interface, ``backend``, and ``links``: each as it was given, with its rates in force, and beside
            them ``backends`` and ``shares``, both by direction.
        """
        return self.request("set", links=links, **({} if channel is None else {"channel": channel}))

    def play(self) -> Dict[str, Any]:
        """Start the channel's clock now; ``{"playing": false, "note": ...}`` where there is no channel."""
        return self.request("play")

    def hold(self) -> Dict[str, Any]:
        """Stop the channel's clock; the rates in force stay."""
        return self.request("hold")

    def rerate(self, rates: Mapping[str, Mapping[str, float]]) -> Dict[str, Any]:
        """Change the rates of some devices in place: device -> downlink_mbit, uplink_mbit, or one of them.

        Raises:
            LinksError: A channel is playing, or a rate is out of range.
        """
        return self.request("rerate", rates=rates)

    def allocate(
        self, shares: Mapping[str, Union[float, Mapping[str, float]]], why: Optional[str] = None
    ) -> Dict[str, Any]:
        """Give devices other shares of the bandwidth, at once and for the blocks to come.

        Args:
            shares: Device -> its share of both directions, or {"downlink": share, "uplink": share} or one of
                them. Who is not named keeps its share; each direction adds up to at most 1.
            why: A few words for the history.

        Returns:
            ``{"changed": rates that changed, "rates": {device: {"downlink_mbit": ..., "uplink_mbit": ...}}}``.
        """
        return self.request("allocate", shares=shares, why=why)

    def clear(self) -> Dict[str, Any]:
        """Put everything back as it was."""
        return self.request("clear")

    def show(self) -> Dict[str, Any]:
        """Return what :meth:`set` does, with each link's counters by direction, and ``playing``."""
        return self.request("show")

    def history(self) -> Dict[str, Any]:
        """Return everything since the last :meth:`set`: ``devices``, ``changes``, ``samples``, ``lost``."""
        return self.request("history")

    def watch(self) -> Iterator[Dict[str, Any]]:
        """Yield every change of rates and every sample as it happens, for as long as the daemon lives.

        The first event, ``{"event": "rates", "cause": "watch", "rates": ...}``, has the rates in force. Close the
        client from another thread, or with :meth:`close` between two events, to end it.

        Raises:
            LinkdError: The daemon refused, or went away.
        """
        self.request("watch")
        self._socket.settimeout(None)
        while True:
            try:
                line = self._file.readline()
            except (OSError, ValueError) as error:
                raise LinkdError(f"linkd is no longer watched: {error}") from error
            if not line:
                raise LinkdError("linkd went away while it was watched")
            event: Dict[str, Any] = json.loads(line)
            yield event

    def request(self, op: str, **arguments: Any) -> Dict[str, Any]:
        """Send one request and return the answer.

        Raises:
            LinkdError: The daemon could not do it, or went away.
        """
        self.begin(op, **arguments)
        return self.answer()

    def begin(self, op: str, **arguments: Any) -> None:
        """Send one request; its answer has to be taken by :meth:`answer` before the next one.

        Raises:
            LinkdError: The daemon went away.
        """
        try:
            self._socket.sendall(json.dumps({"op": op, **arguments}).encode() + b"\n")
        except OSError as error:
            raise LinkdError(f"linkd did not answer: {error}") from error

    def answer(self) -> Dict[str, Any]:
        """Wait for the answer to a request that was begun.

        Raises:
            LinkdError: The daemon could not do it, or went away.
        """
        try:
            line = self._file.readline()
        except OSError as error:
            raise LinkdError(f"linkd did not answer: {error}") from error
        if not line:
            raise LinkdError("linkd went away while it was asked")
        answer: Dict[str, Any] = json.loads(line)
        if answer.pop("ok"):
            return answer
        kinds = {kind.exit_status: kind for kind in (LinkdError, LinksError, RefusedError)}
        raise kinds.get(answer.get("exit_status", 1), LinkdError)(answer["error"])
