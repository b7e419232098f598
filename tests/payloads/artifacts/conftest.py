"""Servers of objects on the loopback, and ways to them that cut and flip."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from pathlib import Path
from typing import Callable, Iterator

import pytest

from payloads.artifacts.server import ObjectServer
from payloads.artifacts.source import Source
from payloads.artifacts.store import Store, bearer_token
from payloads.artifacts.wanted import Wanted

Meddle = Callable[[int, bytes], "bytes | None"]


def put(store: Store, content: bytes) -> Wanted:
    """Put an object into a store, as the controller does it, and return what is to be wanted."""
    digest = hashlib.sha256(content).hexdigest()
    store.path(digest).write_bytes(content)
    return Wanted(digest, len(content))


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text("ab" * 32 + "\n")
    return path


@pytest.fixture
def device(tmp_path: Path) -> Store:
    return Store(tmp_path / "device")


@pytest.fixture
def serving(tmp_path: Path, key_file: Path) -> Iterator[Callable[..., tuple[Store, Source]]]:
    """Start servers: each call returns a new one's store, and how it is asked."""
    with contextlib.ExitStack() as stack:

        def start(name: str, client_mbit: float | None = None) -> tuple[Store, Source]:
            store = Store(tmp_path / name)
            server = stack.enter_context(ObjectServer(("127.0.0.1", 0), store, key_file, client_mbit))
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return store, Source(f"http://127.0.0.1:{server.server_port}", bearer_token(key_file))

        yield start


class Between:
    """Passes connections on to a server, and what the server answers through ``meddle``.

    ``meddle`` is given how many bytes came from the server so far, over all connections, and the next ones; it
    returns what is passed on, or None to cut the connection.
    """

    def __init__(self, source: Source, meddle: Meddle) -> None:
        self._server = source.place()[:2]
        self._meddle = meddle
        self._lock = threading.Lock()
        self._passed = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.source = Source(f"http://127.0.0.1:{self._listener.getsockname()[1]}", source.token)
        self._sockets = [self._listener]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                server = socket.create_connection(self._server)
                self._sockets.append(server)
                for target in (self._up, self._down):
                    thread = threading.Thread(target=target, args=(client, server))
                    self._threads.append(thread)
                    thread.start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
        self._end(client, server)

    def _down(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                with self._lock:
                    passed = self._meddle(self._passed, data)
                    self._passed += len(data)
                if passed is None:
                    break
                client.sendall(passed)
        self._end(client, server)

    @staticmethod
    def _end(*sockets: socket.socket) -> None:
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._end(self._listener)
        self._threads[0].join()
        self._end(*self._sockets)
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()


@pytest.fixture
def between() -> Iterator[Callable[[Source, Meddle], Source]]:
    """Put something between a device and a server; returns how the server is asked through it."""
    made: list[Between] = []

    def make(source: Source, meddle: Meddle) -> Source:
        made.append(Between(source, meddle))
        return made[-1].source

    yield make
    for each in made:
        each.close()
