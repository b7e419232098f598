"""Who may ask the service, how many at once, and where it may listen."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import stat
from pathlib import Path
from typing import Optional, Tuple

__all__ = [
    "LEAST_CONTEXT_TOKENS",
    "MOST_AT_ONCE",
    "AccessError",
    "digest",
    "is_loopback",
    "is_plain_host",
    "parse_address",
    "read_token",
    "shows",
]

#: The most requests that are answered at once.
MOST_AT_ONCE = 256
#: The least that a request may be allowed to hold: a token of a prompt and one of an answer.
LEAST_CONTEXT_TOKENS = 2

LEAST_TOKEN_CHARACTERS = 16


class AccessError(Exception):
    """The service cannot be offered."""


def shows(header: str, secret: bytes) -> bool:
    """Whether an Authorization header shows the token.

    Args:
        header: The header.
        secret: The token's digest.
    """
    kind, _, shown = header.partition(" ")
    return kind.lower() == "bearer" and hmac.compare_digest(digest(shown.strip()) or b"", secret)


def read_token(path: Path) -> str:
    """Read the file of the token that clients must show.

    Raises:
        AccessError: It cannot be read, others may read it, or it holds no good token.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            token = file.read(4097).decode("ascii").strip()
    except OSError as error:
        raise AccessError(f"cannot read the token file {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        token, mode = "", 0
    if stat.S_IMODE(mode) & 0o077:
        raise AccessError(f"others may read the token file {path}: chmod 600 {path}")
    if not LEAST_TOKEN_CHARACTERS <= len(token) <= 4096 or len(token.split()) != 1:
        raise AccessError(f"{path}: expected one word of at least {LEAST_TOKEN_CHARACTERS} characters")
    return token


def parse_address(text: str) -> Tuple[str, int]:
    """Return the address and port of ``ADDRESS:PORT``; an IPv6 address stands in brackets.

    Raises:
        ValueError: It is something else.
    """
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not port.isdigit() or not 0 <= int(port) < 65536:
        raise ValueError(f"expected ADDRESS:PORT, got {text!r}")
    if host != "localhost" and not _is_address(host):
        raise ValueError(f"expected ADDRESS:PORT with an IP address, got {text!r}")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def is_plain_host(header: str) -> bool:
    """Whether a request's Host names an address, or this machine itself."""
    host = header.strip()
    if host.startswith("["):
        host, bracket, _ = host[1:].partition("]")
        return bool(bracket) and _is_address(host)
    host = host.partition(":")[0]
    return host.lower() in ("localhost", "") or _is_address(host)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def digest(token: Optional[str]) -> Optional[bytes]:
    """Return a token's digest: digests are compared, so that not even its length shows."""
    return None if token is None else hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
