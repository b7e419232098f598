"""A process' metrics at ``http://ADDRESS:PORT/metrics``, from a thread of their own. Standard library only.

There is nothing secret in them and nothing can be changed, so nobody is asked who they are: give it an address that
only those reach who may see how busy the process is. One client at a time is answered, and none may take long.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Optional, Tuple, Type

from payloads.metrics import CONTENT_TYPE, Metrics
from payloads.wire.counts import REFUSALS
from payloads.wire.server import Server, parse_listen

__all__ = ["MetricsServer", "add_metrics", "follow_server", "show_metrics"]

_CLIENT_TIMEOUT_S = 2.0
_MOST_REQUEST_BYTES = 8192
_PAUSE_S = 0.1


def follow_server(metrics: Metrics, prefix: str, server: Server) -> None:
    """Tell from now on what a server of the data plane counts: connections, bytes, and who was refused.

    Args:
        metrics: Where.
        prefix: What the names begin with.
        server: The server.
    """
    counts = server.counts
    counter, gauge = metrics.counter, metrics.gauge
    gauge(f"{prefix}_connections", "Connections now.").labels().follow(lambda: server.peers)
    gauge(f"{prefix}_queue_bytes", "Bytes that have arrived and wait to be read.").labels().follow(
        server.queued_bytes
    )
    counter(f"{prefix}_connections_total", "Connections that proved themselves.").labels().follow(
        lambda: counts.connected
    )
    counter(f"{prefix}_closed_total", "Connections that ended.").labels().follow(lambda: counts.closed)
    refused = counter(f"{prefix}_refused_total", "Connections that were refused, by reason.", ("reason",))
    for reason in REFUSALS:
        refused.labels(reason).follow(lambda reason=reason: counts.refused[reason])  # type: ignore[misc]
    moved = counter(
        f"{prefix}_wire_bytes_total",
        "Bytes of all connections, the handshakes and what TLS adds included.",
        ("direction",),
    )
    moved.labels("in").follow(lambda: server.wire_bytes()[0])
    moved.labels("out").follow(lambda: server.wire_bytes()[1])


def add_metrics(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where a service serves its metrics."""
    parser.add_argument(
        "--metrics",
        type=parse_listen,
        metavar="ADDRESS:PORT",
        help="serve Prometheus metrics there, such as at 127.0.0.1:7079; off by default",
    )


def show_metrics(service: str, metrics: Metrics, address: Tuple[str, int]) -> MetricsServer:
    """Serve a service's metrics, and say where.

    Raises:
        OSError: The address is not this machine's, or the port is taken.
    """
    shown = MetricsServer(metrics, address)
    place = ":".join(map(str, shown.address))
    print(f"{service}: metrics at http://{place}/metrics", file=sys.stderr, flush=True)
    return shown


class MetricsServer:
    """Serves metrics until it is closed.

    Args:
        metrics: What is served.
        address: Where to listen, and the port; 0 for any that is free.

    Raises:
        OSError: The address is not this machine's, or the port is taken.
    """

    def __init__(self, metrics: Metrics, address: Tuple[str, int]) -> None:
        self._metrics = metrics
        self._closing = False
        self._listener = socket.create_server(address)
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        self._thread.start()

    @property
    def address(self) -> Tuple[str, int]:
        """Where it listens."""
        address, port = self._listener.getsockname()[:2]
        return str(address), int(port)

    def close(self) -> None:
        """Stop serving."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join()
        self._listener.close()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                if self._closing:
                    return
                time.sleep(
                    _PAUSE_S
                )  # such as a process that has too many files open: others close some again
                continue
            with client:
                try:
                    self._answer(client)
                except OSError:
                    pass  # one that left or was too slow is no fault of this process
                except Exception:
                    traceback.print_exc()  # a number that cannot be read must not end all others

    def _answer(self, client: socket.socket) -> None:
        """Read one request and answer it.

        Raises:
            OSError: The client left, or took too long.
        """
        deadline = time.monotonic() + _CLIENT_TIMEOUT_S
        request = b""
        while b"\r\n\r\n" not in request:
            client.settimeout(max(deadline - time.monotonic(), 0.001))
            part = client.recv(4096)
            if not part or len(request) > _MOST_REQUEST_BYTES:
                return
            request += part
        words = request.split(b"\r\n", 1)[0].split()
        target = words[1].split(b"?")[0] if len(words) == 3 else b""
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            status, kind, body = "400 Bad Request", "text/plain", b"this is no HTTP\n"
        elif words[0] not in (b"GET", b"HEAD"):
            status, kind, body = "405 Method Not Allowed", "text/plain", b"only GET\n"
        elif target != b"/metrics":
            status, kind, body = "404 Not Found", "text/plain", b"only /metrics is here\n"
        else:
            status, kind, body = "200 OK", CONTENT_TYPE, self._metrics.text().encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        client.settimeout(max(deadline - time.monotonic(), 0.001))
        client.sendall(head.encode() + (b"" if words[:1] == [b"HEAD"] else body))
