"""Who the operator is, as others see it in a host's lease."""

from __future__ import annotations

import getpass
import os
import re
import socket

from testbed.errors import InputError

__all__ = ["check_owner", "check_purpose", "this_owner"]

LONGEST_PURPOSE = 200
_OWNER = re.compile(r"[^\s@'\"]{1,64}@[^\s@'\"]{1,64}")


def this_owner() -> str:
    """Return the operator's name: user@machine, or what ``TESTBED_OWNER`` says.

    Who became root with sudo is still themselves.

    Raises:
        InputError: ``TESTBED_OWNER`` is no such name.
    """
    named = os.environ.get("TESTBED_OWNER")
    if named:
        return check_owner(named, "TESTBED_OWNER")
    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as containers have them
        user = f"uid{os.getuid()}"
    # An account of a domain is called ann@corp.example or CORP\ann; who takes over must be able to write it.
    words = (user, socket.gethostname().partition(".")[0])
    return "@".join(re.sub(r"[\s@'\"\\]", ".", word)[:64] or "unknown" for word in words)


def check_owner(name: str, where: str) -> str:
    """Return a name as it was given.

    Args:
        name: The name.
        where: Where it stands, for the error.

    Raises:
        InputError: It names nobody.
    """
    if not _OWNER.fullmatch(name):
        raise InputError(f"{where}: user@machine was expected, such as ann@laptop, not {name!r}")
    return name


def check_purpose(words: str, where: str) -> str:
    """Return what a host is wanted for, as it was given.

    Args:
        words: What for.
        where: Where it stands, for the error.

    Raises:
        InputError: Others could not be told it in one line.
    """
    if len(words) > LONGEST_PURPOSE or not words.isprintable():
        raise InputError(f"{where}: one line of at most {LONGEST_PURPOSE} characters was expected")
    return words
