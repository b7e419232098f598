"""Where a host's SSH server is and who logs in: the inventory first, then ``~/.ssh/config``."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paramiko

from testbed.config.inventory import Host
from testbed.errors import ConnectError
from testbed.hosts.dial import gateway_command

if TYPE_CHECKING:
    import fabric

__all__ = ["Endpoint", "SshSettings", "known_name"]

# Without a handler of its own, Python prints a library's warnings and tracebacks on standard error.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


class SshSettings:
    """The user's and the system's SSH configuration, read once.

    Args:
        known_hosts: The lab's file of host keys.
    """

    def __init__(self, known_hosts: Path) -> None:
        self.known_hosts = known_hosts
        self._ssh_config = paramiko.SSHConfig()
        for path in (Path("~/.ssh/config").expanduser(), Path("/etc/ssh/ssh_config")):
            if path.is_file():
                with path.open(encoding="utf-8", errors="replace") as file:
                    self._ssh_config.parse(file)
        self._lock = threading.Lock()
        self._read: tuple[int, int, int] | None = None
        self._keys = paramiko.HostKeys()

    def recorded_keys(self, name: str) -> dict[str, paramiko.PKey]:
        """Return the host keys that are recorded for a server, by kind. The file is read again when it has changed.

        Args:
            name: The server's name in the file.
        """
        with self._lock:
            try:
                about = self.known_hosts.stat()
            except FileNotFoundError:
                return {}
            mark = (about.st_ino, about.st_size, about.st_mtime_ns)
            if mark != self._read:
                self._keys = paramiko.HostKeys(str(self.known_hosts))
                self._read = mark
            return dict(self._keys.lookup(name) or {})

    def endpoint(self, host: Host) -> Endpoint:
        """Return where a host's SSH server is.

        Raises:
            ConnectError: The host's key file cannot be read.
        """
        given = host.model_fields_set
        asked = self._ssh_config.lookup(host.address)
        address = asked["hostname"]
        user = host.user if "user" in given else asked.get("user", host.user)
        port = host.port if "port" in given else int(asked.get("port", host.port))
        gateway, jump = None, None
        if host.gateway:
            gateway = gateway_command(host.gateway, address, port)
        else:
            gateway, jump = self._way_to(address, asked)
        only_these = asked.get("identitiesonly", "no").lower() == "yes"
        connect: dict[str, Any] = {"allow_agent": not only_these, "look_for_keys": not only_these}
        if host.key_file is not None:
            _check_key_file(host, host.key_file)
            connect |= {"key_filename": [str(host.key_file)], "look_for_keys": False}
        elif "identityfile" in asked:
            connect["key_filename"] = list(asked["identityfile"])
        return Endpoint(address, port, user, gateway, jump, connect)

    def _way_to(self, address: str, asked: Mapping[str, Any]) -> tuple[str | None, fabric.Connection | None]:
        """Return the command, or the last host on the way, by which a host is reached; neither as a rule."""
        hops = asked.get("proxyjump", "none")
        if hops.lower() == "none":
            command = asked.get("proxycommand")
            return (None if command is None or command.lower() == "none" else command), None
        import fabric  # a tenth of what the command takes where nothing has to change, so only who needs it waits

        last: fabric.Connection | None = None
        for hop in hops.split(","):  # in OpenSSH's order: fabric would begin with the last one
            user, _, place = hop.strip().rpartition("@")
            name, _, port = place.partition(":") if place.count(":") == 1 else (place, "", "")
            if name == address:  # by a pattern in the file: the host on the way is not reached through itself
                return None, None
            last = fabric.Connection(
                name,
                user=user or None,
                port=int(port) if port else None,
                gateway=last,
                config=fabric.Config(lazy=True, ssh_config=self._ssh_config),
            )
        return None, last


def _check_key_file(host: Host, key_file: Path) -> None:
    try:
        there = key_file.is_file()
    except OSError as error:
        raise ConnectError(
            host.name,
            f"the key file {key_file} cannot be read: {error.strerror}",
            hint="an emulated lab and its keys belong to root: run this as root",
        ) from error
    if not there:
        raise ConnectError(
            host.name,
            f"there is no key file {key_file}",
            hint="an emulated lab makes its own: `testbed emulate up` with this inventory; else see `key_file` there",
        )


@dataclass(frozen=True)
class Endpoint:
    """Where an SSH server is and who logs in.

    Attributes:
        address: The address or host name.
        port: The port.
        user: The user.
        gateway: A command that leads to the server, its fields filled in.
        jump: A connection of ``~/.ssh/config`` (ProxyJump) that leads to the server.
        connect: What else ``SSHClient.connect`` is given.
    """

    address: str
    port: int
    user: str
    gateway: str | None
    jump: fabric.Connection | None
    connect: Mapping[str, Any]

    @property
    def known_name(self) -> str:
        """The name of the server in a file of host keys."""
        return known_name(self.address, self.port)


def known_name(address: str, port: int) -> str:
    """Return the name that a server has in a file of host keys, as OpenSSH writes it."""
    return address if port == paramiko.config.SSH_PORT else f"[{address}]:{port}"
