"""The probe: runs on a host, over the wire, and prints its clock a few times, then one line of facts.

It changes nothing. It is sent as text to the host's own Python, so: the standard library only, and the syntax of
Python 3.6, since a board with JetPack 4 must be able to say that it is one. Its parts are modules here, of plain
functions; joined in order they are one program, so no name may stand for two things.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

__all__ = ["probe_text"]

_OWN_IMPORT = re.compile(r"^from testbed\.\S+ import (?:\([^)]*\)|[^(\n]*)\n", re.MULTILINE)
PARTS = ("start", "host", "board", "system", "python", "own", "main")


def probe_text(asked: Mapping[str, Any]) -> bytes:
    """Return the program that a host is sent.

    Args:
        asked: What is asked, as JSON has it; each part takes what is its own.
    """
    return f"{_joined()}\nmain(json.loads({json.dumps(asked)!r}))\n".encode()


@functools.cache
def _joined() -> str:
    """Return all parts as one text, without the lines by which they import each other."""
    return "\n".join(_part(name) for name in PARTS)


def _part(name: str) -> str:
    # By its text and not by `ast`, whose parser is not for several threads at once in Python 3.11.
    text = resources.files("testbed.hosts.probes").joinpath(f"{name}.py").read_text(encoding="utf-8")
    return _OWN_IMPORT.sub("", text)
