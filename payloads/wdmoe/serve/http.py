"""The HTTP server in front of the API: a thread a connection, with limits on everything that a stranger can ask for."""

from __future__ import annotations

import io
import re
import select
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from typing import Any, Mapping, NamedTuple, Optional, Tuple

from payloads.http_places import PlacesServer
from payloads.wdmoe.serve.access import AccessError, digest, is_loopback, is_plain_host, shows
from payloads.wdmoe.serve.answering import ClientGoneError, json_bytes
from payloads.wdmoe.serve.api import Api, Reply, Stream, Whole
from payloads.wdmoe.serve.errors import ApiError

__all__ = ["LIMITS", "HttpServer", "Limits"]

PIECE_BYTES = 1 << 16
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")


class Limits(NamedTuple):
    """What one client may ask of the server.

    Attributes:
        body_bytes: The longest body.
        head_bytes: The longest request line and headers together.
        connections: How many connections are open at once.
        arrival_s: In what time a request must have arrived, the wait for it included.
        send_s: How long a client may take nothing of its answer.
    """

    body_bytes: int = 8 << 20
    head_bytes: int = 32 << 10
    connections: int = 64
    arrival_s: float = 60.0
    send_s: float = 30.0


LIMITS = Limits()


class HttpServer:
    """Serves an API until it is closed.

    Attributes:
        address: Where it listens.

    Args:
        api: What is served.
        address: The address and port; port 0 takes a free one.
        token: What clients must show; ``None`` for nothing, on loopback addresses only.
        limits: What a client may ask for.

    Raises:
        AccessError: It cannot listen there, or nothing would protect it there.
    """

    def __init__(
        self, api: Api, address: Tuple[str, int], token: Optional[str] = None, limits: Limits = LIMITS
    ) -> None:
        host, port = address
        if token is None and not is_loopback(host):
            raise AccessError(
                f"{host} is not a loopback address, so a token is needed: --http-token-file FILE"
            )
        handler = type("Handler", (_Handler,), {"api": api, "limits": limits, "secret": digest(token)})
        try:
            self._server = _Server((host, port), handler, limits.connections)
        except OSError as error:
            raise AccessError(f"cannot listen on {_shown(host, port)}: {error.strerror or error}") from error
        self.address = (host, int(self._server.server_address[1]))
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="http", daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """The address that clients are given."""
        return f"http://{_shown(*self.address)}/v1"

    def close(self) -> None:
        """Take no connections any more; those that are open end with their answers."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(PlacesServer):
    block_on_close = False  # a client that reads slowly keeps nobody from ending

    def __init__(self, address: Tuple[str, int], handler: Any, places: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.no_place = _BUSY
        super().__init__(address, handler, places)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say in one line what ended a connection, beside what else the base station says."""
        error = sys.exc_info()[1]
        _say(f"{client_address[0]}: {type(error).__name__}: {error}")


class _TooLongError(OSError):
    """A request line and its headers are too long."""


