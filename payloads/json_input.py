"""JSON that came from somebody else, read so that no depth of it can end the process.

Python's own parser calls itself for every bracket and raises ``RecursionError`` when that goes too deep. Python 3.8
ends the whole process instead if any other code happens to run in that moment: a finalizer, or a hook of the garbage
collector. So text that is nested too deep is refused before it is parsed.
"""

from __future__ import annotations

import json
import re
from typing import Any, Callable, Optional, Union

__all__ = ["MAX_DEPTH", "parse_json"]

MAX_DEPTH = 64
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_BRACKET = re.compile(r"[][{}]")


def parse_json(
    text: Union[str, bytes],
    parse_constant: Optional[Callable[[str], Any]] = None,
    parse_int: Optional[Callable[[str], Any]] = None,
) -> Any:
    """Return the value of a JSON text of UTF-8.

    Args:
        text: The text.
        parse_constant: As for ``json.loads``.
        parse_int: As for ``json.loads``.

    Raises:
        ValueError: It is no JSON, or its lists and objects are more than ``MAX_DEPTH`` deep.
    """
    text = text if isinstance(text, str) else text.decode()
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise ValueError(f"lists and objects are more than {MAX_DEPTH} deep")
    return json.loads(text, parse_constant=parse_constant, parse_int=parse_int)


def _depth(text: str) -> int:
    """Return how many lists and objects are open at once, at most; what stands in strings does not count."""
    depth = deepest = 0
    for bracket in _BRACKET.findall(_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest
