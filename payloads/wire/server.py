"""The answering end of the data plane: an epoll server for authenticated connections.

Until a peer has proved itself, nothing but the handshake is read from it, only so much, and only for a short time: a
silent or unknown client costs one descriptor for two seconds, and many of them keep nobody else out. Whatever goes
wrong with one connection closes that connection with one line in the log; the server goes on.
"""

from __future__ import annotations

import fcntl
import select
import socket
import sys
import termios
import time
from array import array
from collections import Counter
from typing import Callable, Dict, List, Optional, Sequence, Tuple, Union

from payloads.wire.auth import AuthError
from payloads.wire.connection import Connection
from payloads.wire.counts import ServerCounts
from payloads.wire.credentials import Credentials, Handshake
from payloads.wire.frames import Buffer, FrameError, Header, Kind, pack_pong, unpack_pace, unpack_ping
from payloads.wire.sockets import Receiver, tune

__all__ = ["Handler", "Server", "listen", "parse_listen"]

HANDSHAKE_TIMEOUT_S = 2.0
MAX_STRANGERS = 32
MAX_PEERS = 16
#: For so long the server may stay with the connection that it has just heard of, where there is no other one.
STAY_S = 0.02
_STAY_NS = round(STAY_S * 1e9)
_FULL = "refused: too many connections"

#: Called with a whole frame: header, payload, and when it had arrived (monotonic ns). Returns the answer
#: in pieces. The payload is good until the call returns. A FrameError closes the connection.
Handler = Callable[[Header, memoryview, int], Sequence[Buffer]]


