"""The probe: runs on a host, over the wire, and prints its clock a few times, then one line of facts.

It changes nothing. It is sent as text to the host's own Python, so: the standard library only, and the syntax of
Python 3.6, since a board with JetPack 4 must be able to say that it is one. Its parts are modules here, of plain
functions; joined in order they are one program, so no name may stand for two things.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["probe_text"]

_OWN_IMPORT = re.compile(r"^from testbed\.\S+ import (?:\([^)]*\)|[^(\n]*)\n", re.MULTILINE)
# The module typing would take a host longer to import than all that the probe says with it.
_TYPING = re.compile(r"^from typing import (.*)\n", re.MULTILINE)
_UNTYPED = """\
class Untyped:
    def __getitem__(self, of):
        return self
"""
PARTS = ("start", "host", "board", "system", "python", "own", "main")


def probe_text(asked: Mapping[str, Any]) -> bytes:
    """Return the program that a host is sent.

    Args:
        asked: What is asked, as JSON has it; each part takes what is its own.
    """
    # What has been said is said: Python need not put itself away.
    return f"{_joined()}\nmain({dict(asked)!a})\nos._exit(0)\n".encode()


@functools.cache
def _joined() -> str:
    """Return all parts as one text, without the lines by which they import each other."""
    # By their text and not by `ast`, whose parser is not for several threads at once in Python 3.11.
    text = "\n".join(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8") for name in PARTS)
    names = {name for names in _TYPING.findall(text) for name in names.split(", ")}
    untyped = f"{_UNTYPED}{' = '.join(sorted(names))} = Untyped()\n"
    return untyped + _TYPING.sub("", _OWN_IMPORT.sub("", text))
