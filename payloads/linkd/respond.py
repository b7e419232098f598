"""The devices' end of a probe: swallows a message and answers with one byte, or sends a message on request.

    request (8 bytes)   kind, three bytes of nothing, length of the message
    DOWN                the request is the head of the message: ``length`` bytes in all; one byte comes back
    UP                  ``length`` bytes come back

Nobody without the deploy's key gets further than the handshake, and a message has a bound, so that the
responder is no traffic generator for others.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import threading
from pathlib import Path
from typing import Tuple

from payloads.linkd.errors import LinkdError
from payloads.linkd.hello import receive, welcome
from payloads.services.ready import announce_ready
from payloads.wire.auth import AuthError, read_key

__all__ = ["DOWN", "MAX_MESSAGE_BYTES", "REQUEST", "UP", "converse", "parse_address", "respond"]

REQUEST = struct.Struct("!BxxxI")
DOWN, UP = 1, 2
MAX_MESSAGE_BYTES = 4 << 20
_MAX_CONNECTIONS = 8
_HELLO_TIMEOUT_S = 5.0
#: Longer than the longest message at the slowest rate that anybody waits for.
_IDLE_TIMEOUT_S = 120.0
_ZEROS = memoryview(bytes(1 << 16))


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
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            welcome(connection, read_key(key_file))
            connection.settimeout(_IDLE_TIMEOUT_S)
            with contextlib.suppress(ConnectionError, socket.timeout):
                while True:
                    converse(connection)
    except (AuthError, OSError, LinkdError) as error:
        print(f"probe from {peer[0]} refused: {error}", flush=True)
    finally:
        places.release()


def converse(connection: socket.socket) -> None:
    """Answer one request.

    Raises:
        LinkdError: It is no request, or the message is too long.
        OSError: The connection failed or was closed.
    """
    kind, length = REQUEST.unpack(receive(connection, REQUEST.size))
    if length > MAX_MESSAGE_BYTES:
        raise LinkdError(f"a message of {length} bytes was asked for; {MAX_MESSAGE_BYTES} are allowed")
    if kind == DOWN:
        swallow(connection, length - REQUEST.size)
        connection.sendall(b"\1")
    elif kind == UP:
        for start in range(0, length, len(_ZEROS)):
            connection.sendall(_ZEROS[: min(len(_ZEROS), length - start)])
    else:
        raise LinkdError(f"{kind} is no kind of request")


def swallow(connection: socket.socket, count: int) -> None:
    """Receive and forget ``count`` bytes."""
    buffer = bytearray(1 << 16)
    while count > 0:
        got = connection.recv_into(buffer, min(count, len(buffer)))
        if not got:
            raise ConnectionError("the connection was closed")
        count -= got
