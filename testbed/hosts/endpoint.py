"""Where a host's SSH server is and who logs in: the inventory first, then ``~/.ssh/config``."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fabric
import paramiko

from testbed.config.inventory import Host
from testbed.errors import ConnectError
from testbed.hosts.dial import gateway_command

__all__ = ["Endpoint", "SshSettings", "known_name", "read_known_hosts"]

# Without a handler of its own, Python prints a library's warnings and tracebacks on standard error.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


class SshSettings:
    """The user's and the system's SSH configuration, read once.

    Args:
        known_hosts: The lab's file of host keys.
    """

    def __init__(self, known_hosts: Path) -> None:
        self.known_hosts = known_hosts
        read = fabric.Config(lazy=True)
        read.load_ssh_config()
        self._ssh_config = read.base_ssh_config

    def config(self) -> fabric.Config:
        """Return a configuration for one connection, which changes it: threads that shared one would find it empty.

        Lazy: of fabric's own configuration files, nothing is wanted here.
        """
        return fabric.Config(lazy=True, ssh_config=self._ssh_config)

    def endpoint(self, host: Host) -> Endpoint:
        """Return where a host's SSH server is.

        Raises:
            ConnectError: The host's key file cannot be read.
        """
        given = host.model_fields_set
        asked = self._ssh_config.lookup(host.address)
        connection = fabric.Connection(
            host=host.address,
            user=host.user if "user" in given else asked.get("user", host.user),
            port=host.port if "port" in given else int(asked.get("port", host.port)),
            gateway=False if host.gateway else None,
            config=self.config(),
        )
        gateway, jump = None, None
        if host.gateway:
            gateway = gateway_command(host.gateway, connection.host, connection.port)
        elif isinstance(connection.gateway, str):
            gateway = connection.gateway if connection.gateway.lower() != "none" else None
        elif connection.gateway:
            jump = connection.gateway
        only_these = asked.get("identitiesonly", "no").lower() == "yes"
        connect: dict[str, Any] = {"allow_agent": not only_these, "look_for_keys": not only_these}
        if host.key_file is not None:
            try:
                there = host.key_file.is_file()
            except OSError as error:
                raise ConnectError(
                    host.name,
                    f"the key file {host.key_file} cannot be read: {error.strerror}",
                    hint="an emulated lab and its keys belong to root: run this as root",
                ) from error
            if not there:
                raise ConnectError(
                    host.name,
                    f"there is no key file {host.key_file}",
                    hint="an emulated lab makes its own: testbed emulate up; elsewhere see `key_file` in the inventory",
                )
            connect |= {"key_filename": [str(host.key_file)], "look_for_keys": False}
        elif "key_filename" in connection.connect_kwargs:  # an IdentityFile of ~/.ssh/config
            connect["key_filename"] = list(connection.connect_kwargs["key_filename"])
        return Endpoint(connection.host, connection.port, connection.user, gateway, jump, connect)


@dataclass(frozen=True)
class Endpoint:
    """Where a host's SSH server is and who logs in.

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
    connect: dict[str, Any]

    @property
    def known_name(self) -> str:
        """The name of the server in a file of host keys."""
        return known_name(self.address, self.port)


def known_name(address: str, port: int) -> str:
    """Return the name that a server has in a file of host keys, as OpenSSH writes it."""
    return address if port == paramiko.config.SSH_PORT else f"[{address}]:{port}"


def read_known_hosts(file: Path) -> paramiko.HostKeys:
    """Return the recorded host keys; none where there is no file."""
    keys = paramiko.HostKeys()
    if file.exists():
        keys.load(str(file))
    return keys
