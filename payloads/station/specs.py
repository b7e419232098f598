"""What the specifications of both workloads share: the error of a wrong one, and names that may be a folder's."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["SpecError", "check_name", "name_of"]

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")


class SpecError(Exception):
    """The specification cannot be read or is wrong."""


def name_of(text: Any) -> str:
    """Return a name: runs, trials and policies give folders theirs.

    Raises:
        ValueError: It cannot be a folder's.
    """
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        raise ValueError(f"expected a name of letters, digits, dots and dashes, got {text!r}")
    return text


def check_name(name: Any) -> str:
    """Return a name that can be a folder's.

    Raises:
        SpecError: It cannot.
    """
    try:
        return name_of(name)
    except ValueError as error:
        raise SpecError(str(error)) from None