class Server:
    """Accepts connections, authenticates them, and hands every frame to one handler.

    Pings are answered and paces obeyed here; every other frame goes to the handler, one at a time.
    """

    def __init__(
        self, listener: socket.socket, credentials: Credentials, handler: Handler, name: str
    ) -> None:
        self._listener = listener
        self._credentials = credentials
        self._handler = handler
        self._name = name
        self._epoll = select.epoll()
        self._strangers: Dict[int, _Stranger] = {}
        self._peers: Dict[int, _Peer] = {}
        self.counts = ServerCounts()
        listener.setblocking(False)
        self._epoll.register(listener.fileno(), select.EPOLLIN)

    @property
    def address(self) -> Tuple[str, int]:
        """Where it listens."""
        address, port = self._listener.getsockname()
        return address, port

    @property
    def peers(self) -> int:
        """How many connections are authenticated now; any thread may ask."""
        return len(self._peers)

    def wire_bytes(self) -> Tuple[int, int]:
        """Return the bytes received and sent over all connections so far; any thread may ask."""
        with self.counts.moving:
            here = [peer.connection for peer in self._peers.values()]
            here += [stranger.connection for stranger in self._strangers.values()]
            back, out = sum(each.wire_back for each in here), sum(each.wire_out for each in here)
            return self.counts.wire_in + back, self.counts.wire_out + out

    def queued_bytes(self) -> int:
        """Return the bytes that have arrived from peers and wait to be read; any thread may ask."""
        waiting = array("i", [0])
        total = 0
        with self.counts.moving:
            for peer in self._peers.values():
                fcntl.ioctl(peer.connection.fileno(), termios.FIONREAD, waiting)
                total += waiting[0]
        return total

    def serve(self, stop: Optional[Callable[[], bool]] = None, poll_s: float = 3600.0) -> None:
        """Serve until ``stop`` says so (looked at every ``poll_s`` seconds), or until an exception."""
        door = self._listener.fileno()
        while not (stop and stop()):
            timeout = poll_s
            if self._strangers:
                first = min(stranger.deadline for stranger in self._strangers.values())
                timeout = min(poll_s, max(0.0, first - time.monotonic()))
            for descriptor, _ in self._epoll.poll(timeout):
                peer = self._peers.get(descriptor)
                if peer is not None:
                    self._serve_peer(descriptor, peer)
                elif descriptor == door:
                    self._accept()
                elif descriptor in self._strangers:
                    self._hear_stranger(descriptor, self._strangers[descriptor])
            if self._strangers:
                self._drop_silent()

    def close(self) -> None:
        """Close every connection and the listener."""
        for descriptor in [*self._strangers, *self._peers]:
            self._drop(descriptor)
        self._listener.close()
        self._epoll.close()

    def _accept(self) -> None:
        try:
            connection, address = self._listener.accept()
        except OSError:
            return  # the client went away between the event and the call
        label = f"{address[0]}:{address[1]}"
        if len(self._peers) >= MAX_PEERS:
            self._log(label, _FULL)
            self.counts.refused["full"] += 1
            connection.close()
            return
        try:
            tune(connection)
            connection.setblocking(False)
            handshake = self._credentials.server(connection)
        except (OSError, AuthError) as error:
            self._log(label, f"closed: {error}")
            connection.close()
            return
        if len(self._strangers) >= MAX_STRANGERS:
            self._make_room()
        with self.counts.moving:
            self._strangers[connection.fileno()] = _Stranger(handshake, label, address[0])
        self._epoll.register(connection.fileno(), select.EPOLLIN)

    def _make_room(self) -> None:
        """Put out a stranger: of the address that has the most, the one that came first.

        A base station makes one connection to each device (the links are fed and probed elsewhere), and one at a
        time while a device is lost: whoever fills the places has more. An address has no limit of its own, since
        several base stations may share one with each other and with strangers, behind a NAT or in an emulated lab.
        There the newest stays, and a handshake that is made at all is made before so many others have come.
        """
        crowds = Counter(stranger.host for stranger in self._strangers.values())
        most = max(crowds.values())
        # In the order in which they came.
        for descriptor, stranger in self._strangers.items():
            if crowds[stranger.host] == most:
                self._log(stranger.label, _FULL)
                self.counts.refused["full"] += 1
                self._drop(descriptor)
                return

    def _hear_stranger(self, descriptor: int, stranger: _Stranger) -> None:
        try:
            if not stranger.handshake.go_on():
                return
        except (OSError, AuthError) as error:
            self._log(stranger.label, f"refused: {error}")
            self.counts.refused["handshake"] += 1
            self._drop(descriptor)
            return
        with self.counts.moving:
            del self._strangers[descriptor]
            stranger.connection.allow_waiting(STAY_S)
            self._peers[descriptor] = _Peer(stranger.connection, stranger.label)
        self._log(stranger.label, "connected")
        self.counts.connected += 1
        if stranger.connection.pending():  # epoll does not know of what came right behind the handshake
            self._serve_peer(descriptor, self._peers[descriptor])

    def _serve_peer(self, descriptor: int, peer: _Peer) -> None:
        """Answer what has come from a peer; stay with it where it is the only one, which costs less than epoll.

        Nobody else is kept waiting for longer than :data:`STAY_S`.
        """
        connection, receiver = peer.connection, peer.receiver
        alone = len(self._peers) == 1 and not self._strangers
        leave_ns, waits = 0, False
        try:
            if peer.rest:
                peer.rest = connection.send(peer.rest)
            while not peer.rest:
                now_ns = self._hear_peer(peer, waits)
                if not now_ns:
                    break
                leave_ns = leave_ns or now_ns + _STAY_NS
                waits = alone and now_ns < leave_ns
                # Once more only if something is left in a buffer: for what comes later there is the next event.
                if not (waits or receiver.left_bytes or connection.pending()):
                    break
            # A peer that does not fetch its answers is not asked for more questions.
            if bool(peer.rest) != peer.behind:
                peer.behind = bool(peer.rest)
                self._epoll.modify(descriptor, select.EPOLLOUT if peer.behind else select.EPOLLIN)
        except (OSError, FrameError) as error:
            self._log(peer.label, f"closed: {error}")
            self.counts.broken += isinstance(error, FrameError)
            self._drop(descriptor)

    def _hear_peer(self, peer: _Peer, waits: bool = False) -> int:
        """Receive and answer one frame; return when it had arrived (monotonic ns), 0 where none is whole."""
        connection, receiver = peer.connection, peer.receiver
        header = receiver.receive(connection, waits)
        if header is None:
            return 0
        received_ns, payload, kind = time.monotonic_ns(), receiver.payload(), header.kind
        answer: Sequence[Buffer] = ()
        if kind == Kind.PACE:
            connection.set_pace(unpack_pace(payload))
        elif kind == Kind.PING:
            sent_ns, again = unpack_ping(payload), connection.retransmitted_bytes()
            answer = [pack_pong(sent_ns, received_ns, time.monotonic_ns(), again, header.sequence)]
        else:
            answer = self._handler(header, payload, received_ns)
        if answer:
            peer.rest = connection.send(answer)
        return received_ns

    def _drop_silent(self) -> None:
        now = time.monotonic()
        for descriptor, stranger in list(self._strangers.items()):
            if stranger.deadline <= now:
                self._log(stranger.label, "refused: no handshake in time")
                self.counts.refused["silent"] += 1
                self._drop(descriptor)

    def _drop(self, descriptor: int) -> None:
        with self.counts.moving:
            self.counts.closed += descriptor in self._peers
            holder: Union[_Stranger, _Peer, None]
            holder = self._strangers.pop(descriptor, None) or self._peers.pop(descriptor, None)
            if holder is not None:
                self.counts.wire_in += holder.connection.wire_back
                self.counts.wire_out += holder.connection.wire_out
        if holder is not None:
            self._epoll.unregister(descriptor)
            holder.connection.close()

    def _log(self, label: str, text: str) -> None:
        print(f"{self._name}: {label} {text}", file=sys.stderr, flush=True)


class _Stranger:
    """A connection that has not proved anything yet."""

    def __init__(self, handshake: Handshake, label: str, host: str) -> None:
        self.handshake = handshake
        self.connection = handshake.connection
        self.label = label
        self.host = host
        self.deadline = time.monotonic() + HANDSHAKE_TIMEOUT_S


class _Peer:
    """An authenticated connection.

    Attributes:
        rest: What the kernel has not taken of the last answer.
        behind: Whether epoll tells when the kernel takes more, instead of when the peer says more.
    """

    __slots__ = ("behind", "connection", "label", "receiver", "rest")

    def __init__(self, connection: Connection, label: str) -> None:
        self.connection = connection
        self.label = label
        self.receiver = Receiver()
        self.rest: List[memoryview] = []
        self.behind = False


def parse_listen(text: str) -> Tuple[str, int]:
    """Return address and port of ``ADDRESS:PORT``.

    Raises:
        ValueError: The text has another form.
    """
    address, colon, port = text.rpartition(":")
    if not colon or not address or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"expected ADDRESS:PORT, got {text!r}")
    return address, int(port)


def listen(address: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        OSError: The address is not this machine's, or the port is taken.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    return listener
