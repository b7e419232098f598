"""One SSH connection, made by a deadline: host keys are checked, drops by a busy server are tried again."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import paramiko
from paramiko.ssh_exception import (
    AuthenticationException,
    BadHostKeyException,
    IncompatiblePeer,
    PasswordRequiredException,
)

from testbed.config.inventory import Host
from testbed.errors import ConnectError, HostError, HostKeyError
from testbed.hosts.deadline import Deadline
from testbed.hosts.dial import dial, gateway_error
from testbed.hosts.endpoint import Endpoint, SshSettings

if TYPE_CHECKING:
    import fabric

__all__ = ["Session", "close_jump", "connect", "open_socket", "unlocked_after", "with_retries"]

T = TypeVar("T")
FIRST_PAUSE_S = 0.2


@dataclass(frozen=True)
class Session:
    """One connection that is logged in, and the one that leads to it.

    Attributes:
        client: The connection.
        user: The user who is logged in.
        jump: The connection to the host on the way (ProxyJump).
    """

    client: paramiko.SSHClient
    user: str
    jump: fabric.Connection | None

    @property
    def active(self) -> bool:
        """Whether the connection stands, as far as is known."""
        transport = self.client.get_transport()
        return transport is not None and transport.is_active()

    @property
    def transport(self) -> paramiko.Transport:
        """The SSH transport."""
        transport = self.client.get_transport()
        if transport is None:
            raise EOFError("the connection is closed")
        return transport

    def close(self) -> None:
        """Close the connection, and then the one that leads to it."""
        self.client.close()
        close_jump(self.jump)


def close_jump(jump: fabric.Connection | None) -> None:
    """Close a connection to a host on the way, and those that lead to it."""
    for each in _chain(jump):
        each.client.close()


def _chain(jump: fabric.Connection | None) -> Iterator[fabric.Connection]:
    """Yield the hosts on the way, the last one first."""
    while jump is not None and not isinstance(jump, str):  # what leads to the first one may be a command
        yield jump
        jump = jump.gateway


@contextmanager
def unlocked_after(deadline: Deadline, action: Callable[[], object]) -> Iterator[None]:
    """Call ``action`` from another thread if the block has not ended by the deadline."""
    timer = threading.Timer(deadline.timeout_s(threading.TIMEOUT_MAX), action)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def open_socket(host: Host, endpoint: Endpoint, deadline: Deadline, called_off: threading.Event) -> Any:
    """Return a socket to the host's SSH server, through whatever leads there; what that is, the caller closes."""
    if endpoint.jump is None:
        return dial(
            host.name,
            endpoint.address,
            endpoint.port,
            gateway=endpoint.gateway,
            deadline=deadline,
            called_off=called_off,
        )
    for jump in _chain(endpoint.jump):  # fabric would take any key of a host on the way
        jump.client.set_missing_host_key_policy(_RejectUnknown())
        jump.client.load_system_host_keys()
        jump.connect_timeout = deadline.remaining_s
    target, source = (endpoint.address, endpoint.port), ("", 0)
    try:
        with unlocked_after(deadline, lambda: close_jump(endpoint.jump)):
            endpoint.jump.open()
            left_s = deadline.remaining_s
            return endpoint.jump.transport.open_channel("direct-tcpip", target, source, timeout=left_s)
    except (_Unknown, BadHostKeyException) as error:
        why = f"not found in known_hosts: {error}" if isinstance(error, _Unknown) else f"has changed: {error}"
        raise HostKeyError(
            host.name,
            f"the key of the host on the way ({endpoint.jump.host}) was refused: {why}",
            hint=f"compare it with that host's own, and record it: `ssh {endpoint.jump.original_host}`",
        ) from error


def _log_in(
    client: paramiko.SSHClient, endpoint: Endpoint, sock: Any, deadline: Deadline
) -> paramiko.Transport:
    """Log in over a socket and return the transport."""
    left_s = deadline.remaining_s
    client.connect(
        endpoint.address,
        endpoint.port,
        endpoint.user,
        sock=sock,
        timeout=left_s,
        banner_timeout=left_s,
        auth_timeout=left_s,
        channel_timeout=left_s,
        **endpoint.connect,
    )
    transport = client.get_transport()
    if transport is None or deadline.passed:
        raise paramiko.SSHException("too late")
    return transport


class _Unknown(paramiko.SSHException):
    """The server's key is not recorded."""

    def __init__(self, key: paramiko.PKey) -> None:
        super().__init__(f"{key.get_name()} {key.fingerprint}")
        self.key = key


