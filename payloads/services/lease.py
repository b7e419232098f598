"""The lease: services run only while somebody holds it, or for a short time after a start without one.

Times are CLOCK_MONOTONIC, which all processes of a host share and which nobody can set.
"""

from __future__ import annotations

import json
import os
import time
from typing import NamedTuple

from payloads.services.layout import read_json, services_folder, write_whole
from payloads.services.processes import boot_id

__all__ = ["GRACE_S", "INITIAL_S", "Lease", "LeaseWatch", "read_lease", "write_lease"]

GRACE_S = 2.0
INITIAL_S = 60.0

_NAME = "lease.json"


class Lease(NamedTuple):
    """Who may have services here, and until when.

    Attributes:
        until_ns: Its end, on CLOCK_MONOTONIC of this boot.
        holder: The process that holds it.
        peer: The address that the holder's SSH session came from, or an empty string.
    """

    until_ns: int
    holder: int
    peer: str

    def left_s(self) -> float:
        """Return the seconds it still lasts; negative once it has ended."""
        return (self.until_ns - time.monotonic_ns()) / 1e9


def write_lease(left_s: float) -> None:
    """Record that this process holds the lease for ``left_s`` seconds from now."""
    peer = os.environ.get("SSH_CONNECTION", "").split(" ")[0]
    lease = Lease(time.monotonic_ns() + int(left_s * 1e9), os.getpid(), peer)
    write_whole(services_folder() / _NAME, json.dumps(dict(lease._asdict(), boot=boot_id())))


def read_lease() -> Lease | None:
    """Return the lease as last recorded in this boot, or None where there was none."""
    value = read_json(services_folder(make=False) / _NAME)
    if value is None or value.pop("boot") != boot_id():
        return None
    return Lease(**value)


class LeaseWatch:
    """Tells when the services of this host have outlived their lease."""

    def __init__(self) -> None:
        self._initial_until_ns = time.monotonic_ns()

    def allow(self, initial_s: float) -> None:
        """Give services started without a live lease some time for one to appear."""
        lease = read_lease()
        if lease is None or lease.left_s() <= 0:
            self._initial_until_ns = time.monotonic_ns() + int(initial_s * 1e9)

    def ended(self) -> bool:
        """Tell whether no lease covers the services any more."""
        now_ns = time.monotonic_ns()
        lease = read_lease()
        if lease is not None and lease.until_ns > now_ns:
            self._initial_until_ns = 0  # from here on, only the lease counts
            return False
        if now_ns < self._initial_until_ns:
            return False
        return lease is None or now_ns > lease.until_ns + int(GRACE_S * 1e9)
