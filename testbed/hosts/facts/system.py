"""What a host's system has: packages, groups, clock, swap, file systems, firewall."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from testbed.config.inventory import Host

__all__ = [
    "Access",
    "Disk",
    "Firewall",
    "Packages",
    "Swap",
    "SwapArea",
    "System",
    "TimeService",
    "Unit",
    "asked_packages",
    "package_name",
    "shapes_links",
    "system_of",
    "venv_package",
    "wanted_packages",
]


@dataclass(frozen=True)
class Packages:
    """Debian's packages.

    Attributes:
        apt: Whether the host has apt and dpkg.
        installed: The versions of those that are installed, of those asked for.
        interrupted: Whether dpkg was cut off and must be told to finish first.
    """

    apt: bool = False
    installed: Mapping[str, str] = field(default_factory=dict)
    interrupted: bool = False


@dataclass(frozen=True)
class Access:
    """What the user may do.

    Attributes:
        groups: The groups that there are.
        member: Those that the user is in.
        active: Those that this login has: a new membership takes effect with the next.
        sudo_program: Whether there is sudo.
    """

    groups: tuple[str, ...] = ()
    member: tuple[str, ...] = ()
    active: tuple[str, ...] = ()
    sudo_program: bool = True


@dataclass(frozen=True)
class Unit:
    """A service that systemd knows.

    Attributes:
        active: Its state, such as ``active``.
        enabled: Whether it starts at boot, such as ``enabled``.
    """

    active: str = ""
    enabled: str = ""


@dataclass(frozen=True)
class TimeService:
    """What keeps the host's clock right.

    Attributes:
        units: The time services that systemd knows, by name.
        running: The time services that run without systemd.
        synchronised: Whether the kernel counts its clock as synchronised; None where it does not say.
        error_s: How far off it may be at most by its own account.
        chrony_sources: Whether chrony reads the folder of sources that testbed would write to.
        drop_ins: The text of those configuration files of time services that testbed has written.
        folders: Which of the folders that these lie in there are.
    """

    units: Mapping[str, Unit] = field(default_factory=dict)
    running: tuple[str, ...] = ()
    synchronised: bool | None = None
    error_s: float | None = None
    chrony_sources: bool = False
    drop_ins: Mapping[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ()


@dataclass(frozen=True)
class SwapArea:
    """One area that the host swaps to.

    Attributes:
        path: Its file or device.
        size_bytes: Its size.
    """

    path: str
    size_bytes: int

    @property
    def zram(self) -> bool:
        """Whether it lies, compressed, in memory itself."""
        return self.path.startswith("/dev/zram")


@dataclass(frozen=True)
class Swap:
    """What the host swaps to.

    Attributes:
        areas: The areas in use.
        zram_units: The services that set up zram, by name.
    """

    areas: tuple[SwapArea, ...] = ()
    zram_units: Mapping[str, Unit] = field(default_factory=dict)


@dataclass(frozen=True)
class Disk:
    """One file system.

    Attributes:
        device: A number that only it has, on this host.
        free_bytes: What the user may still write.
        total_bytes: Its size.
        free_files: How many files the user may still make; None where there is no such limit.
        read_only: Whether nothing can be written.
    """

    device: int
    free_bytes: int
    total_bytes: int = 0
    free_files: int | None = None
    read_only: bool = False


@dataclass(frozen=True)
class Firewall:
    """The packet filter.

    Attributes:
        rules: Its rules as each program tells them (``iptables``, ``nft``); empty where they cannot be seen.
        ufw: Whether ufw is on.
    """

    rules: Mapping[str, str] = field(default_factory=dict)
    ufw: bool = False


@dataclass(frozen=True)
class System:
    """What a host's system has.

    Attributes:
        packages: Debian's packages.
        access: What the user may do.
        time: What keeps the clock right.
        swap: What it swaps to.
        disks: The file systems of the home (first), ``/``, ``/var`` and ``/tmp``.
        firewall: The packet filter.
    """

    packages: Packages = Packages()
    access: Access = Access()
    time: TimeService = TimeService()
    swap: Swap = Swap()
    disks: Mapping[str, Disk] = field(default_factory=dict)
    firewall: Firewall = Firewall()


def system_of(raw: Mapping[str, Any]) -> System:
    """Return what the probe says of the system; what it leaves out is not known."""
    access, time, swap = raw.get("access", {}), raw.get("time", {}), raw.get("swap", {})
    kernel = time.get("kernel") or {}
    return System(
        packages=Packages(**raw.get("packages", {})),
        access=Access(
            groups=tuple(access.get("groups", ())),
            member=tuple(access.get("member", ())),
            active=tuple(access.get("active", ())),
            sudo_program=access.get("sudo_program", True),
        ),
        time=TimeService(
            units=_units(time.get("units", {})),
            running=tuple(time.get("running", ())),
            synchronised=kernel.get("synchronised"),
            error_s=kernel.get("error_s"),
            chrony_sources=time.get("chrony_sources", False),
            drop_ins=time.get("drop_ins", {}),
            folders=tuple(time.get("folders", ())),
        ),
        swap=Swap(
            areas=tuple(SwapArea(area["path"], area["bytes"]) for area in swap.get("areas", ())),
            zram_units=_units(swap.get("zram_units", {})),
        ),
        disks={path: Disk(**about) for path, about in raw.get("disks", {}).items()},
        firewall=Firewall(**raw.get("firewall", {})),
    )


def _units(raw: Mapping[str, Mapping[str, str]]) -> dict[str, Unit]:
    return {name: Unit(**about) for name, about in raw.items()}


def shapes_links(host: Host) -> bool:
    """Return whether links are to be shaped in a host's kernel."""
    return host.network.shaping in ({"device"} if host.is_device else {"bs", "device"})


def wanted_packages(host: Host) -> tuple[str, ...]:
    """Return the Debian packages that a host should have: the inventory's, and what testbed runs there.

    Whatever shapes links in its kernel needs iproute2, and what records a radio's state needs iw.
    """
    records = host.is_device and host.network.shaping == "none" and host.network.wifi_interface is not None
    ours = [*(["iproute2"] if shapes_links(host) else []), *(["iw"] if records else [])]
    named = {package_name(package) for package in host.packages}
    return (*dict.fromkeys(host.packages), *(package for package in ours if package not in named))


def venv_package(host: Host) -> str | None:
    """Return the package without which Debian's Python makes no environment; None where testbed makes none."""
    match = re.fullmatch(r"(?:/usr/bin/)?(python3(?:\.\d+)?)", host.python.interpreter)
    return f"{match[1]}-venv" if match and host.python.manage else None


def asked_packages(host: Host) -> list[str]:
    """Return the names of the packages whose state the probe tells."""
    venv = venv_package(host)
    own = [venv, venv.removesuffix("-venv")] if venv else []
    return list(dict.fromkeys([*map(package_name, wanted_packages(host)), *own]))


def package_name(wanted: str) -> str:
    """Return the name in what is wanted, which may end with a version: ``iperf3=3.9-1``."""
    return wanted.partition("=")[0]
