"""The keys of the lab's hosts: fetched once, shown, recorded. A changed key is never replaced here."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import paramiko

from testbed.config.inventory import Host
from testbed.hosts.connect import close_jump, open_socket, unlocked_after, with_retries
from testbed.hosts.deadline import Deadline
from testbed.hosts.dial import gateway_error
from testbed.hosts.endpoint import Endpoint, SshSettings

__all__ = ["FoundKey", "fetch_key", "record_keys"]

State = Literal["new", "known", "changed"]


@dataclass(frozen=True)
class FoundKey:
    """The key that a host showed.

    Attributes:
        host: The host's name in the inventory.
        known_name: Its name in the file of host keys.
        kind: The kind of key, such as ``ssh-ed25519``.
        key: The key in base 64.
        fingerprint: Its SHA256 fingerprint.
        state: Whether it is new, the recorded one or another than the recorded one.
        recorded: The fingerprints of the recorded keys.
    """

    host: str
    known_name: str
    kind: str
    key: str
    fingerprint: str
    state: State
    recorded: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the finding as plain data."""
        return {
            "host": self.host,
            "known_name": self.known_name,
            "kind": self.kind,
            "fingerprint": self.fingerprint,
            "state": self.state,
            "recorded": list(self.recorded),
        }


def fetch_key(
    host: Host, settings: SshSettings, timeout_s: float, called_off: threading.Event | None = None
) -> FoundKey:
    """Ask a host for its key, without logging in.

    Args:
        host: The host.
        settings: The SSH configuration and the file of host keys.
        timeout_s: The most seconds that this may take.
        called_off: Set by another thread to end the wait for a host that does not answer.

    Raises:
        ConnectError: The host does not answer.
    """
    deadline, called_off = Deadline(timeout_s), called_off or threading.Event()
    endpoint = settings.endpoint(host)
    recorded = settings.recorded_keys(endpoint.known_name)
    key = with_retries(
        host,
        endpoint,
        deadline,
        called_off,
        lambda: _key(host, endpoint, list(recorded), deadline, called_off),
    )
    state: State = "new"
    if recorded:
        state = "known" if key in recorded.values() else "changed"
    prints = tuple(f"{kind} {other.fingerprint}" for kind, other in recorded.items())
    return FoundKey(
        host.name, endpoint.known_name, key.get_name(), key.get_base64(), key.fingerprint, state, prints
    )


def _key(
    host: Host, endpoint: Endpoint, kinds: Sequence[str], deadline: Deadline, called_off: threading.Event
) -> paramiko.PKey:
    try:
        sock = open_socket(host, endpoint, deadline, called_off)
        return _key_over(sock, host, endpoint, kinds, deadline)
    finally:
        close_jump(endpoint.jump)


def _key_over(
    sock: Any, host: Host, endpoint: Endpoint, kinds: Sequence[str], deadline: Deadline
) -> paramiko.PKey:
    transport = paramiko.Transport(sock)
    transport.banner_timeout = deadline.remaining_s
    options = transport.get_security_options()
    # A server has keys of several kinds: ask for a recorded one, or another would look like a changed one.
    wanted = [kind for kind in options.key_types if kind.replace("rsa-sha2-512", "ssh-rsa") in kinds]
    options.key_types = (*wanted, *(kind for kind in options.key_types if kind not in wanted))
    try:
        with unlocked_after(deadline, transport.close):
            transport.start_client(timeout=deadline.remaining_s)
            return transport.get_remote_server_key()
    except (paramiko.SSHException, EOFError, OSError) as error:
        transport.close()
        sock.close()
        through = gateway_error(sock, host.name, f"{endpoint.address}:{endpoint.port}", deadline)
        if through is None:
            raise
        raise through from error
    finally:
        transport.close()
        sock.close()


def record_keys(file: Path, keys: Sequence[FoundKey]) -> None:
    """Add keys to a file of host keys, which stays as it is otherwise.

    Args:
        file: The file; made where there is none.
        keys: The keys to add.
    """
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    if before and not before.endswith("\n"):
        before += "\n"
    lines = "".join(f"{key.known_name} {key.kind} {key.key}\n" for key in keys)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        part.write_text(before + lines, encoding="utf-8")
        part.replace(file)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
