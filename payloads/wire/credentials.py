"""What a host proves itself with, and the handshakes that do it: TLS, or a shared key in the plain mode.

A handshake never blocks: :meth:`Handshake.go_on` goes as far as what has come allows. The server calls it when epoll
says so; a client lets :func:`complete` wait in between. Until it is done, nothing is read but what it needs.
"""

from __future__ import annotations

import argparse
import select
import socket
import ssl
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Optional, Union

from payloads.wire import auth
from payloads.wire.auth import AuthError
from payloads.wire.connection import Connection, Plain, Tls
from payloads.wire.tls import BASE_STATION, DEVICE, TlsFolder, check_identity, refusal

__all__ = [
    "Credentials",
    "Handshake",
    "PlainKey",
    "TlsCertificate",
    "add_credentials",
    "complete",
    "credentials_of",
]


class Handshake(ABC):
    """A connection whose other end has not proved anything yet.

    Attributes:
        connection: The connection, good for frames once :meth:`go_on` has said so.
    """

    connection: Connection

    @abstractmethod
    def go_on(self) -> bool:
        """Go on as far as what has come allows; return whether both ends have proved themselves.

        Raises:
            AuthError: The other end did not, or this one could not.
            OSError: The connection failed.
        """


class PlainKey:
    """The plain mode: this deploy's key, held by every host.

    Attributes:
        key_file: The file that holds it; read for each handshake, since a new deploy brings a new one.
    """

    def __init__(self, key_file: Path) -> None:
        self.key_file = key_file

    def check(self) -> None:
        """Make sure that there is a key.

        Raises:
            AuthError: There is none, or others may read it.
        """
        auth.read_key(self.key_file)

    def client(self, connection: socket.socket, device: str) -> Handshake:
        """Return the asking end's handshake with a device."""
        return _PlainClient(connection, auth.read_key(self.key_file))

    def server(self, connection: socket.socket) -> Handshake:
        """Return the answering end's handshake."""
        return _PlainServer(connection, self.key_file)


class TlsCertificate:
    """TLS 1.3: this host's certificate of the lab's authority.

    Attributes:
        files: The files of the certificate.
    """

    def __init__(self, folder: Path) -> None:
        self.files = TlsFolder(folder)

    def check(self) -> None:
        """Make sure that there is a certificate.

        Raises:
            AuthError: There is none, or others may read its key.
        """
        self.files.context(server_side=True)

    def client(self, connection: socket.socket, device: str) -> Handshake:
        """Return the asking end's handshake with a device, whose certificate must name it."""
        return _TlsClient(connection, self.files.context(server_side=False), device)

    def server(self, connection: socket.socket) -> Handshake:
        """Return the answering end's handshake."""
        return _TlsServer(connection, self.files)


Credentials = Union[PlainKey, TlsCertificate]


