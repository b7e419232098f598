"""The answering end of the data plane: an epoll server for authenticated connections.

Until a peer has proved that it holds the key, exactly the handshake's fixed-size messages are read from
it, and only for a short time: a silent or unknown client costs one descriptor for two seconds. Whatever
goes wrong with one connection closes that connection with one line in the log; the server goes on.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from payloads.wire import auth
from payloads.wire.frames import Buffer, FrameError, Header, Kind, pack_pong, unpack_pace, unpack_ping
from payloads.wire.pacing import retransmitted_bytes, send_paced, set_pace
from payloads.wire.sockets import Receiver, send_some, tune

__all__ = ["Handler", "Server", "listen", "parse_listen"]

HANDSHAKE_TIMEOUT_S = 2.0
MAX_STRANGERS = 32
MAX_PEERS = 16

#: Called with a whole frame: header, payload, and when it had arrived (monotonic ns). Returns the answer
#: in pieces. The payload is good until the call returns. A FrameError closes the connection.
Handler = Callable[[Header, memoryview, int], Sequence[Buffer]]


class Server:
    """Accepts connections, authenticates them, and hands every frame to one handler.

    Pings are answered and paces obeyed here; every other frame goes to the handler, one at a time.
    """

    def __init__(self, listener: socket.socket, key_file: Path, handler: Handler, name: str) -> None:
        self._listener = listener
        self._key_file = key_file
        self._handler = handler
        self._name = name
        self._epoll = select.epoll()
        self._strangers: Dict[int, _Stranger] = {}
        self._peers: Dict[int, _Peer] = {}
        listener.setblocking(False)
        self._epoll.register(listener.fileno(), select.EPOLLIN)

    @property
    def address(self) -> Tuple[str, int]:
        """Where it listens."""
        address, port = self._listener.getsockname()
        return address, port

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
        if len(self._strangers) >= MAX_STRANGERS or len(self._peers) >= MAX_PEERS:
            self._log(label, "refused: too many connections")
            connection.close()
            return
        try:
            tune(connection)
            connection.setblocking(False)
        except OSError as error:
            self._log(label, f"closed: {error}")
            connection.close()
            return
        self._strangers[connection.fileno()] = _Stranger(connection, label)
        self._epoll.register(connection.fileno(), select.EPOLLIN)

    def _hear_stranger(self, descriptor: int, stranger: _Stranger) -> None:
        try:
            if not stranger.hear(self._key_file):
                return
        except (OSError, auth.AuthError) as error:
            self._log(stranger.label, f"refused: {error}")
            self._drop(descriptor)
            return
        del self._strangers[descriptor]
        self._peers[descriptor] = _Peer(stranger.connection, stranger.label)
        self._log(stranger.label, "connected")

    def _serve_peer(self, descriptor: int, peer: _Peer) -> None:
        try:
            if peer.rest:
                peer.send(peer.rest)
            # Once more only if something is left in the buffer: for what comes later there is the next event.
            while not peer.rest and self._hear_peer(peer) and peer.receiver.filled:
                pass
            # A peer that does not fetch its answers is not asked for more questions.
            interest = select.EPOLLOUT if peer.rest else select.EPOLLIN
            if interest != peer.interest:
                peer.interest = interest
                self._epoll.modify(descriptor, interest)
        except (OSError, FrameError) as error:
            self._log(peer.label, f"closed: {error}")
            self._drop(descriptor)

    def _hear_peer(self, peer: _Peer) -> bool:
        """Receive and answer one frame; return whether a whole one was there."""
        header = peer.receiver.receive(peer.connection)
        if header is None:
            return False
        received_ns = time.monotonic_ns()
        payload = peer.receiver.payload()
        if header.kind == Kind.PING:
            sent_ns = unpack_ping(payload)
            again = retransmitted_bytes(peer.connection)
            peer.send([pack_pong(sent_ns, received_ns, time.monotonic_ns(), again, header.sequence)])
        elif header.kind == Kind.PACE:
            peer.piece = set_pace(peer.connection, unpack_pace(payload))
        else:
            peer.send(self._handler(header, payload, received_ns))
        peer.receiver.release()
        return True

    def _drop_silent(self) -> None:
        now = time.monotonic()
        for descriptor, stranger in list(self._strangers.items()):
            if stranger.deadline <= now:
                self._log(stranger.label, "refused: no handshake in time")
                self._drop(descriptor)

    def _drop(self, descriptor: int) -> None:
        holder = self._strangers.pop(descriptor, None) or self._peers.pop(descriptor, None)
        if holder is not None:
            self._epoll.unregister(descriptor)
            holder.connection.close()

    def _log(self, label: str, text: str) -> None:
        print(f"{self._name}: {label} {text}", file=sys.stderr, flush=True)


class _Stranger:
    """A connection that has not proved anything yet."""

    def __init__(self, connection: socket.socket, label: str) -> None:
        self.connection = connection
        self.label = label
        self.deadline = time.monotonic() + HANDSHAKE_TIMEOUT_S
        self._data = b""
        self._secrets: Optional[auth.Secrets] = None

    def hear(self, key_file: Path) -> bool:
        """Read what is there; return whether the peer has now proved itself.

        Raises:
            AuthError: It did not.
            OSError: The connection failed.
        """
        wanted = auth.HELLO_BYTES if self._secrets is None else auth.PROOF_BYTES
        try:
            part = self.connection.recv(wanted - len(self._data))
        except BlockingIOError:
            return False
        if not part:
            raise auth.AuthError("it left during the handshake")
        self._data += part
        if len(self._data) < wanted:
            return False
        data, self._data = self._data, b""
        if self._secrets is None:
            # Read for each handshake: a new deploy brings a new key.
            key = auth.read_key(key_file)
            server_nonce = auth.new_nonce()
            try:
                client_nonce = auth.unpack_hello(data)
            except auth.AuthError:
                # An honest client of another version is told which one is spoken here.
                if data.startswith(auth.MAGIC):
                    self.connection.send(auth.pack_version_notice())
                raise
            self._secrets = auth.Secrets(key, client_nonce, server_nonce)
            self.connection.send(auth.pack_challenge(key, client_nonce, server_nonce))
            return False
        auth.check_proof(self._secrets, data)
        self.connection.send(auth.WELCOME)
        return True


class _Peer:
    """An authenticated connection."""

    def __init__(self, connection: socket.socket, label: str) -> None:
        self.connection = connection
        self.label = label
        self.receiver = Receiver()
        self.rest: List[memoryview] = []
        self.interest = select.EPOLLIN
        self.piece = 0  # bytes handed over at once where the connection is paced

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Give buffers to the kernel and keep what it did not take.

        Raises:
            OSError: The connection failed.
        """
        if self.piece:
            self.rest = send_paced(self.connection, buffers, self.piece)
        else:
            self.rest = send_some(self.connection, buffers)


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
