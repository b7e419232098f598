"""The devices' end of a probe: swallows a message and answers with one byte, or sends a message on request.

    request (8 bytes)   kind, a byte of nothing, seconds, length
    DOWN                the request is the head of the message: ``length`` bytes in all; one byte comes back
    UP                  ``length`` bytes come back
    PACE                messages that are asked for leave with a frame rate of ``length`` kbit/s from now on,
                        which the socket itself holds; one byte comes back, a zero where this system cannot
    LOAD_DOWN           whatever follows is forgotten, for at most ``seconds``; then it hangs up
    LOAD_UP             bytes come for at most ``seconds``, ``length`` of them under way at a time; then it hangs up

Nobody without the deploy's key gets further than the handshake, and messages, streams and their time have
bounds, so that the responder is no traffic generator for others.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Optional, Tuple

from payloads.linkd.errors import LinkdError
from payloads.linkd.hello import receive, unhurried, welcome
from payloads.services.ready import announce_ready
from payloads.wire.auth import AuthError, read_key
from payloads.wire.pacing import send_paced, set_pace

__all__ = [
    "DOWN",
    "LOAD_DOWN",
    "LOAD_UP",
    "MAX_LOAD_BYTES",
    "MAX_LOAD_S",
    "MAX_MESSAGE_BYTES",
    "PACE",
    "REQUEST",
    "UP",
    "Conversation",
    "bound_under_way",
    "drain",
    "parse_address",
    "pour",
    "respond",
    "send",
    "swallow",
]

REQUEST = struct.Struct("!BxHI")
DOWN, UP, PACE, LOAD_DOWN, LOAD_UP = 1, 2, 3, 4, 5
MAX_MESSAGE_BYTES = 4 << 20
#: One stream of load: a longer load opens another one.
MAX_LOAD_BYTES = (1 << 32) - 1
MAX_LOAD_S = 120
_MAX_CONNECTIONS = 8
_HELLO_TIMEOUT_S = 5.0
#: Longer than the longest message at the slowest rate that anybody waits for.
_IDLE_TIMEOUT_S = 120.0
#: How long one call of a stream may take before its end is looked at again.
_STREAM_CALL_S = 0.25
_STREAM_LOOK_S = 0.004
_STREAM_READ_BYTES = 1 << 21
_ZEROS = memoryview(bytes(1 << 18))


def parse_address(text: str) -> Tuple[str, int]:
    """Return the host and port of ``HOST:PORT``.

    Raises:
        LinkdError: It is something else.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise LinkdError(f"HOST:PORT was expected, not {text!r}")
    return host, int(port)


def respond(host: str, port: int, key_file: Path) -> None:
    """Serve until SIGTERM or SIGINT; the key is read for each connection, since a deploy makes a new one.

    Raises:
        LinkdError: The address cannot be listened on.
    """
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stopped.set())
    try:
        server = socket.create_server((host, port))
    except OSError as error:
        raise LinkdError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    with server:
        threading.Thread(target=_accept, args=(server, key_file), daemon=True).start()
        announce_ready()
        stopped.wait()


def _accept(server: socket.socket, key_file: Path) -> None:
    places = threading.BoundedSemaphore(_MAX_CONNECTIONS)
    while True:
        try:
            connection, peer = server.accept()
        except OSError:
            return
        if not places.acquire(blocking=False):
            connection.close()
            continue
        threading.Thread(target=_serve, args=(connection, peer, key_file, places), daemon=True).start()


def _serve(
    connection: socket.socket, peer: Tuple[str, int], key_file: Path, places: threading.BoundedSemaphore
) -> None:
    try:
        with connection:
            connection.settimeout(_HELLO_TIMEOUT_S)
            unhurried(connection)
            welcome(connection, read_key(key_file))
            connection.settimeout(_IDLE_TIMEOUT_S)
            with contextlib.suppress(ConnectionError, socket.timeout):
                conversation = Conversation(connection)
                while conversation.answer():
                    pass
    except (AuthError, OSError, LinkdError) as error:
        print(f"probe from {peer[0]} refused: {error}", flush=True)
    finally:
        places.release()


