"""What a host's Python could import when it was last tried: trying takes seconds, and seldom changes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from testbed.config.folders import cache_folder
from testbed.config.inventory import Host
from testbed.hosts.payload import host_python

__all__ = ["recall", "remember"]

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


def recall(host: Host) -> dict[str, Any]:
    """Return the environment that a host's probe answered last, with its ``fingerprint``; empty if there is none."""
    try:
        found = json.loads(_file(host).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    whole = isinstance(found, dict) and _FINGERPRINT.fullmatch(str(found.get("fingerprint")))
    return found if whole else {}


def remember(host: Host, environment: dict[str, Any]) -> None:
    """Keep an environment that a probe answered, if everything in it could be imported."""
    if not environment.get("fingerprint") or environment.get("error") or environment.get("errors"):
        return
    path = _file(host)
    with contextlib.suppress(OSError):  # it is only kept to save time
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(environment), encoding="utf-8")
        unfinished.replace(path)


def _file(host: Host) -> Path:
    about = [host.name, host.address, host.port, host.user, host_python(host)]
    return cache_folder() / "facts" / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]}.json"
