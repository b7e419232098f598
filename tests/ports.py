"""Ports that stay a test's own, though this machine has others who take any that is free."""

from __future__ import annotations

import socket


def kept_port(kind: int = socket.SOCK_STREAM) -> socket.socket:
    """Return a socket that keeps a port of loopback: nobody else is given it, and servers that reuse addresses listen.

    Nothing is heard by the socket itself, so where no such server is, whoever connects is refused.
    """
    keeper = socket.socket(socket.AF_INET, kind)
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    keeper.bind(("127.0.0.1", 0))
    return keeper