class Conversation:
    """Answers the requests of one connection.

    Args:
        connection: The connection, the handshake done.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._piece = 0

    def answer(self) -> bool:
        """Answer one request; return whether another may follow.

        Raises:
            LinkdError: It is no request, or asks for more than is allowed.
            OSError: The connection failed or was closed.
        """
        connection = self._connection
        kind, seconds, length = REQUEST.unpack(receive(connection, REQUEST.size))
        if kind in (DOWN, UP) and length > MAX_MESSAGE_BYTES:
            raise LinkdError(f"a message of {length} bytes was asked for; {MAX_MESSAGE_BYTES} are allowed")
        if kind in (LOAD_DOWN, LOAD_UP) and not 0 < seconds <= MAX_LOAD_S:
            raise LinkdError(f"a load of {seconds} s was asked for; 1 to {MAX_LOAD_S} s are allowed")
        if kind == DOWN:
            swallow(connection, length - REQUEST.size)
            connection.sendall(b"\1")
        elif kind == UP:
            for start in range(0, length, len(_ZEROS)):
                send(connection, _ZEROS[: min(len(_ZEROS), length - start)], self._piece)
        elif kind == PACE:
            self._pace(length / 1e3)
        elif kind == LOAD_DOWN:
            drain(connection, MAX_LOAD_BYTES, time.monotonic() + seconds)
            return False
        elif kind == LOAD_UP:
            bound_under_way(connection, min(length, MAX_MESSAGE_BYTES))
            pour(connection, MAX_LOAD_BYTES, time.monotonic() + seconds)
            return False
        else:
            raise LinkdError(f"{kind} is no kind of request")
        return True

    def _pace(self, mbit: float) -> None:
        if not mbit:
            raise LinkdError("a pace of 0 was asked for")
        try:
            self._piece = set_pace(self._connection, mbit)
        except OSError:
            self._connection.sendall(b"\0")
        else:
            self._connection.sendall(b"\1")


def send(connection: socket.socket, data: memoryview, piece: int) -> None:
    """Send all of ``data``; with a ``piece`` as a paced socket wants it (:mod:`payloads.wire.pacing`)."""
    if not piece:
        connection.sendall(data)
        return
    rest = [data]
    while rest:
        rest = send_paced(connection, rest, piece)


def swallow(connection: socket.socket, count: int) -> None:
    """Receive and forget ``count`` bytes."""
    buffer = bytearray(1 << 16)
    while count > 0:
        got = connection.recv_into(buffer, min(count, len(buffer)))
        if not got:
            raise ConnectionError("the connection was closed")
        count -= got


def drain(
    connection: socket.socket, count: int, until_s: float, stop: Optional[threading.Event] = None
) -> int:
    """Receive and forget up to ``count`` bytes until ``until_s`` (monotonic); return how many came.

    Nothing is copied. It looks only every few milliseconds, so that TCP acknowledges what came in between at
    once: a load's acknowledgements would otherwise take as much of the processor as its data. The end of the
    connection is an end like another.
    """
    connection.settimeout(_STREAM_CALL_S)
    buffer, left = bytearray(_STREAM_READ_BYTES), count
    while left > 0 and time.monotonic() < until_s and not (stop and stop.is_set()):
        try:
            # TCP forgets with MSG_TRUNC what it would copy without.
            got = connection.recv_into(buffer, min(left, len(buffer)), socket.MSG_TRUNC)
        except socket.timeout:
            continue
        except ConnectionError:
            break
        if not got:
            break
        left -= got
        time.sleep(_STREAM_LOOK_S)
    return count - left


def bound_under_way(connection: socket.socket, count: int) -> None:
    """Have a socket keep at most about ``count`` bytes that were not acknowledged yet."""
    # The kernel doubles what it is given, for what it needs beside the data.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, count // 2)


def pour(
    connection: socket.socket, count: int, until_s: float, stop: Optional[threading.Event] = None
) -> int:
    """Send up to ``count`` bytes until ``until_s`` (monotonic); return how many the kernel took."""
    connection.settimeout(_STREAM_CALL_S)
    left = count
    while left > 0 and time.monotonic() < until_s and not (stop and stop.is_set()):
        try:
            left -= connection.send(_ZEROS[: min(left, len(_ZEROS))])
        except socket.timeout:
            continue
        except ConnectionError:
            break
    return count - left
