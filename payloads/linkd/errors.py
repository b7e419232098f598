"""What linkd raises on purpose: one line for people, and the exit status that goes with it."""

from __future__ import annotations

__all__ = ["LinkdError", "LinksError", "NotRunningError", "RefusedError"]


class LinkdError(Exception):
    """Something failed; the message is one clear line."""

    exit_status = 1


class LinksError(LinkdError):
    """The links that were asked for are wrong."""

    exit_status = 2


class RefusedError(LinkdError):
    """It could do harm: the interface could not be put back to what it was."""

    exit_status = 3


class NotRunningError(LinkdError):
    """Nobody answers on the daemon's socket."""
