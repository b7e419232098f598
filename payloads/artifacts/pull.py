"""A device's side: pulls the objects it must hold and has not."""

from __future__ import annotations

import hashlib
import http.client
import time
from pathlib import Path
from typing import Callable, NamedTuple, Sequence
from urllib.parse import urlsplit

from payloads.artifacts.store import ArtifactError, Store, hash_file
from payloads.artifacts.wanted import Wanted

__all__ = ["Pulled", "Puller", "pull_all"]

_BLOCK_BYTES = 1 << 20
_SPARE_BYTES = 16 << 20
_BACK_OFF_S = 0.2
_MAX_BACK_OFF_S = 5.0


class Pulled(NamedTuple):
    """What a pull did.

    Attributes:
        pulled: Objects that came.
        bytes: Bytes that came, those of broken attempts too.
        present: Objects that were here already, and whole.
        damaged: Objects that were here, were damaged and came anew.
    """

    pulled: int
    bytes: int
    present: int
    damaged: int


class _TryAgainError(Exception):
    """An attempt failed in a way that another one may not."""


def pull_all(store: Store, wanted: Sequence[Wanted], puller: Puller) -> Pulled:
    """Pull what is missing or damaged.

    Raises:
        ArtifactError: The disk is too small, or an object cannot be had.
    """
    with store.changing():
        missing = [each for each in wanted if not store.is_present(*each)]
        damaged = sum(store.discard(each.digest) for each in missing)
        _check_room(store, missing)
        try:
            for each in missing:
                puller.pull(each)
        finally:
            puller.close()
    return Pulled(len(missing), puller.received_bytes, len(wanted) - len(missing), damaged)


def _check_room(store: Store, missing: Sequence[Wanted]) -> None:
    begun = sum(_size(store.part(each.digest)) for each in missing)
    needed, free = sum(each.size_bytes for each in missing) - begun, store.free_bytes()
    if needed > 0 and needed + _SPARE_BYTES > free:
        raise ArtifactError(
            f"{len(missing)} objects need {needed / 1e6:.0f} MB, but only {free / 1e6:.0f} MB are free "
            f"on the disk of {store.folder}"
        )


class Puller:
    """Pulls objects over one connection that is kept open.

    Args:
        url: The server, as ``http://HOST:PORT``.
        token: What lets us in.
        store: Where objects go.
        timeout_s: The longest silence of the server.
        attempts: How often to try an object without getting one more byte of it.
        sleep: How to wait between attempts.
    """

    def __init__(
        self,
        url: str,
        token: str,
        store: Store,
        *,
        timeout_s: float = 20.0,
        attempts: int = 6,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urlsplit(url)
        try:
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ArtifactError(f"{url}: {error}") from error
        if parts.scheme != "http" or not host or parts.path not in ("", "/"):
            raise ArtifactError(f"{url}: expected http://HOST:PORT")
        self.received_bytes = 0
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"}
        self._store = store
        self._attempts = attempts
        self._sleep = sleep
        self._connection = http.client.HTTPConnection(host, port or 80, timeout=timeout_s)
        self._buffer = memoryview(bytearray(_BLOCK_BYTES))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def pull(self, wanted: Wanted) -> None:
        """Pull one object, going on where an earlier attempt stopped."""
        part = self._store.part(wanted.digest)
        failures, damaged, best = 0, 0, _size(part)
        while True:
            try:
                found = self._attempt(wanted)
            except (_TryAgainError, http.client.HTTPException, OSError) as error:
                if isinstance(error, OSError) and error.filename is not None:
                    raise ArtifactError(f"{error.filename}: {error.strerror}") from error
                self._connection.close()
                failures = failures + 1 if _size(part) <= best else 1
                best = max(best, _size(part))
                if failures >= self._attempts:
                    words = str(error) or type(error).__name__
                    raise ArtifactError(
                        f"{self._url}: {wanted.digest[:16]}...: {words} ({failures} times)"
                    ) from error
                self._sleep(min(_BACK_OFF_S * 2 ** (failures - 1), _MAX_BACK_OFF_S))
                continue
            if found == wanted.digest:
                self._store.settle(part, wanted.digest)
                return
            part.unlink()
            damaged += 1
            if damaged == 2:
                raise ArtifactError(
                    f"{self._url}: {wanted.digest[:16]}... came damaged twice (sha256 {found[:16]}...); "
                    "the base station's copy is bad"
                )

    def _attempt(self, wanted: Wanted) -> str:
        """Get what is missing of an object and return the sha256 of all of it."""
        part = self._store.part(wanted.digest)
        have = _size(part)
        if have > wanted.size_bytes:
            part.unlink()
            have = 0
        digest = hash_file(part) if have else hashlib.sha256()
        if have == wanted.size_bytes:
            part.touch()
            return digest.hexdigest()
        headers = dict(self._headers, Range=f"bytes={have}-") if have else self._headers
        self._connection.request("GET", f"/objects/{wanted.digest}", headers=headers)
        response = self._connection.getresponse()
        if have and response.status == 200:  # a server that knows no ranges
            have, digest = 0, hashlib.sha256()
        self._check(response, wanted, have)
        with open(part, "ab" if have else "wb", buffering=0) as file:
            left = wanted.size_bytes - have
            while left:
                count = response.readinto(self._buffer[: min(left, _BLOCK_BYTES)])
                if not count:
                    raise _TryAgainError(f"the connection ended {left} bytes early")
                block = self._buffer[:count]
                _write(file, block)
                digest.update(block)
                self.received_bytes += count
                left -= count
        response.read()  # nothing is left, but only now may the connection be used again
        return digest.hexdigest()

    def _check(self, response: http.client.HTTPResponse, wanted: Wanted, have: int) -> None:
        """See that the answer is the one that was asked for."""
        status = response.status
        if status in (401, 403):
            raise ArtifactError(f"{self._url}: the server refused this host's key; deploy the keys again")
        if status == 404:
            raise ArtifactError(f"{self._url}: the server has no object {wanted.digest}")
        if status not in (200, 206):
            raise _TryAgainError(f"the server answered {status} {response.reason}")
        expected = wanted.size_bytes - have
        if response.length != expected:
            size = (response.length or 0) + have
            raise ArtifactError(
                f"{self._url}: {wanted.digest[:16]}...: the server has {size} bytes, "
                f"the list says {wanted.size_bytes}"
            )
        begin = f"bytes {have}-"
        if status == 206 and not (response.getheader("Content-Range") or "").startswith(begin):
            raise _TryAgainError("the server sent another range than was asked for")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _write(file: object, block: memoryview) -> None:
    """Write all of a block; a plain write may take less."""
    while block:
        block = block[file.write(block) :]  # type: ignore[attr-defined]
