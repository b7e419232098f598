"""The transport over SSH: one connection for each host, kept open, with a deadline over everything."""

from __future__ import annotations

import math
import shlex
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import paramiko

from testbed.config.inventory import Host
from testbed.errors import CommandError, ConnectError, DeadlineError, HostError
from testbed.hosts.become import PROOF_ASKED, PROOF_FREE, BecomePassword, asked_line, plain_line, prefix
from testbed.hosts.channel import WATCHED, SshStream, pump
from testbed.hosts.connect import Session, connect, unlocked_after
from testbed.hosts.deadline import Deadline
from testbed.hosts.endpoint import SshSettings
from testbed.hosts.files import SftpFiles
from testbed.hosts.gate import Gate
from testbed.hosts.steps import Command, Completed, Fetch, Put
from testbed.hosts.transport import OnLine, Stream

__all__ = ["SshTransport", "ssh_connect"]

LOGINS_AT_ONCE = 16


def ssh_connect(
    known_hosts: Path, *, connect_timeout_s: float = 15.0, become: BecomePassword | None = None
) -> Callable[[Host], SshTransport]:
    """Return what makes the SSH transports of a fleet.

    Args:
        known_hosts: The lab's file of host keys.
        connect_timeout_s: The most seconds that reaching one host may take.
        become: The password for sudo, where it asks for one.
    """
    settings, gate = SshSettings(known_hosts), Gate(LOGINS_AT_ONCE)
    return lambda host: SshTransport(
        host, settings, connect_timeout_s=connect_timeout_s, become=become, gate=gate
    )


