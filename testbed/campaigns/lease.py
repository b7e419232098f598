"""The controller's hold on its hosts: while it lives, it writes a byte a second to each host's lease.

A host whose lease ends, because the controller let go, died or can no longer be reached, stops its services; the
link daemon is one of them and puts the links back.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable

from testbed.errors import HostError
from testbed.hosts.fleet import Fleet
from testbed.hosts.steps import Command
from testbed.hosts.transport import Stream

__all__ = ["Leases"]

BEAT_S = 1.0
RELEASE_S = 8.0


class Leases:
    """Opens the leases, keeps them alive from a thread of its own, and lets them go.

    Attributes:
        taken: The hosts that were held at some time.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.taken: set[str] = set()
        self._fleet = fleet
        self._streams: dict[str, Stream] = {}
        self._lost: dict[str, str] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="leases", daemon=True)

    def take(self, command: Command) -> None:
        """Take one host's lease and wait until the host says that it is held.

        Raises:
            HostError: The host refused, for instance since another controller holds it.
        """
        stream = self._fleet.transport(command.host).stream(command)
        try:
            first = next(stream.lines(command.timeout_s), "")
        except HostError:
            stream.close()
            raise
        try:
            held = bool(json.loads(first)["held"])
        except (ValueError, KeyError, TypeError):
            held = False
        if not held:
            answer = stream.stderr.strip() or first or "no answer"
            stream.close()
            raise HostError(command.host, f"the lease was refused: {answer}")
        with self._lock:
            self._streams[command.host] = stream
            self.taken.add(command.host)
            if not self._thread.is_alive():
                self._thread.start()

    def check(self) -> None:
        """Raise for a host whose lease was lost.

        Raises:
            HostError: A host can no longer be reached; its services stop by themselves.
        """
        for host, why in list(self._lost.items()):  # the beat may add one meanwhile
            raise HostError(host, f"the lease was lost: {why}")

    def release(self) -> None:
        """Let every host go, and wait until each has stopped what still ran there."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        streams = list(self._streams.values())
        self._streams.clear()
        for stream in streams:
            with contextlib.suppress(OSError, HostError):
                stream.end_input()
        for stream in streams:
            with contextlib.suppress(OSError, HostError):  # a host that is out of reach lets go by itself
                stream.exit_status(RELEASE_S)
            stream.close()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            for host, stream in self._alive():
                try:
                    stream.write(b".")
                except (OSError, HostError) as error:
                    self._lost[host] = str(error)

    def _alive(self) -> Iterable[tuple[str, Stream]]:
        with self._lock:
            return [(host, stream) for host, stream in self._streams.items() if host not in self._lost]
