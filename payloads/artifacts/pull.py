"""A device's side: pulls the objects it must hold and has not, from the base station or a mirror."""

from __future__ import annotations

import collections
import http.client
import threading
import time
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Sequence

from payloads.artifacts.source import Connection, Source, SourceError, TryAgainError
from payloads.artifacts.store import ArtifactError, Store
from payloads.artifacts.wanted import Wanted

__all__ = ["Pulled", "Puller", "Source", "pull_all"]

_SPARE_BYTES = 16 << 20
_BACK_OFF_S = 0.2
_MAX_BACK_OFF_S = 5.0
_MIRROR_ATTEMPTS = 2


class Pulled(NamedTuple):
    """What a pull did.

    Attributes:
        pulled: Objects that came.
        bytes: Bytes that came, those of broken attempts too.
        present: Objects that were here already, and whole.
        damaged: Objects that were here, were damaged and came anew.
        again: How often an object came damaged and was asked for again.
        sources: The bytes that came from each server, by its address.
    """

    pulled: int
    bytes: int
    present: int
    damaged: int
    again: int
    sources: Dict[str, int]


class _StoppedError(Exception):
    """Another lane has failed: what this one does is of no use any more."""


def pull_all(store: Store, wanted: Sequence[Wanted], puller: Puller) -> Pulled:
    """Pull what is missing or damaged.

    Raises:
        ArtifactError: The disk is too small, or an object cannot be had.
    """
    with store.changing():
        missing = [each for each in wanted if not store.is_present(*each)]
        damaged = sum(store.discard(each.digest) for each in missing)
        _check_room(store, missing)
        puller.pull(missing)
    received = puller.received_bytes
    present = len(wanted) - len(missing)
    return Pulled(len(missing), sum(received.values()), present, damaged, puller.again, received)


def _check_room(store: Store, missing: Sequence[Wanted]) -> None:
    begun = sum(_size(store.part(each.digest)) for each in missing)
    needed, free = sum(each.size_bytes for each in missing) - begun, store.free_bytes()
    if needed > 0 and needed + _SPARE_BYTES > free:
        raise ArtifactError(
            f"{len(missing)} objects need {needed / 1e6:.0f} MB, but only {free / 1e6:.0f} MB are free "
            f"on the disk of {store.folder}; `testbed artifacts gc` removes what is not in use"
        )


class Puller:
    """Pulls objects in a few lanes at once: while one waits for the disk or an answer, the others receive.

    Args:
        sources: The servers, in the order in which they are asked: mirrors, and last who has everything.
        store: Where objects go.
        timeout_s: The longest silence of a server.
        attempts: How often to try the last server without getting one more byte of an object.
        lanes: How many objects come at once.
        sleep: How to wait between attempts.

    Attributes:
        again: How often an object came damaged and was asked for again.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        store: Store,
        *,
        timeout_s: float = 20.0,
        attempts: int = 6,
        lanes: int = 4,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not sources:
            raise ArtifactError("there is no server to pull from")
        for source in sources:
            source.place()
        self.again = 0
        self._sources = list(dict.fromkeys(sources))
        self._store = store
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._lanes = lanes
        self._sleep = sleep
        self._lock = threading.Lock()
        self._useless: Dict[Source, SourceError] = {}
        self._received = {source.url: 0 for source in self._sources}
        self._failure: BaseException | None = None

    @property
    def received_bytes(self) -> Dict[str, int]:
        """The bytes that came from each server, those of broken attempts too."""
        return dict(self._received)

    def pull(self, missing: Sequence[Wanted]) -> None:
        """Pull objects, going on where earlier attempts stopped.

        Raises:
            ArtifactError: One cannot be had.
        """
        # The large ones first, so that the lanes end at about the same time.
        queue = collections.deque(sorted(missing, key=lambda each: -each.size_bytes))
        lanes = [
            threading.Thread(target=self._run, args=(queue, number), daemon=True)
            for number in range(min(self._lanes, len(queue)))
        ]
        for lane in lanes:
            lane.start()
        try:
            for lane in lanes:
                lane.join()
        except BaseException as error:  # Ctrl-C: the lanes stop at their next block
            self._failure = self._failure or error
            raise
        if self._failure is not None:
            raise self._failure

    def _run(self, queue: collections.deque[Wanted], number: int) -> None:
        """Pull one object after the other until none is left or one has failed."""
        connections = {source: self._connect(source) for source in self._sources}
        # Several mirrors share the work: each lane begins with another one.
        mirrors, turn = self._sources[:-1], number % max(1, len(self._sources) - 1)
        order = [*mirrors[turn:], *mirrors[:turn], self._sources[-1]]
        try:
            while True:
                try:
                    wanted = queue.popleft()
                except IndexError:
                    return
                self._pull(wanted, order, connections)
        except _StoppedError:
            pass
        except BaseException as error:
            self._failure = self._failure or error
        finally:
            for connection in connections.values():
                connection.close()

    def _connect(self, source: Source) -> Connection:
        def received(count: int) -> None:
            with self._lock:
                self._received[source.url] += count
            self._go_on()

        return Connection(source, self._timeout_s, received)

    def _go_on(self) -> None:
        if self._failure is not None:
            raise _StoppedError

    def _pull(self, wanted: Wanted, order: Sequence[Source], connections: Dict[Source, Connection]) -> None:
        """Pull one object from the first server that can give it."""
        failed: List[str] = []
        for source in order:
            error = self._useless.get(source)
            if error is None:
                try:
                    attempts = self._attempts if source is order[-1] else _MIRROR_ATTEMPTS
                    self._pull_from(source, connections[source], wanted, attempts)
                    return
                except SourceError as caught:
                    error = caught
                    if error.for_all:
                        self._useless[source] = error
            failed.append(str(error))
        raise ArtifactError("; ".join(dict.fromkeys(failed)))

    def _pull_from(self, source: Source, connection: Connection, wanted: Wanted, attempts: int) -> None:
        part = self._store.part(wanted.digest)
        failures, damaged, best = 0, 0, _size(part)
        while True:
            self._go_on()
            try:
                found = connection.attempt(wanted, part)
            except (TryAgainError, http.client.HTTPException, OSError) as error:
                if isinstance(error, OSError) and error.filename is not None:
                    raise ArtifactError(f"{error.filename}: {error.strerror}") from error
                connection.close()
                size = _size(part)
                failures = failures + 1 if size <= best else 1
                best = max(best, size)
                if failures >= attempts:
                    words = f"{str(error) or type(error).__name__} ({failures} times)"
                    raise SourceError(
                        f"{source.url}: {wanted.digest[:16]}...: {words}", for_all=True
                    ) from error
                self._sleep(min(_BACK_OFF_S * 2 ** (failures - 1), _MAX_BACK_OFF_S))
                continue
            if found == wanted.digest:
                self._store.settle(part, wanted.digest)
                return
            part.unlink()
            damaged += 1
            if damaged == 2:
                raise SourceError(
                    f"{source.url}: {wanted.digest[:16]}... came damaged twice (sha256 {found[:16]}...); "
                    "its copy there is bad: `testbed artifacts verify` removes it"
                )
            with self._lock:
                self.again += 1


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
