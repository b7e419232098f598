"""The base station's control socket: JSON lines over a Unix socket that only its owner can open.

One line asks, progress lines follow, and the last line holds ``result`` or ``error``. One job runs at a
time, in the process' main thread; ``status``, and ``stop``, which ends a job that serves, are answered at once by the
thread that accepts.
"""

from __future__ import annotations

import json
import os
import queue
import select
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Optional

from payloads.json_input import parse_json

__all__ = ["AbandonedError", "Control", "ControlError", "Job", "send_line"]

MAX_LINE_BYTES = 1 << 16
ASK_TIMEOUT_S = 5.0
ACCEPT_PAUSE_S = 0.2


class ControlError(Exception):
    """The control socket cannot be used."""


class AbandonedError(Exception):
    """Nobody waits for the result any more."""


class Job:
    """A request for work, and the client that waits for it.

    Attributes:
        request: What was asked.
    """

    def __init__(self, connection: socket.socket, request: Dict[str, Any]) -> None:
        self.request = request
        self._connection = connection
        self._stopped = threading.Event()
        self._poll = select.poll()
        self._poll.register(connection.fileno(), select.POLLRDHUP)

    @property
    def title(self) -> str:
        """A few words for people."""
        return " ".join(
            str(self.request[key]) for key in ("do", "trial", "policy", "scenario") if key in self.request
        )

    def check(self) -> None:
        """Raise if the client has gone.

        Raises:
            AbandonedError: It has.
        """
        if self._poll.poll(0):
            raise AbandonedError("nobody waits for it any more")

    @property
    def over(self) -> bool:
        """Whether a job that goes on by itself is to end: somebody stopped it, or its client has gone."""
        return self._stopped.is_set() or bool(self._poll.poll(0))

    def stop(self) -> None:
        """Let a job that goes on by itself end in order. Any thread may call this."""
        self._stopped.set()

    def progress(self, done: int, of: int, what: str) -> None:
        """Tell the client how far it is.

        Raises:
            AbandonedError: The client has gone.
        """
        try:
            send_line(self._connection, {"done": done, "of": of, "what": what})
        except OSError as error:
            raise AbandonedError("nobody waits for it any more") from error

    def end(self, answer: Dict[str, Any]) -> None:
        """Send the last line and close; a client that has gone misses it."""
        try:
            send_line(self._connection, answer)
        except OSError as error:
            print(f"control: {self.title}: the answer was not taken: {error}", file=sys.stderr, flush=True)
        finally:
            self._connection.close()


class Control:
    """Listens on the socket; hands jobs to whoever calls :meth:`next_job`.

    Attributes:
        path: The socket's path.
    """

    def __init__(self, path: Path, status: Callable[[], Dict[str, Any]]) -> None:
        self.path = path
        self._status = status
        self._jobs: queue.Queue[Job] = queue.Queue()
        self._lock = threading.Lock()
        self._current: Optional[Job] = None
        self._listener = _listen(path)
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def next_job(self) -> Job:
        """Wait for the next job; :meth:`done` must follow."""
        return self._jobs.get()

    def done(self) -> None:
        """Take the next job from now on."""
        with self._lock:
            self._current = None

    def close(self) -> None:
        """Remove the socket."""
        self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            connection: Optional[socket.socket] = None
            # Whatever one client does, this thread lives on: without it nobody is heard any more.
            try:
                connection, _ = self._listener.accept()
                connection.settimeout(ASK_TIMEOUT_S)
                self._hear(connection)
            except Exception as error:
                print(f"control: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                if connection is None:
                    time.sleep(ACCEPT_PAUSE_S)  # such as no descriptors left: no reason to spin
                else:
                    connection.close()

    def _hear(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as lines:
            line = lines.readline(MAX_LINE_BYTES)
        request = parse_json(line)
        if not isinstance(request, dict):
            raise ValueError("expected a JSON object")
        job = Job(connection, request)
        with self._lock:
            current = self._current
            if request.get("do") == "status":
                doing = current.title if current else None
                job.end({"result": {**self._status(), "doing": doing}})
            elif request.get("do") == "stop":
                if current is None or current.request.get("do") != "serve":
                    job.end({"error": "the base station serves nobody"})
                else:
                    current.stop()
                    job.end({"result": {"stopping": current.title}})
            elif current is not None:
                job.end({"error": f"the base station is busy with {current.title}"})
            else:
                self._current = job
                self._jobs.put(job)


def send_line(connection: socket.socket, value: Dict[str, Any]) -> None:
    """Send one JSON line.

    Raises:
        OSError: The other end has gone.
    """
    connection.sendall(json.dumps(value, separators=(",", ":")).encode() + b"\n")


def _listen(path: Path) -> socket.socket:
    """Return a listening socket that only its owner can open.

    Raises:
        ControlError: Another base station listens there, or the path cannot be used.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists():
            if _alive(path):
                raise ControlError(f"another base station listens on {path}")
            path.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(8)
    except OSError as error:
        listener.close()
        raise ControlError(f"cannot listen on {path}: {error.strerror or error}") from error
    except ControlError:
        listener.close()
        raise
    return listener


def _alive(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
