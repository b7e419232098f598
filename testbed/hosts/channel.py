"""A command in an SSH channel: its output is read as it comes, and it is ended when its time is over."""

from __future__ import annotations

import codecs
import select
import time
from collections.abc import Iterator
from contextlib import suppress

import paramiko

from testbed.errors import ConnectError, DeadlineError
from testbed.hosts.deadline import Deadline
from testbed.hosts.transport import OnLine

__all__ = ["WATCHED", "LineSplitter", "SshStream", "pump"]

CHUNK_BYTES = 1 << 16
SLICE_S = 0.25
LINGER_S = 1.0  # how long output is awaited from children that outlive their command
WRITE_TIMEOUT_S = 15.0

# A command must not outlive the one who waits for it, and a server does not see to that: it closes the pipes and
# lets the command run on. So the input of a command that needs none is its lifeline. When it ends while the
# command's own process ($$) lives, its process group is ended, or under sudo, where it leads none, itself. The
# command reads from nothing.
WATCHED = (
    "exec 3<&0; ( trap '' TERM; read -r x <&3; kill -0 $$ || exit; "
    "for s in TERM KILL; do kill -s $s -- -$$ || kill -s $s $$; sleep 3; done ) "
    "</dev/null >/dev/null 2>&1 & exec 3<&- </dev/null; "
)


class LineSplitter:
    """Cuts bytes that arrive in pieces into lines of text; what is no UTF-8 is replaced."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._open = ""

    def feed(self, data: bytes, *, final: bool = False) -> list[str]:
        """Return the lines that the bytes complete; at the end also one without a line break."""
        *lines, self._open = (self._open + self._decoder.decode(data, final)).split("\n")
        if final and self._open:
            lines.append(self._open)
            self._open = ""
        return [line.removesuffix("\r") for line in lines]


def pump(
    channel: paramiko.Channel,
    stdin: bytes,
    deadline: Deadline,
    on_line: OnLine | None,
    *,
    end_input: bool = True,
) -> tuple[int, str, str]:
    """Feed a command and read all it says, to its end. Without input to feed, its input stays open.

    Args:
        channel: The channel that it runs in.
        stdin: What it is fed.
        deadline: When to give up.
        on_line: Is given each line of standard output when it arrives.
        end_input: Whether its input ends with what it is fed.

    Returns:
        The exit status (-1 where none came), the standard output and the standard error.

    Raises:
        TimeoutError: The deadline passed.
    """
    out: list[bytes] = []
    err: list[bytes] = []
    splitter = LineSplitter()
    unsent = memoryview(stdin)
    channel.setblocking(False)
    descriptor = channel.fileno()
    ended: Deadline | None = None
    while True:
        if channel.closed or channel.exit_status_ready():
            unsent = unsent[:0]  # it has ended without reading all
        if unsent and channel.send_ready():
            unsent = unsent[channel.send(bytes(unsent[:CHUNK_BYTES])) :]
            if not unsent and end_input:
                channel.shutdown_write()
        while channel.recv_ready():
            data = channel.recv(CHUNK_BYTES)
            out.append(data)
            if on_line:
                for line in splitter.feed(data):
                    on_line(line)
        while channel.recv_stderr_ready():
            err.append(channel.recv_stderr(CHUNK_BYTES))
        if channel.recv_ready():
            continue
        if channel.exit_status_ready() and ended is None:
            ended = Deadline(LINGER_S)
        if ended is not None and (channel.eof_received or channel.closed or ended.passed):
            break
        if channel.closed:
            break
        if deadline.passed:
            raise TimeoutError
        if channel.eof_received:
            channel.status_event.wait(deadline.timeout_s(SLICE_S))
        else:
            pause_s = 0.02 if unsent else SLICE_S
            select.select([descriptor], [], [], deadline.timeout_s(pause_s))
    if on_line:
        for line in splitter.feed(b"", final=True):
            on_line(line)
    status = channel.exit_status if channel.exit_status_ready() else -1
    return status, _text(out), _text(err)


def _text(chunks: list[bytes]) -> str:
    return b"".join(chunks).decode(errors="replace")


class SshStream:
    """A running command, see :class:`testbed.hosts.transport.Stream`.

    Args:
        host: The host's name, for errors.
        shell: The command line, for errors.
        channel: The channel that it runs in.
    """

    def __init__(self, host: str, shell: str, channel: paramiko.Channel) -> None:
        self._host = host
        self._shell = shell
        self._channel = channel
        self._stderr: list[bytes] = []
        # One timeout for reads and writes, since other threads may be at the same channel.
        channel.settimeout(SLICE_S)

    def write(self, data: bytes) -> None:
        """Send bytes to its standard input."""
        deadline = Deadline(WRITE_TIMEOUT_S)
        rest = memoryview(data)
        while rest:
            try:
                sent = self._channel.send(bytes(rest[:CHUNK_BYTES]))
            except TimeoutError:
                if deadline.passed:
                    raise DeadlineError(self._host, f"`{self._shell}` takes no input") from None
                continue
            except (OSError, EOFError, paramiko.SSHException) as error:
                raise ConnectError(self._host, f"`{self._shell}` has ended") from error
            if not sent:
                raise ConnectError(self._host, f"`{self._shell}` has ended")
            rest = rest[sent:]

    def end_input(self) -> None:
        """Close its standard input."""
        with suppress(OSError, EOFError, paramiko.SSHException):
            self._channel.shutdown_write()

    def lines(self, timeout_s: float | None = None) -> Iterator[str]:
        """Yield the lines of its standard output until it ends."""
        splitter = LineSplitter()
        last = time.monotonic()
        while True:
            self._drain_stderr()
            try:
                data = self._channel.recv(CHUNK_BYTES)
            except TimeoutError:
                if timeout_s is not None and time.monotonic() - last > timeout_s:
                    raise DeadlineError(
                        self._host, f"`{self._shell}` said nothing for {timeout_s:g} s"
                    ) from None
                continue
            last = time.monotonic()
            yield from splitter.feed(data, final=not data)
            if not data:
                self._drain_stderr()
                if self.exit_status() is None and not self._channel.get_transport().is_active():
                    raise ConnectError(self._host, "the connection was lost")
                return

    def exit_status(self, timeout_s: float = 5.0) -> int | None:
        """Return its exit status, or None where it has not ended in time."""
        self._channel.status_event.wait(timeout_s)
        status = self._channel.exit_status
        return status if self._channel.exit_status_ready() and status >= 0 else None

    @property
    def stderr(self) -> str:
        """What it has written to its standard error so far."""
        self._drain_stderr()
        return _text(self._stderr)

    def close(self) -> None:
        """End the command and free the channel."""
        if not self._channel.closed:
            self.end_input()
            self._channel.status_event.wait(2 * SLICE_S)
            self._channel.close()

    def _drain_stderr(self) -> None:
        while self._channel.recv_stderr_ready():
            self._stderr.append(self._channel.recv_stderr(CHUNK_BYTES))
