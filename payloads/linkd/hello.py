"""The handshake of a probe: the data plane's under another key, so that neither passes for the other."""

from __future__ import annotations

import hashlib
import hmac
import socket

from payloads.wire.auth import (
    CHALLENGE_BYTES,
    HELLO_BYTES,
    PROOF_BYTES,
    WELCOME,
    Secrets,
    check_proof,
    new_nonce,
    pack_challenge,
    pack_hello,
    pack_proof,
    unpack_challenge,
    unpack_hello,
)

__all__ = ["greet", "probe_key", "receive", "welcome"]


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
