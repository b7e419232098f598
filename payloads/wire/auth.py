"""Mutual authentication: both ends prove that they hold this deploy's key. Pure functions, no sockets.

    client -> server   HELLO      magic, version, client nonce
    server -> client   CHALLENGE  magic, version, server nonce, HMAC(key, "server" ...)
    client -> server   PROOF      HMAC(key, "client" ...)
    server -> client   WELCOME    a fixed word

Each proof is an HMAC-SHA256 over a word for the role, the protocol version and both nonces: neither can
be replayed, reflected, or used with another version. Messages have fixed sizes; a server reads nothing
else before the proof has been checked. The key itself never travels. What follows on the connection is
neither encrypted nor signed: this is the plain mode, for an isolated rack.

Over TLS, whose handshake has proved both ends, the server sends a GREETING: magic and version.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from pathlib import Path
from typing import NamedTuple

from payloads.wire.frames import PROTOCOL_VERSION

__all__ = [
    "CHALLENGE_BYTES",
    "GREETING_BYTES",
    "HELLO_BYTES",
    "PROOF_BYTES",
    "WELCOME",
    "AuthError",
    "Secrets",
    "check_greeting",
    "check_proof",
    "new_nonce",
    "pack_challenge",
    "pack_greeting",
    "pack_hello",
    "pack_proof",
    "pack_version_notice",
    "read_key",
    "unpack_challenge",
    "unpack_hello",
]

MAGIC = b"TBWIRE\r\n"
WELCOME = b"WELCOME\n"
NONCE_BYTES = 32
PROOF_BYTES = 32
_HELLO = struct.Struct("<8sH32s")
_CHALLENGE = struct.Struct("<8sH32s32s")
_GREETING = struct.Struct("<8sH")
HELLO_BYTES = _HELLO.size
CHALLENGE_BYTES = _CHALLENGE.size
GREETING_BYTES = _GREETING.size


class AuthError(Exception):
    """The other end is not who it should be, or does not speak this protocol."""


class Secrets(NamedTuple):
    """What one handshake is about.

    Attributes:
        key: The deploy's key.
        client_nonce: 32 random bytes of the client.
        server_nonce: 32 random bytes of the server.
    """

    key: bytes
    client_nonce: bytes
    server_nonce: bytes

    def proof(self, role: bytes) -> bytes:
        """Return the proof for ``role``, ``b"client"`` or ``b"server"``."""
        text = b"testbed data plane, %s, version %d\0" % (role, PROTOCOL_VERSION)
        return hmac.new(self.key, text + self.client_nonce + self.server_nonce, hashlib.sha256).digest()


def read_key(path: Path) -> bytes:
    """Read a key file: 32 bytes in hexadecimal, readable by its owner alone.

    Raises:
        AuthError: The file cannot be read, holds something else, or others may read it.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise AuthError(f"the key file {path} can be read by others: chmod 600 it")
        key = bytes.fromhex(path.read_text().strip())
    except OSError as error:
        raise AuthError(f"cannot read the key file {path}: {error.strerror}") from error
    except ValueError as error:
        raise AuthError(f"the key file {path} does not hold hexadecimal digits") from error
    if len(key) != 32:
        raise AuthError(f"the key file {path} holds {len(key)} bytes instead of 32")
    return key


def new_nonce() -> bytes:
    """Return 32 random bytes."""
    return os.urandom(NONCE_BYTES)


def pack_hello(client_nonce: bytes) -> bytes:
    """Return the client's first message."""
    return _HELLO.pack(MAGIC, PROTOCOL_VERSION, client_nonce)


def unpack_hello(data: bytes) -> bytes:
    """Return the client's nonce.

    Raises:
        AuthError: It is another protocol or another version.
    """
    magic, version, nonce = _HELLO.unpack(data)
    _check_protocol(magic, version)
    return bytes(nonce)


def pack_challenge(key: bytes, client_nonce: bytes, server_nonce: bytes) -> bytes:
    """Return the server's answer: its nonce and its proof."""
    proof = Secrets(key, client_nonce, server_nonce).proof(b"server")
    return _CHALLENGE.pack(MAGIC, PROTOCOL_VERSION, server_nonce, proof)


def pack_version_notice() -> bytes:
    """Return a challenge without a proof: all that a client of another version needs to know."""
    return _CHALLENGE.pack(MAGIC, PROTOCOL_VERSION, bytes(NONCE_BYTES), bytes(PROOF_BYTES))


def unpack_challenge(key: bytes, client_nonce: bytes, data: bytes) -> Secrets:
    """Check the server's proof and return the secrets of this handshake.

    Raises:
        AuthError: It is another protocol or version, or the server does not hold the key.
    """
    magic, version, nonce, proof = _CHALLENGE.unpack(data)
    _check_protocol(magic, version)
    secrets = Secrets(key, client_nonce, bytes(nonce))
    if not hmac.compare_digest(proof, secrets.proof(b"server")):
        raise AuthError("it does not hold this deploy's key")
    return secrets


def pack_proof(secrets: Secrets) -> bytes:
    """Return the client's proof."""
    return secrets.proof(b"client")


def check_proof(secrets: Secrets, data: bytes) -> None:
    """Check the client's proof.

    Raises:
        AuthError: The client does not hold the key.
    """
    if not hmac.compare_digest(data, secrets.proof(b"client")):
        raise AuthError("it does not hold this deploy's key")


def pack_greeting() -> bytes:
    """Return what a server says first over TLS."""
    return _GREETING.pack(MAGIC, PROTOCOL_VERSION)


def check_greeting(data: bytes) -> None:
    """Check what a server says first over TLS.

    Raises:
        AuthError: It is another protocol or another version.
    """
    _check_protocol(*_GREETING.unpack(data))


def _check_protocol(magic: bytes, version: int) -> None:
    if magic != MAGIC:
        raise AuthError("it does not speak the data plane's protocol")
    if version != PROTOCOL_VERSION:
        raise AuthError(f"it speaks version {version} of the data plane, not {PROTOCOL_VERSION}")
