"""How commands and files reach one host: the protocol that SSH and the scripted fake both speak."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from testbed.hosts.deadline import Deadline
from testbed.hosts.steps import Command, Completed, Fetch, Put, Step

__all__ = ["OnLine", "Opens", "Stream", "Transport", "do_step"]

OnLine = Callable[[str], None]


@runtime_checkable
class Stream(Protocol):
    """A command that goes on running: what it says is read while it runs."""

    def write(self, data: bytes) -> None:
        """Send bytes to its standard input.

        Raises:
            ConnectError: The connection or the command has ended.
        """
        ...

    def end_input(self) -> None:
        """Close its standard input; its output can still be read."""
        ...

    def lines(self, timeout_s: float | None = None) -> Iterator[str]:
        """Yield the lines of its standard output until it ends.

        Args:
            timeout_s: The most seconds to wait for the next line.

        Raises:
            DeadlineError: No line came in time.
            ConnectError: The connection was lost.
        """
        ...

    def exit_status(self, timeout_s: float = 5.0) -> int | None:
        """Return its exit status once it has ended, or None where it has not in the time given."""
        ...

    @property
    def stderr(self) -> str:
        """What it has written to its standard error so far."""
        ...

    def close(self) -> None:
        """End the command and free the channel; harmless when done already."""
        ...


@runtime_checkable
class Transport(Protocol):
    """The way to one host. Its methods may be called from several threads."""

    def run(self, command: Command, *, on_line: OnLine | None = None) -> Completed:
        """Run a command to its end. It does not outlive this call, whatever becomes of us.

        Args:
            command: The command.
            on_line: Is given each line of standard output when it arrives.

        Raises:
            CommandError: It ended with a status other than 0.
            DeadlineError: It took longer than its ``timeout_s``; it was ended.
            ConnectError: The host could not be reached, or the connection was lost.
            HostKeyError: The host's key is unknown or has changed.
        """
        ...

    def put(self, put: Put) -> None:
        """Write one file on the host, whole or not at all.

        Raises:
            HostError: As :meth:`run`.
        """
        ...

    def fetch(self, fetch: Fetch) -> None:
        """Copy a file or a folder's files from the host; each file whole or not at all.

        Raises:
            HostError: As :meth:`run`, and where the source is missing and not optional.
        """
        ...

    def stream(self, command: Command) -> Stream:
        """Start a command that goes on running and ends when its input does.

        Its ``timeout_s`` covers the start only.

        Raises:
            HostError: As :meth:`run`.
        """
        ...

    def close(self) -> None:
        """Close the connection and end what waits on it; harmless when closed already."""
        ...


@runtime_checkable
class Opens(Protocol):
    """A transport that can connect before there is anything to do."""

    def open(self, deadline: Deadline | None = None) -> None:
        """Connect and log in, if that is not done yet.

        Args:
            deadline: By when, at the latest.

        Raises:
            HostError: As :meth:`Transport.run`.
        """
        ...


def do_step(transport: Transport, step: Step, *, on_line: OnLine | None = None) -> Completed | None:
    """Do one step; a command's answer is returned.

    Raises:
        HostError: The step failed.
    """
    if isinstance(step, Command):
        return transport.run(step, on_line=on_line)
    if isinstance(step, Put):
        transport.put(step)
    else:
        transport.fetch(step)
    return None
