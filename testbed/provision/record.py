"""A host's record: what there was before each change, kept there in ``~/.testbed/provision.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from testbed.hosts.facts import Facts
from testbed.hosts.payload import HOME, shell_path
from testbed.hosts.steps import Command
from testbed.provision.aspect import Change

__all__ = ["RECORD", "is_recorded", "record_step"]

RECORD = f"{HOME}/provision.jsonl"


def record_step(change: Change) -> Command:
    """Return the step that notes what there was before a change: on the disk for good before anything is done.

    The line begins anew even where another was cut off, which then stands for nothing: its change had not begun.
    """
    home, record = shell_path(HOME), shell_path(RECORD)
    entry = json.dumps({"item": change.item, "recorded": change.recorded}, sort_keys=True)
    shell = (
        f'umask 077 && mkdir -p {home} && {{ printf \'\\n{{"unix": %s, \' "$(date +%s)" && cat; }} >> {record} '
        f"&& chmod 600 {record} && sync {record} {home}"
    )
    return Command(
        change.host,
        shell,
        f"note what there was: {change.item}",
        stdin=f"{entry.removeprefix('{')}\n".encode(),
    )


def is_recorded(change: Change, facts: Facts) -> bool:
    """Return whether the host's last entry for this aspect says the same: a change that is tried again."""
    last: Mapping[str, Any] | None = None
    for entry in facts.record:
        if entry.item == change.item:
            last = entry.recorded
    return last is not None and last == json.loads(json.dumps(change.recorded))
