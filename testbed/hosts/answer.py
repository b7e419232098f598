"""What a command on a host answered, as data."""

from __future__ import annotations

import json
from typing import Any

from testbed.errors import HostError
from testbed.hosts.steps import Completed

__all__ = ["last_json"]


def last_json(done: Completed, *keys: str) -> dict[str, Any]:
    """Return the JSON object that a command said last; a login script of the host may say something before.

    Args:
        done: What it answered.
        *keys: What the object must have.

    Raises:
        HostError: It said something else.
    """
    text = done.stdout.strip()
    for candidate in (text, text.rpartition("\n")[2]):
        try:
            value = json.loads(candidate)
        except ValueError:
            continue
        if isinstance(value, dict) and value.keys() >= set(keys):
            return value
    raise HostError(
        done.command.host, f"`{done.command.shell}` answered what was not expected: {text[-200:]!r}"
    )