class _Arriving(io.RawIOBase):
    """What arrives on a connection, with an end to the time and the bytes that one request may take."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline_s = 0.0
        self._left = 0

    def allow(self, count: int, seconds: Optional[float] = None) -> None:
        """Let so many bytes arrive, and within some seconds from now where they are given."""
        self._left = count
        if seconds is not None:
            self._deadline_s = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._left <= 0:
            raise _TooLongError("the request's headers are too long")
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise socket.timeout("the request did not arrive in time")
        self._connection.settimeout(left_s)
        count = self._connection.recv_into(memoryview(buffer)[: self._left])
        self._left -= count
        return count


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection, one after the other."""

    protocol_version = "HTTP/1.1"
    api: Api
    limits: Limits
    secret: Optional[bytes]

    def setup(self) -> None:
        """Put limits on what arrives."""
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._arriving = _Arriving(self.connection)
        self.rfile = io.BufferedReader(self._arriving, 1 << 13)
        self._poll = select.poll()
        self._poll.register(self.connection.fileno(), select.POLLRDHUP)

    def handle_one_request(self) -> None:
        """Read and answer one request."""
        self._arriving.allow(self.limits.head_bytes, self.limits.arrival_s)
        try:
            super().handle_one_request()
        except _TooLongError:
            self.close_connection = True
            self.requestline, self.request_version, self.command = "", "HTTP/1.1", ""
            self._send_error(ApiError(431, "the request's headers are too long"))
        except (ConnectionError, socket.timeout, ClientGoneError):
            self.close_connection = True

    def do_GET(self) -> None:
        """Answer a GET."""
        self._answer(b"")

    def do_POST(self) -> None:
        """Answer a POST."""
        try:
            self._check()
            body = self._body()
        except ApiError as error:
            self.close_connection = True  # what is left of the body is no request
            self._send_error(error)
            return
        self._answer(body)

    def _answer(self, body: bytes) -> None:
        path = self.path.partition("?")[0]
        name = self.headers.get("X-Request-Id")
        try:
            if self.command == "GET":
                if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
                    self.close_connection = True
                    raise ApiError(400, "a GET has no body")
                self._check(path == "/healthz")
            if name is not None and not _NAME.match(name):
                raise ApiError(400, "X-Request-Id: expected up to 64 letters, digits, dots and dashes")
            reply = self.api.handle(self.command, path, body, name, lambda: bool(self._poll.poll(0)))
        except ApiError as error:
            self._send_error(error)
        except ClientGoneError:
            raise
        except Exception as error:  # a mistake of ours must not end the service, nor be kept from the client
            _say(f"{self.command} {path}: {type(error).__name__}: {error}")
            self._send_error(
                ApiError(500, f"the base station failed: {type(error).__name__}", "server_error")
            )
        else:
            self._send(reply)

    def _check(self, anybody: bool = False) -> None:
        """Refuse who may not ask.

        Raises:
            ApiError: It is refused.
        """
        if anybody:
            return
        if self.secret is not None:
            if not shows(self.headers.get("Authorization", ""), self.secret):
                raise ApiError(
                    401,
                    "the bearer token is missing or wrong",
                    "authentication_error",
                    code="invalid_api_key",
                )
        elif not is_plain_host(self.headers.get("Host", "")):
            # A page from elsewhere may lead a browser here by a name of its own; without a token nothing else tells.
            raise ApiError(403, "ask by address, or as localhost", "permission_error")

    def _body(self) -> bytes:
        """Return the request's body.

        Raises:
            ApiError: It is too long, or its length or kind is not told.
        """
        if self.headers.get_content_type() != "application/json":
            raise ApiError(415, "expected Content-Type: application/json")
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or len(self.headers.get_all("Content-Length", [])) != 1:
            raise ApiError(411, "expected one Content-Length and no Transfer-Encoding")
        if not (length.isascii() and length.isdigit()):
            raise ApiError(400, "Content-Length: expected a number")
        if len(length) > 12 or int(length) > self.limits.body_bytes:
            raise ApiError(413, f"a body has at most {self.limits.body_bytes} bytes")
        self._arriving.allow(int(length) or 1)
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionResetError("the body ended early")
        return body

    def _send(self, reply: Reply) -> None:
        self.connection.settimeout(self.limits.send_s)
        if isinstance(reply, Stream):
            self._send_stream(reply)
            return
        self._send_whole(reply, {})

    def _send_whole(self, reply: Whole, headers: Mapping[str, str]) -> None:
        self.connection.settimeout(self.limits.send_s)
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        body = memoryview(reply.body)
        # What is sent at once has its time: a long answer takes as many of these as it needs.
        for begin in range(0, len(body), PIECE_BYTES):
            self.wfile.write(body[begin : begin + PIECE_BYTES])

    def _send_stream(self, reply: Stream) -> None:
        """Send events as they come, in chunks, or to a client of HTTP/1.0 until the connection ends."""
        chunked = self.request_version >= "HTTP/1.1"
        try:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.send_header("Cache-Control", "no-cache")
            if chunked:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.close_connection = True
            self.end_headers()
            for event in reply.events:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event) if chunked else event)
            if chunked:
                self.wfile.write(b"0\r\n\r\n")
        except BaseException:
            self.close_connection = True  # in the middle of an answer: nothing else can follow
            raise
        finally:
            close = getattr(reply.events, "close", None)
            if close is not None:
                close()  # gives up what the client did not wait for

    def _send_error(self, error: ApiError) -> None:
        headers = {}
        if error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        elif error.status == 503:
            headers["Retry-After"] = "1"
        self._send_whole(Whole(error.status, "application/json", json_bytes(error.as_json())), headers)

    def send_error(self, code: int, message: Optional[str] = None, explain: Optional[str] = None) -> None:
        """Say what the standard library's parser found wrong, in the API's form."""
        self.close_connection = True
        self._send_error(ApiError(code, message or explain or "the request is not HTTP"))

    def version_string(self) -> str:
        """Tell no more than what it is."""
        return "testbed"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing: requests are in the records, and a log of each would grow for ever."""


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _say(text: str) -> None:
    print(f"http: {text}", file=sys.stderr, flush=True)


_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 93\r\n"
    b"Retry-After: 1\r\nConnection: close\r\n\r\n"
    b'{"error":{"message":"too many connections","type":"server_error","param":null,"code":"busy"}}'
)
