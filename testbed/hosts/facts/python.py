"""The Python that runs the payload code, and jtop."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from testbed.config.inventory import Host

__all__ = ["Environment", "Jtop", "Units", "required_modules"]


@dataclass(frozen=True)
class Jtop:
    """The jtop service of a board.

    Attributes:
        program: The path of the jtop program, or None where it is not installed.
        version: The version of jetson-stats that the payload code's Python sees.
        group: Whether there is a group `jtop`.
        member: Whether the user is in that group, or root.
        socket: Whether the service's socket is there.
        unit: Whether systemd knows the service.
        service_version: The version of jetson-stats that the service is installed with.
        own: Whether the payload code's Python has a jetson-stats of its own, besides the system's.
        error: What the client says where the service does not let it in or is of another version.
    """

    program: str | None = None
    version: str | None = None
    group: bool = False
    member: bool = False
    socket: bool = False
    unit: bool = False
    service_version: str | None = None
    own: bool = False
    error: str | None = None

    @property
    def running_version(self) -> str | None:
        """The version of the service that runs, which it tells a client of another version; else the installed one."""
        match = re.search(r"jtop service: \[([^\]]+)\]", self.error or "")
        return match[1] if match else self.service_version

    @property
    def mismatch(self) -> bool:
        """Whether client and service are known not to speak with each other: not of the same major.minor version."""
        running, version = self.running_version, self.version
        return running is not None and version is not None and _major_minor(running) != _major_minor(version)


@dataclass(frozen=True)
class Environment:
    """The Python that runs the payload code.

    Attributes:
        version: Its version, or None where it does not run.
        modules: The versions of the modules that it can import, of those asked for.
        errors: Why it cannot import the others.
        recipe: What a managed environment was made from.
        error: Why it does not run.
        torch_recipe: Where its torch came from, as a managed environment notes it.
        torch_built: The version of CUDA that torch was built for; None for a build without a GPU.
        torch_right: Whether torch got a small product of matrices right, on the GPU where it has one; None where it was
            not asked.
        torch_error: Why torch could not compute.
        base_version: The version of the interpreter that makes a managed environment.
        ensurepip: Whether that interpreter can put pip into an environment.
        glibc: The version of the C library that it was linked with.
    """

    version: str | None = None
    modules: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    recipe: Mapping[str, Any] | None = None
    error: str | None = None
    torch_recipe: Mapping[str, Any] | None = None
    torch_built: str | None = None
    torch_right: bool | None = None
    torch_error: str | None = None
    base_version: str | None = None
    ensurepip: bool | None = None
    glibc: str | None = None


@dataclass(frozen=True)
class Units:
    """How far the user's services can run under systemd.

    Attributes:
        manager: Whether the user has a systemd manager now.
        linger: Whether the user's manager runs without a login too.
        journal: Whether the user may read the journal, and so what services say.
        memory: Whether that manager can limit the memory of a service.
        keeper: The unit that starts the user's keeper of leases at boot; None where none is enabled.
    """

    manager: bool = False
    linger: bool = False
    journal: bool = False
    memory: bool = False
    keeper: str | None = None


def required_modules(host: Host) -> tuple[str, ...]:
    """Return the modules that the payload code of a host imports beyond the standard library."""
    return ("torch",) if host.is_device else ("torch", "transformers")


def _major_minor(version: str) -> list[str]:
    return version.split(".")[:2]
