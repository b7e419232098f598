"""The base station's side: objects by name over HTTP, with ranges, to those who know the deploy's key."""

from __future__ import annotations

import contextlib
import hmac
import os
import re
import signal
import socket
import stat
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

from payloads.artifacts.store import DIGEST, ArtifactError, Store, bearer_token
from payloads.http_places import PlacesServer
from payloads.services.ready import announce_ready
from payloads.wire.pacing import set_pace

__all__ = ["ObjectServer", "parse_range", "serve"]

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_PREFIX = "/objects/"
#: Connections that are open at once: those of 64 devices, each with its four lanes.
PLACES = 256
#: How long a client may be silent: one that has not shown the key yet, and one that has, before it is taken for dead.
STRANGER_S, SILENCE_S = 5.0, 60.0


def parse_range(text: str | None, size: int) -> tuple[int, int] | None:
    """Return the first byte and the end (exclusive) that a Range header asks for.

    Returns:
        All of the object where the header asks for nothing we know (RFC 9110 lets a server ignore it), and
        None where no byte of the object is in the range.
    """
    match = _RANGE.fullmatch(text.strip()) if text else None
    if match is None or match.groups() == ("", ""):
        return 0, size
    first, last = match.groups()
    if first == "":
        count = min(int(last), size)
        return (size - count, size) if count else None
    if last and int(last) < int(first):
        return 0, size
    if int(first) >= size:
        return None
    return int(first), min(int(last) + 1, size) if last else size


class _Handler(BaseHTTPRequestHandler):
    server: ObjectServer
    protocol_version = "HTTP/1.1"
    server_version = "testbed-artifacts"
    sys_version = ""
    timeout = STRANGER_S
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._serve(with_body=True)

    def do_HEAD(self) -> None:
        self._serve(with_body=False)

    def _serve(self, *, with_body: bool) -> None:
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # a body that nobody reads must not pass for the next request
        if not self._is_authorized():
            self._refuse(HTTPStatus.UNAUTHORIZED)
            return
        self.connection.settimeout(SILENCE_S)
        digest = self.path[len(_PREFIX) :]
        if not self.path.startswith(_PREFIX) or not DIGEST.fullmatch(digest):
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        with self._opened(digest) as file:
            if file is None:
                self._refuse(HTTPStatus.NOT_FOUND)
                return
            size = os.fstat(file.fileno()).st_size
            span = parse_range(self.headers.get("Range"), size)
            if span is None:
                self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, ("Content-Range", f"bytes */{size}"))
                return
            first, end = span
            partial = end - first != size
            self.send_response(HTTPStatus.PARTIAL_CONTENT if partial else HTTPStatus.OK)
            if partial:
                self.send_header("Content-Range", f"bytes {first}-{end - 1}/{size}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(end - first))
            self.send_header("ETag", f'"{digest}"')
            self.end_headers()
            if with_body and end > first:
                self.server.store.use(digest)
                with self.server.paces.sending(self.client_address[0], self.connection):
                    self.connection.sendfile(file, first, end - first)

    def _is_authorized(self) -> bool:
        given = self.headers.get("Authorization", "").encode("utf-8", "replace")
        return hmac.compare_digest(given, b"Bearer " + self.server.token().encode())

    @contextlib.contextmanager
    def _opened(self, digest: str) -> Iterator[Any]:
        """Open an object; None stands for one that is not here, or is no plain file."""
        try:
            descriptor = os.open(self.server.store.path(digest), os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            yield None
            return
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            yield None
            return
        with open(descriptor, "rb") as file:
            yield file

    def _refuse(self, status: HTTPStatus, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for key, value in headers:
            self.send_header(key, value)
        if status == HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", "Bearer")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        """Log refusals only: a line for each object would soon be all of the log."""
        if int(code) >= 400:
            print(f"{self.client_address[0]}: {self.requestline!r}: {int(code)}", file=sys.stderr, flush=True)

    def log_error(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log what broke while a client was served."""
        print(f"{self.client_address[0]}: {format % args}", file=sys.stderr, flush=True)


class Paces:
    """Gives each client its bandwidth, shared among the connections that send to it just now.

    The kernel does the pacing, socket by socket; nobody is kept waiting here.

    Args:
        client_mbit: What one client may take, in Mbit/s of frames; everything where it is left out.
    """

    def __init__(self, client_mbit: Optional[float]) -> None:
        self._client_mbit = client_mbit
        self._lock = threading.Lock()
        self._sending: Dict[str, List[socket.socket]] = {}

    @contextlib.contextmanager
    def sending(self, client: str, connection: socket.socket) -> Iterator[None]:
        """Keep to the client's bandwidth while something is sent to it."""
        if self._client_mbit is None:
            yield
            return
        self._change(client, connection, begins=True)
        try:
            yield
        finally:
            self._change(client, connection, begins=False)

    def _change(self, client: str, connection: socket.socket, *, begins: bool) -> None:
        assert self._client_mbit is not None
        with self._lock:
            connections = self._sending.setdefault(client, [])
            connections.append(connection) if begins else connections.remove(connection)
            for each in connections:
                with contextlib.suppress(OSError):  # a client that is gone: its own thread will see
                    set_pace(each, self._client_mbit / len(connections))
            if not connections:
                del self._sending[client]


class ObjectServer(PlacesServer):
    """Serves the objects of a store.

    Args:
        address: Where to listen.
        store: The objects.
        key_file: The deploy's key; read again when the file changes, so that a new deploy needs no restart.
        client_mbit: What one client may take, in Mbit/s; everything where it is left out.
    """

    def __init__(
        self, address: tuple[str, int], store: Store, key_file: Path, client_mbit: Optional[float] = None
    ) -> None:
        self.store = store
        self.paces = Paces(client_mbit)
        self._key_file = key_file
        self._token: tuple[object, str] = (None, "")
        self.token()
        super().__init__(address, _Handler, PLACES)

    def token(self) -> str:
        """Return the token that clients must show."""
        try:
            found = self._key_file.stat()
        except FileNotFoundError as error:
            raise ArtifactError(
                f"{self._key_file}: there is no key on this host; deploy makes one"
            ) from error
        stamp = (found.st_mtime_ns, found.st_ino, found.st_size)
        if self._token[0] != stamp:
            self._token = (stamp, bearer_token(self._key_file))
        return self._token[1]


def serve(listen: str, key_file: Path, client_mbit: Optional[float] = None) -> int:
    """Serve this host's objects until SIGTERM.

    Args:
        listen: Where, as ADDRESS:PORT.
        key_file: The deploy's key.
        client_mbit: What one client may take, in Mbit/s; everything where it is left out.
    """
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit():
        raise ArtifactError(f"--listen {listen}: expected ADDRESS:PORT")
    try:
        server = ObjectServer((host, int(port)), Store(), key_file, client_mbit)
    except (OSError, OverflowError) as error:
        raise ArtifactError(f"cannot listen on {listen}: {error}") from error
    with server:
        # shutdown() waits for the loop that this very thread runs, so another thread must call it.
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
        announce_ready()
        server.serve_forever()
    return 0
