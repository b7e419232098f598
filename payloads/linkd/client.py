"""What talks to the daemon: one connection, one JSON line each way."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, Dict, Mapping, Sequence

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

    def set(self, links: Sequence[Mapping[str, Any]]) -> Dict[str, Any]:
        """Shape these links and no others."""
        return self.request("set", links=links)

    def rerate(self, rates: Mapping[str, Mapping[str, float]]) -> Dict[str, Any]:
        """Change the rates of some devices in place: device -> downlink_mbit, uplink_mbit, or one of them."""
        return self.request("rerate", rates=rates)

    def clear(self) -> Dict[str, Any]:
        """Put everything back as it was."""
        return self.request("clear")

    def show(self) -> Dict[str, Any]:
        """Return the links and their counters."""
        return self.request("show")

    def request(self, op: str, **arguments: Any) -> Dict[str, Any]:
        """Send one request and return the answer.

        Raises:
            LinkdError: The daemon could not do it, or went away.
        """
        try:
            self._socket.sendall(json.dumps({"op": op, **arguments}).encode() + b"\n")
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
