"""What this machine is, as far as testbed cares. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["KeyFile", "Machine", "Ssh", "Sudo", "Torch"]

Sudo = Literal["root", "free", "asks", "none"]
"""How commands become root's: they are already, without or with a password, or not at all."""


@dataclass(frozen=True)
class Torch:
    """The torch of this Python.

    Attributes:
        version: Its version, or None where it cannot be imported.
        cuda: The CUDA that it was built for; None for a CPU build.
        gpu: The name of the GPU that it computes on, or None.
        right: Whether a small product came out right.
        error: Why it cannot be imported.
    """

    version: str | None = None
    cuda: str | None = None
    gpu: str | None = None
    right: bool = False
    error: str = ""


@dataclass(frozen=True)
class KeyFile:
    """A private key that logs in to hosts.

    Attributes:
        path: Where it is.
        mode: Its permission bits; None where there is no such file, or it cannot be read.
        locked: Whether it has a passphrase.
        error: Why it cannot be used.
        hosts: The hosts of the inventory that name it; none where it is one of the user's own keys.
    """

    path: str
    mode: int | None = None
    locked: bool = False
    error: str = ""
    hosts: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether it logs in without anybody being asked."""
        return self.mode is not None and not self.locked and not self.error


@dataclass(frozen=True)
class Ssh:
    """What logs in to hosts.

    Attributes:
        agent: Whether there is an SSH agent; None where the environment names none.
        agent_keys: How many keys it holds.
        keys: The user's own keys and those that the inventory names.
        unnamed: The hosts of the inventory that name no key; None where no inventory was given.
    """

    agent: bool | None = None
    agent_keys: int = 0
    keys: tuple[KeyFile, ...] = ()
    unnamed: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Machine:
    """What this machine is.

    What could only be tried as root and was not is None as a whole. Where a mapping has a reason for a name, the thing
    does not work; with None it does.

    Attributes:
        system: The operating system with its version.
        kernel: The kernel's name and release.
        python: The version of the Python that runs testbed.
        executable: Its path.
        cpu_count: How many processors this process may use.
        memory_bytes: The memory that processes here may use.
        memory_free_bytes: How much of it is free.
        disk_free_bytes: The free space of the current folder, where results are written.
        sudo: How commands become root's.
        capabilities_missing: The capabilities that root has not in this container, of those that are needed.
        programs: Where each program is; None for one that is not there.
        packages: The installed version of each package that is asked for; None for one that is not there.
        packages_dev: Which of those only the tests need.
        pinned: The versions that the project is tested with.
        torch: The torch of this Python.
        namespaces: Why a kind of namespace cannot be had.
        interfaces: Why a kind of network interface of an emulated lab cannot be had.
        overlay: Why there is no overlay filesystem; empty where there is.
        link_kinds: Why a part of the kernel that shapes links cannot be had.
        link_backends: Why a way of shaping links does not work.
        cgroups: What of the control groups cannot be had.
        interpreters: The path of each Python that boards have; None for one that is not there.
        browser: The path of the browser; None where it or its driver is not there.
        stock_kernel: The path of Debian's kernel as a program.
        ssh: What logs in to hosts.
        clock_synchronised: Whether the kernel takes its clock for synchronised; None where it does not say.
        clock_error_s: How far off the kernel thinks that it may be, in seconds.
    """

    system: str
    kernel: str
    python: str
    executable: str
    cpu_count: int
    memory_bytes: int
    memory_free_bytes: int
    disk_free_bytes: int
    sudo: Sudo
    capabilities_missing: tuple[str, ...] = ()
    programs: Mapping[str, str | None] = field(default_factory=dict)
    packages: Mapping[str, str | None] = field(default_factory=dict)
    packages_dev: frozenset[str] = frozenset()
    pinned: Mapping[str, str] = field(default_factory=dict)
    torch: Torch = Torch()
    namespaces: Mapping[str, str | None] | None = None
    interfaces: Mapping[str, str | None] | None = None
    overlay: str | None = None
    link_kinds: Mapping[str, str | None] | None = None
    link_backends: Mapping[str, str | None] | None = None
    cgroups: tuple[str, ...] = ()
    interpreters: Mapping[str, str | None] = field(default_factory=dict)
    browser: str | None = None
    stock_kernel: str | None = None
    ssh: Ssh = Ssh()
    clock_synchronised: bool | None = None
    clock_error_s: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the facts as plain data."""
        return asdict(self) | {"packages_dev": sorted(self.packages_dev)}

    def describe(self) -> str:
        """Return what it is in one line."""
        gib = 2**30
        who = {"root": "as root", "free": "sudo", "asks": "sudo with a password", "none": "no sudo"}
        return ", ".join(
            [
                self.system,
                self.kernel,
                f"Python {self.python}",
                f"{self.cpu_count} CPUs",
                f"{self.memory_bytes / gib:.1f} GiB memory ({self.memory_free_bytes / gib:.1f} free)",
                f"{self.disk_free_bytes / gib:.1f} GiB disk free",
                who[self.sudo],
            ]
        )
