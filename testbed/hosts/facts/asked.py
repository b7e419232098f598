"""What the probe is asked on a host, by what the inventory says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from testbed.config.inventory import Host
from testbed.hosts.facts.python import required_modules
from testbed.hosts.facts.system import asked_packages
from testbed.hosts.payload import host_python

__all__ = ["asked_of"]


def asked_of(
    host: Host,
    modules: Sequence[str] | None = None,
    *,
    known: str = "",
    known_client: str = "",
    seen: str = "",
    known_code: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return what a host's probe is asked, as JSON has it: the parts of the probe take what is theirs.

    Args:
        host: The host.
        modules: What to try to import; what the payload code needs where left out.
        known: The fingerprint of an environment where they could be imported; nothing is tried if it is still that.
        known_client: Likewise that of a client of jtop whom the service answered.
        seen: What both were made from, so that a host need not start its Python to see that nothing has changed.
        known_code: How the payload code's files there looked when they were last read, and their digest.
    """
    wanted = required_modules(host) if modules is None else modules
    return {
        "python": host_python(host),
        "modules": list(wanted),
        "known": known,
        "known_client": known_client,
        "seen": seen,
        "known_code": dict(known_code or {}),
        # What makes an environment; where none is made, it need not be started.
        "interpreter": host.python.interpreter if host.python.manage else None,
        "jtop": host.is_device,
        "packages": asked_packages(host),
    }