class _RejectUnknown(paramiko.MissingHostKeyPolicy):
    """Refuses a server whose key is not recorded."""

    def missing_host_key(self, client: object, hostname: str, key: paramiko.PKey) -> None:
        raise _Unknown(key)


def connect(host: Host, settings: SshSettings, deadline: Deadline, called_off: threading.Event) -> Session:
    """Connect and log in.

    Args:
        host: The host.
        settings: The SSH configuration.
        deadline: Covers name look-up, connect, key exchange and login, and all repeats of them.
        called_off: Set by another thread to end the wait.

    Raises:
        ConnectError: The host does not answer or does not let us in.
        HostKeyError: The host's key is unknown or has changed.
    """
    endpoint = settings.endpoint(host)

    def once() -> Session:
        sock = open_socket(host, endpoint, deadline, called_off)
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(_RejectUnknown())
        for kind, key in settings.recorded_keys(endpoint.known_name).items():
            client.get_host_keys().add(endpoint.known_name, kind, key)
        try:
            with unlocked_after(deadline, client.close):
                transport = _log_in(client, endpoint, sock, deadline)
        except BaseException as error:
            client.close()
            sock.close()
            through = gateway_error(sock, host.name, f"{endpoint.address}:{endpoint.port}", deadline)
            raise _explained(error, host, endpoint, settings, through) from error
        transport.set_keepalive(10)
        return Session(client, endpoint.user, endpoint.jump)

    try:
        return with_retries(host, endpoint, deadline, called_off, once)
    except BaseException:
        close_jump(endpoint.jump)
        raise


def _explained(
    error: BaseException,
    host: Host,
    endpoint: Endpoint,
    settings: SshSettings,
    through: ConnectError | None,
) -> BaseException:
    """Return our own error for what went wrong, or the same one where it is worth another try.

    Args:
        error: What went wrong.
        host: The host.
        endpoint: Where it is.
        settings: The SSH configuration.
        through: What is wrong with the gateway command.
    """
    known, where = settings.known_hosts, endpoint.known_name
    if isinstance(error, BadHostKeyException):
        return _changed(host, error.key, [error.expected_key], known, where)
    if isinstance(error, _Unknown):
        # Somebody in between could show a key of another kind than the one that is recorded.
        recorded = settings.recorded_keys(where)
        if recorded:
            return _changed(host, error.key, list(recorded.values()), known, where)
        return HostKeyError(
            host.name,
            f"the host's key is not recorded in {known}: {error}",
            hint="`testbed trust` shows it, to be compared with the host's own, and records it",
        )
    if isinstance(error, AuthenticationException):
        tried = f"key file {host.key_file}" if host.key_file else "SSH agent and keys in ~/.ssh"
        needs = "; its key file has a passphrase" if isinstance(error, PasswordRequiredException) else ""
        return ConnectError(
            host.name,
            f"the host does not let {endpoint.user} in ({tried}){needs}",
            hint=f"put the public key into {endpoint.user}'s ~/.ssh/authorized_keys on the host, "
            "or load the key into the SSH agent",
        )
    if isinstance(error, IncompatiblePeer):
        return ConnectError(host.name, f"no common SSH algorithm: {error}")
    return through or error


def _changed(
    host: Host, shown: paramiko.PKey, recorded: list[paramiko.PKey], known: Path, where: str
) -> HostKeyError:
    old = ", ".join(f"{key.get_name()} {key.fingerprint}" for key in recorded)
    return HostKeyError(
        host.name,
        f"the host's key has changed: {shown.get_name()} {shown.fingerprint} instead of {old}",
        hint="somebody may be in between; if the host was installed anew, forget its old key by "
        f"`ssh-keygen -f {known} -R '{where}'`, then run `testbed trust --limit {host.name}`",
    )


def with_retries(
    host: Host, endpoint: Endpoint, deadline: Deadline, called_off: threading.Event, once: Callable[[], T]
) -> T:
    """Try a connect again where the server dropped it, as a busy sshd does (MaxStartups).

    Raises:
        ConnectError: The deadline passed.
    """
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return once()
        except HostError:
            raise
        except (paramiko.SSHException, EOFError, OSError) as error:
            last = error
        # Hosts that were dropped together must not come back together.
        pause_s = random.uniform(pause_s, 2 * pause_s)
        if called_off.is_set() or deadline.remaining_s < pause_s:
            where = f"{endpoint.address}:{endpoint.port}"
            # What paramiko adds is that its socket was closed, by us.
            answer = str(last).partition("[Errno ")[0] or str(last) or type(last).__name__
            raise ConnectError(
                host.name,
                f"no SSH session with {where} within {deadline}: {answer}",
                hint="is it an SSH server, and is it overloaded?",
            ) from last
        called_off.wait(pause_s)
