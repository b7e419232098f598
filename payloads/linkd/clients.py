"""The clients of the daemon's socket: read, answered and told of events, and never waited for."""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import time
from collections import deque
from typing import Any, Deque, Dict, Iterator

from payloads.linkd.session import Session

__all__ = ["Clients"]

_MAX_LINE_BYTES = 1 << 20
_MAX_CLIENTS = 32
#: A client that takes nothing for so long, or a watcher that is so far behind, is dropped.
_STALLED_S = 10.0
_MAX_BEHIND_BYTES = 1 << 20
#: What one client is sent before another's turn comes, or a timer's.
_TURN_BYTES = 1 << 18


class _Client:
    """One connection.

    Attributes:
        connection: Its socket, which does not block.
        received: What came and is no whole line yet.
        queue: Answers and events to be sent, in pieces that are made when their turn comes.
        waiting: The piece that is being sent.
        watches: Whether it is told of events.
        behind_bytes: Bytes of events since it last had everything.
        last_s: When it took something last, or had everything.
        busy: Whether there is something left to send.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = bytearray()
        self.queue: Deque[Iterator[bytes]] = deque()
        self.waiting = bytearray()
        self.watches = False
        self.behind_bytes = 0
        self.last_s = time.monotonic()
        self.busy = False

    def send(self) -> bool:
        """Send what the kernel takes now, a turn's worth at most; return whether there is more.

        Raises:
            OSError: The client has gone.
        """
        left = _TURN_BYTES
        while left > 0:
            if not self.waiting:
                if not self.queue:
                    self.last_s, self.behind_bytes = time.monotonic(), 0
                    return False
                piece = next(self.queue[0], None)
                if piece is None:
                    self.queue.popleft()
                    continue
                self.waiting += piece
            try:
                sent = self.connection.send(self.waiting)
            except BlockingIOError:
                return True
            del self.waiting[:sent]
            left -= sent
            self.last_s = time.monotonic()
        return True


class Clients:
    """All connections to the daemon.

    Args:
        server: The socket that they come to.
        selector: What the daemon waits with.
        session: Who answers.
    """

    def __init__(self, server: socket.socket, selector: selectors.BaseSelector, session: Session) -> None:
        self._server = server
        self._selector = selector
        self._session = session
        self._clients: Dict[socket.socket, _Client] = {}
        server.setblocking(False)
        selector.register(server, selectors.EVENT_READ)

    def close(self) -> None:
        """Close all connections."""
        for client in list(self._clients.values()):
            self._drop(client)

    def serve(self, key: selectors.SelectorKey, events: int) -> None:
        """Do what a socket is ready for."""
        if key.fileobj is self._server:
            self._accept()
            return
        client = self._clients.get(key.fileobj) if isinstance(key.fileobj, socket.socket) else None
        if client is None:
            return  # dropped a moment ago
        try:
            if events & selectors.EVENT_WRITE:
                self._send(client)
            if events & selectors.EVENT_READ and not self._read(client):
                self._drop(client)
        except OSError:
            self._drop(client)

    def drop_stalled(self) -> None:
        """Drop who takes nothing."""
        oldest = time.monotonic() - _STALLED_S
        for client in list(self._clients.values()):
            if client.busy and client.last_s < oldest:
                self._drop(client)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            connection, _address = self._server.accept()
            if len(self._clients) >= _MAX_CLIENTS:
                connection.close()
                return
            connection.setblocking(False)
            self._clients[connection] = _Client(connection)
            self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, client: _Client) -> bool:
        """Read what is there and answer every whole line; return whether the connection goes on."""
        try:
            data = client.connection.recv(1 << 16)
        except BlockingIOError:
            return True
        client.received += data
        while True:
            line, newline, rest = client.received.partition(b"\n")
            if not newline:
                return bool(data) and len(client.received) <= _MAX_LINE_BYTES
            client.received = rest
            if client.connection not in self._clients:
                return False
            reply = self._session.handle(bytes(line))
            client.queue.append(iter(reply.chunks))
            if reply.watches and not client.watches:
                client.watches = True
                client.queue.append(iter((_line(self._session.event_now()),)))
                self._session.publish = self._publish
            self._send(client)

    def _send(self, client: _Client) -> None:
        more = client.send()
        if more != client.busy:
            client.busy = more
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if more else 0)
            self._selector.modify(client.connection, events)

    def _publish(self, event: Dict[str, Any]) -> None:
        line = _line(event)
        for client in [client for client in self._clients.values() if client.watches]:
            client.behind_bytes += len(line)
            if client.behind_bytes > _MAX_BEHIND_BYTES:
                self._drop(client)
                continue
            client.queue.append(iter((line,)))
            if not client.busy:
                try:
                    self._send(client)
                except OSError:
                    self._drop(client)

    def _drop(self, client: _Client) -> None:
        if client.connection not in self._clients:
            return  # dropped by an event of its own making
        self._selector.unregister(client.connection)
        del self._clients[client.connection]
        client.connection.close()
        if not any(other.watches for other in self._clients.values()):
            self._session.publish = None


def _line(event: Dict[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"
