"""A probe's connection and handshake: the data plane's under another key, so that neither passes for the other."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import socket

from payloads.linkd.errors import LinkdError
from payloads.linkd.links import Link
from payloads.wire.auth import (
    CHALLENGE_BYTES,
    HELLO_BYTES,
    PROOF_BYTES,
    WELCOME,
    AuthError,
    Secrets,
    check_proof,
    new_nonce,
    pack_challenge,
    pack_hello,
    pack_proof,
    unpack_challenge,
    unpack_hello,
)

__all__ = ["connect", "greet", "probe_key", "receive", "unhurried", "welcome"]

_CONNECT_TIMEOUT_S = 5.0


def probe_key(key: bytes) -> bytes:
    """Return the key of probes, which follows from the deploy's key."""
    return hmac.new(key, b"testbed link probe", hashlib.sha256).digest()


def receive(connection: socket.socket, count: int) -> bytes:
    """Return exactly ``count`` bytes.

    Raises:
        ConnectionError: The other end closed the connection.
    """
    data = bytearray()
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise ConnectionError("the connection was closed")
        data += part
    return bytes(data)


def connect(link: Link, key: bytes) -> socket.socket:
    """Return a connection to a device's responder that the handshake is done on.

    Raises:
        LinkdError: The responder does not answer, or does not hold the key.
    """
    where = f"{link.device} ({link.address}:{link.probe_port})"
    try:
        connection = socket.create_connection((link.address, link.probe_port), _CONNECT_TIMEOUT_S)
    except OSError as error:
        raise LinkdError(f"no probe responder at {where}: {error.strerror or error}") from error
    try:
        unhurried(connection)
        greet(connection, key)
    except (AuthError, OSError) as error:
        connection.close()
        raise LinkdError(f"the probe responder at {where} did not let us in: {error}") from error
    return connection


def unhurried(connection: socket.socket) -> None:
    """Have TCP itself delay nothing: no Nagle, and a congestion control that does not pace.

    BBR, the default of some systems, sends at the rate that it believes in, and so neither fills a link nor
    shows what a shaper does to a message. Every kernel has reno; where it may not be chosen, all stays.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


def greet(connection: socket.socket, key: bytes) -> None:
    """Prove to a responder that we hold the key, and have it prove the same.

    Raises:
        payloads.wire.auth.AuthError: It does not hold the key.
        OSError: The connection failed; it also closes where we do not hold its key.
    """
    nonce = new_nonce()
    connection.sendall(pack_hello(nonce))
    secrets = unpack_challenge(probe_key(key), nonce, receive(connection, CHALLENGE_BYTES))
    connection.sendall(pack_proof(secrets))
    if receive(connection, len(WELCOME)) != WELCOME:
        raise ConnectionError("the probe responder did not welcome us")


def welcome(connection: socket.socket, key: bytes) -> None:
    """Prove to a client that we hold the key, and have it prove the same.

    Raises:
        payloads.wire.auth.AuthError: It does not hold the key, or speaks another protocol.
        OSError: The connection failed.
    """
    client_nonce, server_nonce = unpack_hello(receive(connection, HELLO_BYTES)), new_nonce()
    connection.sendall(pack_challenge(probe_key(key), client_nonce, server_nonce))
    check_proof(Secrets(probe_key(key), client_nonce, server_nonce), receive(connection, PROOF_BYTES))
    connection.sendall(WELCOME)
