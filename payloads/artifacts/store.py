"""The objects of a host: files named by the sha256 of their content."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import hmac
import os
import re
import shutil
from pathlib import Path
from typing import Iterator, NamedTuple

from payloads.services.layout import home_folder

__all__ = ["DIGEST", "ArtifactError", "Held", "Store", "bearer_token", "hash_file"]

DIGEST = re.compile(r"[0-9a-f]{64}")
_BLOCK_BYTES = 1 << 20


class ArtifactError(Exception):
    """What went wrong with an object, in one line for people."""


def bearer_token(key_file: Path) -> str:
    """Return the token that lets its bearer read objects, made from the key of this deploy."""
    try:
        key = bytes.fromhex(key_file.read_text().strip())
    except FileNotFoundError as error:
        raise ArtifactError(f"{key_file}: there is no key on this host; deploy makes one") from error
    except ValueError as error:
        raise ArtifactError(f"{key_file}: expected a key in hexadecimal") from error
    if len(key) < 16:
        raise ArtifactError(f"{key_file}: the key is too short")
    return hmac.new(key, b"artifacts", "sha256").hexdigest()


def hash_file(path: Path, into: "hashlib._Hash | None" = None) -> "hashlib._Hash":  # noqa: UP037
    """Return the sha256 of a file's bytes, added to ``into`` where it is given."""
    digest = into if into is not None else hashlib.sha256()
    buffer = memoryview(bytearray(_BLOCK_BYTES))
    with open(path, "rb", buffering=0) as file:
        while True:
            count = file.readinto(buffer)
            if not count:
                return digest
            digest.update(buffer[:count])


class Held(NamedTuple):
    """An object that is here.

    Attributes:
        digest: Its sha256, in hexadecimal.
        size_bytes: Its size.
        used_unix: When it was last wanted or served here, or came.
    """

    digest: str
    size_bytes: int
    used_unix: float


class Store:
    """The folder of objects.

    An object whose bytes were checked has a marker ``<sha256>.ok`` with its size and time of change, so that
    it is read again only after it was touched. The marker's own time of change says when it was last used.

    Args:
        folder: The folder; this host's where it is left out.
        make: Whether it is made when it is not there; who only looks leaves nothing behind.
    """

    def __init__(self, folder: Path | None = None, *, make: bool = True) -> None:
        self.folder = folder if folder is not None else home_folder() / "objects"
        if make:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Return where an object lies."""
        return self.folder / digest

    def part(self, digest: str) -> Path:
        """Return where the beginning of an object lies while it is pulled."""
        return self.folder / f"{digest}.part"

    def _marker(self, digest: str) -> Path:
        return self.folder / f"{digest}.ok"

    def is_present(self, digest: str, size_bytes: int) -> bool:
        """Tell whether an object is here and whole; its bytes are read where no marker vouches for them."""
        try:
            found = self.path(digest).stat()
        except FileNotFoundError:
            return False
        if found.st_size != size_bytes:
            return False
        with contextlib.suppress(FileNotFoundError):
            if self._marker(digest).read_text() == _vouch(found):
                self.use(digest)
                return True
        if hash_file(self.path(digest)).hexdigest() != digest:
            return False
        self._marker(digest).write_text(_vouch(found))
        return True

    def use(self, digest: str) -> None:
        """Note that an object is used now; nothing where its bytes were never checked."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._marker(digest))

    def held(self) -> list[Held]:
        """Return the objects that are here, whole or not."""
        found = []
        for entry in os.scandir(self.folder) if self.folder.is_dir() else ():
            if DIGEST.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                size, used = entry.stat().st_size, entry.stat().st_mtime
                with contextlib.suppress(FileNotFoundError):
                    used = max(used, self._marker(entry.name).stat().st_mtime)
                found.append(Held(entry.name, size, used))
        return sorted(found)

    def distrust(self, digest: str) -> None:
        """Have an object's bytes read again before it is next taken for whole."""
        with contextlib.suppress(FileNotFoundError):
            self._marker(digest).unlink()

    def parts(self) -> list[Path]:
        """Return the beginnings of objects that are here."""
        return sorted(self.folder.glob("*.part"))

    def is_damaged(self, digest: str) -> bool:
        """Tell whether an object's bytes are not those of its name; all of them are read."""
        try:
            found = self.path(digest).stat()
            if hash_file(self.path(digest)).hexdigest() != digest:
                return True
        except FileNotFoundError:
            return False
        if not self._marker(digest).exists():
            self._marker(digest).write_text(_vouch(found))
            os.utime(self._marker(digest), (found.st_mtime, found.st_mtime))  # a look is no use
        return False

    def discard(self, digest: str) -> bool:
        """Remove an object that is damaged or not needed any more; tell whether there was one."""
        with contextlib.suppress(FileNotFoundError):
            self._marker(digest).unlink()
        try:
            self.path(digest).unlink()
        except FileNotFoundError:
            return False
        return True

    def settle(self, part: Path, digest: str) -> None:
        """Give a file whose bytes were checked its place among the objects."""
        with open(part, "rb") as file:
            # The marker must not outlive bytes that a power cut took: they reach the disk before the name.
            os.fsync(file.fileno())
        part.replace(self.path(digest))
        self._marker(digest).write_text(_vouch(self.path(digest).stat()))

    def adopt(self, path: Path) -> None:
        """Move a file that was sent here, named by its sha256, among the objects.

        Raises:
            ArtifactError: Its name is no digest, or not that of its bytes.
        """
        digest = path.name
        if not DIGEST.fullmatch(digest):
            raise ArtifactError(f"{path}: its name is not a sha256 in hexadecimal")
        try:
            found = hash_file(path).hexdigest()
        except FileNotFoundError as error:
            raise ArtifactError(f"{path}: no such file") from error
        if found != digest:
            raise ArtifactError(f"{path}: damaged: the sha256 of its bytes is {found}")
        if path.parent.resolve() == self.folder.resolve():
            self._marker(digest).write_text(_vouch(path.stat()))
            return
        part = self.part(digest)
        try:
            path.replace(part)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            shutil.copyfile(path, part)
            path.unlink()
        self.settle(part, digest)

    def free_bytes(self) -> int:
        """Return the bytes that this user can still write here."""
        there = next(folder for folder in (self.folder, *self.folder.parents) if folder.is_dir())
        disk = os.statvfs(there)
        return disk.f_bavail * disk.f_frsize

    @contextlib.contextmanager
    def changing(self, *, wait: bool = True) -> Iterator[None]:
        """Keep other processes from changing objects meanwhile.

        Args:
            wait: Whether to wait for them to be done.

        Raises:
            ArtifactError: Another process changes objects, and nobody is to wait.
        """
        if not self.folder.is_dir():
            yield  # there are none
            return
        with open(self.folder / ".lock", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ArtifactError(
                    f"{self.folder}: objects are coming in just now; try again when they are here"
                ) from error
            yield


def _vouch(found: os.stat_result) -> str:
    return f"{found.st_size} {found.st_mtime_ns}\n"
