"""Making objects: each is read, hashed and written in one go by one of several workers, and then gets its name.

An object is on the disk before the journal says so, and it has its digest's name only when it is whole. So whatever
ends a split, at whatever moment: what is done stays done, and what is half done is a ``.part`` that is removed.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path

from testbed.artifacts.recipes import CHUNK_BYTES, Recipe, Sources
from testbed.artifacts.shard_journal import Made, ShardJournal
from testbed.errors import InputError

__all__ = ["Maker", "check_room", "still_there", "workers_here"]

MOST_WORKERS = 4
#: Left on the disk for everything else.
SPARE_BYTES = 64 << 20
#: So often the kernel is told to write out what it has: else all of it waits for the end of the object.
WRITE_OUT_BYTES = 32 << 20


def workers_here() -> int:
    """Return how many workers are of use: a digest keeps one core busy, and a disk another worker."""
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)) + 1)


def still_there(folder: Path, made: Mapping[str, Made]) -> dict[str, Made]:
    """Return those of the objects that are in the folder and whole; only one that was touched is read."""
    result = {}
    for name, entry in made.items():
        path = folder / entry.object
        try:
            found = path.stat()
        except OSError:
            continue
        if found.st_size != entry.bytes:
            continue
        if found.st_mtime_ns == entry.mtime_ns:
            result[name] = entry
        elif _digest_of(path) == entry.object:
            result[name] = Made(entry.object, entry.bytes, found.st_mtime_ns)
    return result


def check_room(folder: Path, needed_bytes: int) -> None:
    """Refuse to begin what the disk cannot take.

    Raises:
        InputError: It cannot.
    """
    disk = os.statvfs(folder)
    free_bytes = disk.f_bavail * disk.f_frsize
    if needed_bytes and needed_bytes + SPARE_BYTES > free_bytes:
        raise InputError(
            f"the objects need {needed_bytes / 1e9:.2f} GB, but only {free_bytes / 1e9:.2f} GB are free on the "
            f"disk of {folder}",
            hint="Name another folder with --out, or make room.",
        )


class Maker:
    """Makes objects in a folder.

    Args:
        folder: Where objects go.
        sources: The files of the checkpoint.
        journal: Where it is written what is done.
        kept: What is in the folder already.
        on_bytes: Called with the bytes of each chunk that was written; from any thread, one call at a time.
    """

    def __init__(
        self,
        folder: Path,
        sources: Sources,
        journal: ShardJournal,
        kept: Mapping[str, Made],
        on_bytes: Callable[[int], None],
    ) -> None:
        self._folder = folder
        self._sources = sources
        self._journal = journal
        self._on_bytes = on_bytes
        self._lock = threading.Lock()
        self._settling = threading.Lock()  # its own: it may be held for as long as the disk takes
        self._stopped = threading.Event()
        self._settled = {made.object: made for made in kept.values()}

    def make(self, recipes: Mapping[str, Recipe], workers: int) -> dict[str, Made]:
        """Make objects; return what was made, by the recipes' names.

        The largest come first, so that no worker is left with one when the others are done.

        Raises:
            InputError: A file of the checkpoint cannot be used.
            OSError: A file cannot be read or written.
        """
        waiting = iter(sorted(recipes.values(), key=lambda recipe: -recipe.size))
        made: dict[str, Made] = {}
        with ThreadPoolExecutor(workers, thread_name_prefix="shard") as pool:
            running = [pool.submit(self._work, number, waiting, made) for number in range(workers)]
            try:
                wait(running, return_when=FIRST_EXCEPTION)
            finally:
                # An error or Ctrl-C: each worker stops at its next chunk and takes its part away.
                self._stopped.set()
        return _first_error(running, made)

    def _work(self, number: int, waiting: Iterator[Recipe], made: dict[str, Made]) -> None:
        buffer = memoryview(bytearray(CHUNK_BYTES))
        part = self._folder / f"{number}.part"
        while True:
            with self._lock:
                recipe = None if self._stopped.is_set() else next(waiting, None)
            if recipe is None:
                return
            try:
                digest = self._write(recipe, part, buffer)
                if digest is None:
                    return
                with self._settling:
                    made[recipe.name] = self._settle(recipe, part, digest)
            finally:
                part.unlink(missing_ok=True)

    def _write(self, recipe: Recipe, part: Path, buffer: memoryview) -> str | None:
        """Write an object and bring it to the disk; return its sha256, or nothing where all is to end."""
        digest = hashlib.sha256()
        size = fresh = 0
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            for chunk in recipe.chunks(self._sources, buffer):
                if self._stopped.is_set():
                    return None
                digest.update(chunk)
                _write_all(descriptor, memoryview(chunk), part)
                size += len(chunk)
                if size - fresh >= WRITE_OUT_BYTES:
                    os.posix_fadvise(descriptor, fresh, size - fresh, os.POSIX_FADV_DONTNEED)
                    fresh = size
                with self._lock:
                    self._on_bytes(len(chunk))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if size != recipe.size:
            raise InputError(
                f"{recipe.name}: {size} bytes came instead of {recipe.size}: the model has changed"
            )
        return digest.hexdigest()

    def _settle(self, recipe: Recipe, part: Path, digest: str) -> Made:
        """Give an object its name and write it down; of two with the same bytes one stays."""
        made = self._settled.get(digest)
        if made is None:
            path = self._folder / digest
            part.replace(path)
            made = self._settled[digest] = Made(digest, recipe.size, path.stat().st_mtime_ns)
        self._journal.add(recipe.name, made)
        return made


def _first_error(running: list[Future[None]], made: dict[str, Made]) -> dict[str, Made]:
    for future in running:
        future.result()
    return made


def _write_all(descriptor: int, data: memoryview, path: Path) -> None:
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
