"""An HTTP server with so many places: a thread for each connection, and no more of them than that."""

from __future__ import annotations

import contextlib
import socketserver
import sys
import threading
from http.server import ThreadingHTTPServer
from typing import Any, Tuple

__all__ = ["PlacesServer"]

_REFUSAL_S = 0.1  # what telling one that there is no place may take


class PlacesServer(ThreadingHTTPServer):
    """Answers each connection in a thread of its own; one that comes when all places are taken is told so and closed.

    Attributes:
        no_place: The whole answer that such a connection gets.

    Args:
        address: Where to listen.
        handler: The class that answers a connection.
        places: How many connections are open at once.
    """

    daemon_threads = True
    request_queue_size = 64
    no_place = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

    def __init__(self, address: Tuple[str, int], handler: Any, places: int) -> None:
        self._free = threading.BoundedSemaphore(places)
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind without asking a name server for our own name, as the base class would."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread of its own, if there is a place left."""
        if not self._free.acquire(blocking=False):
            with contextlib.suppress(OSError):  # it is refused in any case
                request.settimeout(_REFUSAL_S)
                request.sendall(self.no_place)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say in one line what ended a connection: a client that goes away is nothing to worry about."""
        error = sys.exc_info()[1]
        print(f"{client_address[0]}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