def add_credentials(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what a program of the data plane proves itself with."""
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--tls", type=_path, metavar="FOLDER", help="TLS with the certificate in this folder")
    group.add_argument("--key-file", type=_path, metavar="FILE", help="plain connections, proved by this key")


def credentials_of(options: argparse.Namespace) -> Credentials:
    """Return what the options of :func:`add_credentials` name, once it has been found there.

    Raises:
        AuthError: It is not there, damaged, or can be read by others.
    """
    credentials = PlainKey(options.key_file) if options.tls is None else TlsCertificate(options.tls)
    credentials.check()
    return credentials


def complete(handshake: Handshake, deadline: float) -> None:
    """Wait until a handshake is done.

    Args:
        handshake: The handshake.
        deadline: When it must be done, on the monotonic clock.

    Raises:
        AuthError: One end did not prove itself.
        OSError: The connection failed, or it took too long.
    """
    poll = select.poll()
    poll.register(handshake.connection.fileno(), select.POLLIN)
    while not handshake.go_on():
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1000):
            raise socket.timeout("no answer in time")


class _Exact:
    """Receives a message of a known size, and nothing behind it."""

    def __init__(self, connection: Connection, size: int) -> None:
        self._connection = connection
        self._data = memoryview(bytearray(size))
        self._filled = 0

    def take(self) -> Optional[bytes]:
        """Receive what is there; return the message once it is whole.

        Raises:
            AuthError: The other end left.
            OSError: The connection failed.
        """
        while self._filled < len(self._data):
            try:
                count = self._connection.recv_into(self._data[self._filled :])
            except BlockingIOError:
                return None
            if not count:
                raise AuthError("it closed the connection during the handshake; its log says why")
            self._filled += count
        return bytes(self._data)


def _say(connection: Connection, message: bytes) -> None:
    """Send a message of the handshake; it is small, and the first of its connection."""
    if connection.send([message]):
        raise AuthError("it does not read the handshake")


class _PlainClient(Handshake):
    def __init__(self, connection: socket.socket, key: bytes) -> None:
        self.connection = Plain(connection)
        self._key = key
        self._nonce: Optional[bytes] = None
        self._secrets: Optional[auth.Secrets] = None
        self._message = _Exact(self.connection, auth.CHALLENGE_BYTES)

    def go_on(self) -> bool:
        if self._nonce is None:
            self._nonce = auth.new_nonce()
            _say(self.connection, auth.pack_hello(self._nonce))
        data = self._message.take()
        if data is not None and self._secrets is None:
            self._secrets = auth.unpack_challenge(self._key, self._nonce, data)
            _say(self.connection, auth.pack_proof(self._secrets))
            self._message = _Exact(self.connection, len(auth.WELCOME))
            data = self._message.take()
        if data is None:
            return False
        if data != auth.WELCOME:
            raise AuthError("it did not welcome us")
        return True


class _PlainServer(Handshake):
    def __init__(self, connection: socket.socket, key_file: Path) -> None:
        self.connection = Plain(connection)
        self._key_file = key_file
        self._secrets: Optional[auth.Secrets] = None
        self._message = _Exact(self.connection, auth.HELLO_BYTES)

    def go_on(self) -> bool:
        data = self._message.take()
        if data is not None and self._secrets is None:
            self._secrets = self._challenge(data)
            self._message = _Exact(self.connection, auth.PROOF_BYTES)
            data = self._message.take()
        if data is None or self._secrets is None:
            return False
        auth.check_proof(self._secrets, data)
        _say(self.connection, auth.WELCOME)
        return True

    def _challenge(self, hello: bytes) -> auth.Secrets:
        key = auth.read_key(self._key_file)
        try:
            client_nonce = auth.unpack_hello(hello)
        except AuthError:
            # An honest client of another version is told which one is spoken here.
            if hello.startswith(auth.MAGIC):
                _say(self.connection, auth.pack_version_notice())
            raise
        secrets = auth.Secrets(key, client_nonce, auth.new_nonce())
        _say(self.connection, auth.pack_challenge(*secrets))
        return secrets


class _TlsClient(Handshake):
    def __init__(self, connection: socket.socket, context: ssl.SSLContext, device: str) -> None:
        self._tls = self.connection = Tls(connection, context)
        self._device = device
        self._greeting: Optional[_Exact] = None

    def go_on(self) -> bool:
        try:
            if self._greeting is None:
                if not self._tls.handshake():
                    return False
                check_identity(self._tls.certificate(), DEVICE, self._device)
                self._greeting = _Exact(self._tls, auth.GREETING_BYTES)
            # Only with this is it known that the device has accepted our certificate.
            data = self._greeting.take()
        except ssl.SSLError as error:
            raise AuthError(refusal(error)) from error
        if data is None:
            return False
        auth.check_greeting(data)
        return True


class _TlsServer(Handshake):
    def __init__(self, connection: socket.socket, files: TlsFolder) -> None:
        # The files are read only now that somebody asks; a deploy may have changed them.
        self._tls = self.connection = Tls(connection, files.context(server_side=True), server_side=True)

    def go_on(self) -> bool:
        try:
            if not self._tls.handshake():
                return False
        except ssl.SSLError as error:
            raise AuthError(refusal(error)) from error
        check_identity(self._tls.certificate(), BASE_STATION)
        _say(self._tls, auth.pack_greeting())
        return True


def _path(text: str) -> Path:
    return Path(text).expanduser()
