"""What linkd says about the links while a trial runs: rates, and the rule, states and shares that they follow from.

Nothing here waits: what linkd has said is read when somebody asks for it.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

import numpy as np

from payloads.linkd.rule import Rule
from payloads.station.link_state import LinkState

__all__ = ["LinkControlError", "LinkFeed", "Rates"]

_TIMEOUT_S = 5.0
#: Stands for a link that nothing limits, as far as is known here: every rule makes its highest rate of it.
_UNLIMITED = 1e12

#: Rates by device: downlink, uplink; None where linkd leaves the direction alone.
Rates = Dict[str, Tuple[Optional[float], Optional[float]]]


class LinkControlError(Exception):
    """The links do not do what the trial's policy asks for, or nobody knows what they do."""


class LinkFeed:
    """Follows linkd; a context manager.

    Attributes:
        rates: The rates in force, as linkd told last.
        version: How many times it has told of rates.

    Args:
        path: linkd's socket.

    Raises:
        LinkControlError: linkd does not run, or does not answer.
    """

    def __init__(self, path: Path) -> None:
        self.rates: Rates = {}
        self.version = 0
        self._rule: Optional[Rule] = None
        self._states: Mapping[str, Any] = {}
        self._shares: Mapping[str, Any] = {}
        self._made: Tuple[Any, Optional[LinkState]] = (None, None)
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
            self._hear(self._next_line())
            self._socket.setblocking(False)
        except OSError as error:
            self._socket.close()
            reason = error.strerror or "no answer in time"
            raise LinkControlError(f"the links cannot be followed: linkd at {path}: {reason}") from error
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> LinkFeed:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor that is readable when linkd has said something."""
        return self._socket.fileno()

    def follow(self) -> bool:
        """Take in what linkd has said since the last time; return whether that was something about rates.

        Raises:
            LinkControlError: linkd went away: nobody knows the rates any more.
        """
        before = self.version
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
        if self._data:
            lines = self._data.split(b"\n")
            self._data = lines.pop()
            for line in lines:
                self._hear(json.loads(line))
        return self.version != before

    def links(self, devices: Sequence[str]) -> Optional[LinkState]:
        """Return the links of some devices as linkd told last; ``None`` where it shapes none of them.

        A direction that linkd leaves alone has no limit that is known here.
        """
        key = (self.version, devices)
        if self._made[0] != key:
            self._made = (key, self._links_of(devices))
        return self._made[1]

    def _links_of(self, devices: Sequence[str]) -> Optional[LinkState]:
        if self._rule is None or not any(name in self._states for name in devices):
            return None
        nothing = (None, None)
        states = np.array(
            [
                [_UNLIMITED if state is None else state for state in self._states.get(name, nothing)]
                for name in devices
            ],
            dtype=float,
        )
        shares = np.array([self._shares.get(name, (1 / len(devices),) * 2) for name in devices], dtype=float)
        return LinkState(self._rule, np.ascontiguousarray(states.T), np.ascontiguousarray(shares.T))

    def _hear(self, event: Mapping[str, Any]) -> None:
        if event.get("event") != "rates":
            return
        self.rates = {
            name: (rates.get("downlink_mbit"), rates.get("uplink_mbit"))
            for name, rates in event["rates"].items()
        }
        if "rule" in event:
            self._rule = Rule.from_json(event["rule"])
        self._states, self._shares = event.get("states", {}), event.get("shares", {})
        self.version += 1

    def _next_line(self) -> Dict[str, Any]:
        while b"\n" not in self._data:
            part = self._socket.recv(1 << 16)
            if not part:
                raise LinkControlError("the links cannot be followed: linkd hung up")
            self._data += part
        line, _, self._data = self._data.partition(b"\n")
        value: Dict[str, Any] = json.loads(line)
        return value