class SshTransport:
    """The way to one host over SSH. Connects when first used, and again where the connection was lost.

    Args:
        host: The host.
        settings: The SSH configuration and the file of host keys.
        connect_timeout_s: The most seconds that reaching the host may take.
        become: The password for sudo, where it asks for one.
        gate: What keeps the number of logins at the same time low.
    """

    def __init__(
        self,
        host: Host,
        settings: SshSettings,
        *,
        connect_timeout_s: float = 15.0,
        become: BecomePassword | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.host = host
        self._become = become
        self._asks: bool | None = None
        self._gate = gate or Gate(LOGINS_AT_ONCE)
        self._settings = settings
        self._connect_timeout_s = connect_timeout_s
        self._session: Session | None = None
        self._files: SftpFiles | None = None
        self._connecting = threading.Lock()
        self._sftp_lock = threading.Lock()
        self._called_off = threading.Event()

    def run(self, command: Command, *, on_line: OnLine | None = None) -> Completed:
        """Run a command to its end, see :meth:`Transport.run`."""
        deadline = Deadline(command.timeout_s)
        before, mark = self._root_needs(command, deadline)
        channel = self._start(command, deadline, watched=not command.stdin, mark=mark)
        try:
            feed, ends = before + command.stdin, bool(command.stdin)
            status, stdout, stderr = pump(channel, feed, deadline, on_line, end_input=ends)
        except TimeoutError:
            raise DeadlineError(
                self.host.name, f"`{command.shell}` took longer than {command.timeout_s:g} s and was ended"
            ) from None
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise self._lost(error) from error
        finally:
            channel.close()
        if status < 0:  # none came: the command was ended by a signal, or the connection with it
            if channel.transport is None or not channel.transport.is_active():
                raise self._lost(None)
            raise CommandError(self.host.name, command.shell, status, stderr or "ended by a signal")
        completed = Completed(command, status, stdout, stderr, command.timeout_s - deadline.remaining_s)
        if status:
            raise CommandError(self.host.name, command.shell, status, stderr or stdout, stdout=stdout)
        return completed

    def stream(self, command: Command) -> Stream:
        """Start a command that goes on running, see :meth:`Transport.stream`."""
        deadline = Deadline(command.timeout_s)
        before, mark = self._root_needs(command, deadline)
        channel = self._start(command, deadline, watched=False, mark=mark)
        stream = SshStream(self.host.name, command.shell, channel)
        if before or command.stdin:
            stream.write(before + command.stdin)
        return stream

    def open(self, deadline: Deadline | None = None) -> None:
        """Connect and log in, if that is not done yet, see :meth:`Opens.open`."""
        self._open((deadline or Deadline(math.inf)).sooner(2 * self._connect_timeout_s))

    def tunnel(self, address: str, port: int) -> paramiko.Channel:
        """Return a connection from the host to an address that it reaches.

        Raises:
            HostError: The host cannot be reached, or does not reach the address.
        """
        deadline = Deadline(self._connect_timeout_s)
        session = self._open(deadline)
        target, source = (address, port), ("127.0.0.1", 0)
        try:
            return session.transport.open_channel(
                "direct-tcpip", target, source, timeout=deadline.remaining_s
            )
        except (EOFError, OSError, paramiko.SSHException) as error:
            raise ConnectError(self.host.name, f"no way to {address}:{port}: {error}") from error

    def put(self, put: Put) -> None:
        """Write one file on the host, see :meth:`Transport.put`."""
        deadline = Deadline(put.timeout_s)
        with self._sftp(deadline) as files:
            files.put(put, deadline)

    def fetch(self, fetch: Fetch) -> None:
        """Copy files from the host, see :meth:`Transport.fetch`."""
        deadline = Deadline(fetch.timeout_s)
        with self._sftp(deadline) as files:
            files.fetch(fetch, deadline)

    def close(self) -> None:
        """Close the connection, see :meth:`Transport.close`."""
        self._called_off.set()
        session, self._session, self._files = self._session, None, None
        if session is not None:
            session.close()

    def _start(
        self, command: Command, deadline: Deadline, *, watched: bool, mark: str = ""
    ) -> paramiko.Channel:
        """Return a channel in which the command runs."""
        try:
            channel = self._channel(deadline)
            with unlocked_after(deadline, channel.close):
                channel.exec_command(self.shell_line(command, watched=watched, mark=mark))
        except (OSError, EOFError, paramiko.SSHException) as error:
            if isinstance(error, ConnectError):
                raise
            if deadline.passed:
                raise DeadlineError(self.host.name, f"not started within {command.timeout_s:g} s") from error
            raise self._lost(error) from error
        return channel

    def shell_line(self, command: Command, *, watched: bool, mark: str = "") -> str:
        """Return a command as sshd is given it: for `sh`, whatever the user's login shell is.

        Args:
            command: The command.
            watched: Whether it ends with its input, which it does not read then.
            mark: What ends the part of the input that is sudo's; empty where sudo is given nothing.
        """
        shell = (WATCHED if watched else "") + command.shell
        if not command.become or self._user == "root":
            return f"exec sh -c {shlex.quote(shell)}"
        return asked_line(shell, mark) if mark else plain_line(shell)

    def _root_needs(self, command: Command, deadline: Deadline) -> tuple[bytes, str]:
        """Return what the input of a command begins with, for sudo, and the mark that ends it; nothing as a rule."""
        if not command.become or self._become is None:
            return b"", ""
        self._open(deadline)
        if self._user == "root":
            return b"", ""
        if self._asks is None:
            self._asks = self._sudo_asks(self._become, deadline)
        return prefix(self._become) if self._asks else (b"", "")

    def _sudo_asks(self, password: BecomePassword, deadline: Deadline) -> bool:
        """Return whether sudo asks for a password, and prove that it takes the one there is.

        Raises:
            HostError: It does not.
        """
        if self._ask(PROOF_FREE, b"", deadline)[0] == 0:
            return False
        status, stderr = self._ask(PROOF_ASKED, password.line(), deadline)
        if status:
            said = stderr.strip().splitlines()
            raise HostError(
                self.host.name,
                f"{self._user} cannot become root by the password given: {said[-1] if said else 'no message'}",
                hint="give the password by which this user runs sudo on the host",
            )
        return True

    def _ask(self, line: str, stdin: bytes, deadline: Deadline) -> tuple[int, str]:
        """Return the exit status and the standard error of a line that sshd is given."""
        try:
            channel = self._channel(deadline)
            with unlocked_after(deadline, channel.close):
                channel.exec_command(line)
                status, _, stderr = pump(channel, stdin, deadline, None, end_input=True)
        except TimeoutError:
            raise DeadlineError(self.host.name, "sudo does not answer") from None
        except (OSError, EOFError, paramiko.SSHException) as error:
            if isinstance(error, HostError):
                raise
            raise self._lost(error) from error
        channel.close()
        return status, stderr

    @property
    def _user(self) -> str:
        return self._session.user if self._session is not None else self.host.user

    def _channel(self, deadline: Deadline) -> paramiko.Channel:
        for attempt in (1, 2):
            session = self._open(deadline)
            try:
                return session.transport.open_session(timeout=deadline.remaining_s)
            except (EOFError, OSError, paramiko.SSHException) as error:
                # A silent connection can be lost unnoticed. Nothing was started yet: try a new one.
                if isinstance(error, paramiko.ChannelException) or attempt == 2 or deadline.passed:
                    raise
                self._drop(session)
        raise AssertionError("unreachable")

    def _open(self, deadline: Deadline) -> Session:
        if not self._connecting.acquire(timeout=deadline.timeout_s(threading.TIMEOUT_MAX)):
            raise DeadlineError(self.host.name, f"no connection within {deadline}")
        try:
            session = self._session
            if session is None or not session.active:
                if self._called_off.is_set():
                    raise ConnectError(self.host.name, "the connection is closed")
                if session is not None:
                    self._drop(session)
                # What reaching it may take is counted from when it is its turn.
                with self._gate.place(deadline):
                    soon = deadline.sooner(self._connect_timeout_s)
                    session = connect(self.host, self._settings, soon, self._called_off)
                if self._called_off.is_set():
                    session.close()
                    raise ConnectError(self.host.name, "the connection is closed")
                self._session = session
            return session
        finally:
            self._connecting.release()

    def _drop(self, session: Session) -> None:
        session.close()
        self._files = None
        if self._session is session:
            self._session = None

    @contextmanager
    def _sftp(self, deadline: Deadline) -> Iterator[SftpFiles]:
        """Have the SFTP session to oneself. One that broke down in the middle of an answer is not used again."""
        if not self._sftp_lock.acquire(timeout=deadline.timeout_s(threading.TIMEOUT_MAX)):
            raise DeadlineError(self.host.name, f"other files took longer than {deadline}")
        try:
            files = self._sftp_files(deadline.sooner(self._connect_timeout_s))
            try:
                yield files
            except (ConnectError, DeadlineError):
                self._files = None
                files.close()
                raise
        finally:
            self._sftp_lock.release()

    def _sftp_files(self, deadline: Deadline) -> SftpFiles:
        if self._files is None or self._session is None or not self._session.active:
            try:
                channel = self._channel(deadline)
                with unlocked_after(deadline, channel.close):
                    channel.invoke_subsystem("sftp")
                    self._files = SftpFiles(self.host.name, channel)
            except (EOFError, OSError, paramiko.SSHException) as error:
                if isinstance(error, ConnectError | DeadlineError):
                    raise
                raise self._lost(error) from error
        return self._files

    def _lost(self, error: BaseException | None) -> ConnectError:
        reason = str(error) or type(error).__name__ if error is not None else "no exit status came"
        return ConnectError(self.host.name, f"the connection was lost: {reason}")
