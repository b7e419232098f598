"""How a user becomes root on a host: as root already, by sudo without a password, or with one that is held in memory.

A password goes to sudo's standard input and nowhere else: it is in no command line, no file, no log and no record.
"""

from __future__ import annotations

import secrets
import shlex

__all__ = ["PROOF_ASKED", "PROOF_FREE", "BecomePassword", "asked_line", "plain_line", "prefix"]

PROOF_ASKED = "exec sudo -k -S -p '' true"
PROOF_FREE = "exec sudo -k -n true"


class BecomePassword:
    """A password that shows itself to nobody.

    Args:
        text: The password.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def line(self) -> bytes:
        """Return it as sudo reads it."""
        return f"{self._text}\n".encode()

    def __repr__(self) -> str:
        return "BecomePassword(...)"


def plain_line(shell: str) -> str:
    """Return the command line that runs a line of ``sh`` as root where sudo asks for no password."""
    # One user's home holds one testbed, so root works in it as well.
    return f'exec sudo -n env HOME="$HOME" sh -c {shlex.quote(shell)}'


def asked_line(shell: str, mark: str) -> str:
    """Return the command line that runs a line of ``sh`` as root where sudo asks for a password.

    Its standard input begins with :func:`prefix`. What is left of that is skipped before the command runs: sudo might
    not have asked after all, and the command must not be given the password.
    """
    skip = f'while IFS= read -r x && [ "$x" != {mark} ]; do :; done; unset x; '
    return f"exec sudo -k -S -p '' env HOME=\"$HOME\" sh -c {shlex.quote(skip + shell)}"


def prefix(password: BecomePassword) -> tuple[bytes, str]:
    """Return what the standard input begins with, and the mark that ends it."""
    mark = secrets.token_hex(16)
    return password.line() + f"{mark}\n".encode(), mark
