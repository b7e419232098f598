"""One server of objects, as a device sees it: a connection that is kept open, and one attempt at an object."""

from __future__ import annotations

import hashlib
import http.client
from io import FileIO
from pathlib import Path
from typing import Callable, NamedTuple
from urllib.parse import urlsplit

from payloads.artifacts.store import ArtifactError, hash_file
from payloads.artifacts.wanted import Wanted

__all__ = ["Connection", "Source", "SourceError", "TryAgainError"]

_BLOCK_BYTES = 1 << 18
_CONNECT_S = 5.0


class SourceError(ArtifactError):
    """A server cannot give an object; another one may.

    Attributes:
        for_all: Whether it can give no object at all.
    """

    def __init__(self, message: str, *, for_all: bool = False) -> None:
        super().__init__(message)
        self.for_all = for_all


class TryAgainError(Exception):
    """An attempt failed in a way that another one may not."""


class Source(NamedTuple):
    """A server of objects.

    Attributes:
        url: Its address, as ``http://HOST:PORT``, perhaps with a path; objects are below ``/objects/`` there.
        token: What lets us in; a server outside of the lab is shown none.
    """

    url: str
    token: str | None

    def place(self) -> tuple[str, int, str]:
        """Return host, port and the path before ``/objects/``.

        Raises:
            ArtifactError: The address is none.
        """
        parts = urlsplit(self.url)
        try:
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ArtifactError(f"{self.url}: {error}") from error
        if parts.scheme != "http" or not host or parts.query or parts.fragment or parts.username is not None:
            raise ArtifactError(f"{self.url}: expected http://HOST:PORT")
        return host, 80 if port is None else port, parts.path.rstrip("/")


class Connection:
    """A connection to one server, opened when it is needed.

    Args:
        source: The server.
        timeout_s: The longest silence of the server.
        received: Is told of bytes as they come; what it raises ends the attempt.
    """

    def __init__(self, source: Source, timeout_s: float, received: Callable[[int], None]) -> None:
        host, port, self._path = source.place()
        self._url = source.url
        self._headers = {} if source.token is None else {"Authorization": f"Bearer {source.token}"}
        self._timeout_s = timeout_s
        self._received = received
        self._connection = http.client.HTTPConnection(host, port, timeout=min(_CONNECT_S, timeout_s))
        # Small enough to stay in the processor's cache from the socket to the file and the hash.
        self._buffer = memoryview(bytearray(_BLOCK_BYTES))

    def close(self) -> None:
        """Close the connection; the next attempt opens another one."""
        self._connection.close()

    def attempt(self, wanted: Wanted, part: Path) -> str:
        """Get what is missing of an object and return the sha256 of all of it.

        Raises:
            SourceError: The server has not what is wanted.
            ArtifactError: The disk does not take it.
            TryAgainError: Or OSError, or HTTPException: the connection broke, or the server is not well.
        """
        have = part.stat().st_size if part.exists() else 0
        if have > wanted.size_bytes:
            part.unlink()
            have = 0
        digest = hash_file(part) if have else hashlib.sha256()
        if have == wanted.size_bytes:
            part.touch()
            return digest.hexdigest()
        response = self._ask(wanted.digest, have)
        if have and response.status == 200:  # a server that knows no ranges
            have, digest = 0, hashlib.sha256()
        self._check(response, wanted, have)
        with open(part, "ab" if have else "wb", buffering=0) as file:
            left = wanted.size_bytes - have
            while left:
                # While a block is hashed and written, the kernel goes on receiving the next ones.
                count = response.readinto(self._buffer[: min(left, _BLOCK_BYTES)])
                if not count:
                    raise TryAgainError(f"the connection ended {left} bytes early")
                block = self._buffer[:count]
                _write(file, block)
                digest.update(block)
                left -= count
                self._received(count)
        response.read()  # nothing is left, but only now may the connection be used again
        return digest.hexdigest()

    def _is_open(self) -> bool:
        return self._connection.sock is not None

    def _ask(self, digest: str, have: int) -> http.client.HTTPResponse:
        headers = dict(self._headers, Range=f"bytes={have}-") if have else self._headers
        if not self._is_open():
            self._connection.connect()
            self._connection.sock.settimeout(self._timeout_s)
        self._connection.request("GET", f"{self._path}/objects/{digest}", headers=headers)
        return self._connection.getresponse()

    def _check(self, response: http.client.HTTPResponse, wanted: Wanted, have: int) -> None:
        """See that the answer is the one that was asked for."""
        status = response.status
        if status in (401, 403):
            words = "the server refused this host's key; deploy the keys again"
            raise SourceError(f"{self._url}: {words}", for_all=True)
        if status == 404:
            # A mirror may lack most of what is wanted: the connection is kept for the rest, if little is in the way.
            if response.length is None or response.length > _BLOCK_BYTES:
                self.close()
            else:
                response.read()
            raise SourceError(f"{self._url}: the server has no object {wanted.digest}")
        if status not in (200, 206):
            raise TryAgainError(f"the server answered {status} {response.reason}")
        expected = wanted.size_bytes - have
        if response.length != expected:
            size = (response.length or 0) + have
            self.close()
            raise SourceError(
                f"{self._url}: {wanted.digest[:16]}...: the server has {size} bytes, "
                f"the list says {wanted.size_bytes}"
            )
        begin = f"bytes {have}-"
        if status == 206 and not (response.getheader("Content-Range") or "").startswith(begin):
            raise TryAgainError("the server sent another range than was asked for")


def _write(file: FileIO, block: memoryview) -> None:
    """Write all of a block; a plain write may take less.

    Raises:
        ArtifactError: The disk does not take it, which is no fault of a server.
    """
    try:
        while block:
            block = block[file.write(block) :]
    except OSError as error:
        raise ArtifactError(f"{file.name}: {error.strerror}") from error
