"""The ``emulation:`` section of an inventory, and the lab that follows from it."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from testbed.boards.kinds import Kind, kind, kinds
from testbed.boards.releases import L4tVersion, release_of
from testbed.config.inventory import Host, Inventory, load_inventory
from testbed.config.model import Count, Model, Name, validate
from testbed.config.yaml import Document, read_yaml
from testbed.emulation.pythons import find_python
from testbed.emulation.spec import HostSpec, LabSpec
from testbed.errors import InputError

__all__ = ["Emulation", "Limits", "lab_spec", "load_lab", "needed_folders"]

_PLAIN_MEMORY_MIB = 16384


class Limits(Model):
    """What one host differs in."""

    cpu_cores: Annotated[float, Field(ge=0.05)] | None = None
    """CPU that the host may use, in cores of this machine; the board's count if left out."""
    memory_mib: Annotated[int, Field(strict=True, ge=256)] | None = None
    """Memory that the host may use; the board's if left out."""
    disk_mib: Annotated[int, Field(strict=True, ge=64)] | None = None
    """What the host may write; it is held in memory."""
    noise_percent: Annotated[float, Field(ge=0, le=50)] | None = None
    """The standard deviation of its power readings, in per cent."""
    l4t: L4tVersion | None = None
    """The release of its system; the one that the kind of board comes with if left out."""
    jtop: Annotated[bool, Field(strict=True)] | None = None
    """Whether it runs the jtop service; what `emulation.jtop` says if left out."""
    sudo: Literal["nopasswd", "password", "none"] | None = None
    """How the user who logs in, if not root, may use sudo; without a password if left out."""
    systemd: Annotated[bool, Field(strict=True)] | None = None
    """Whether process 1 is systemd; what `emulation.systemd` says if left out."""
    clock_offset_s: Annotated[float, Field(ge=-86400, le=86400)] = 0.0
    """How far the host's clock is ahead."""


class Emulation(Model):
    """How the lab's hosts are emulated."""

    network: Annotated[
        str, Field(json_schema_extra={"expected": "an IPv4 network, such as 10.83.0.0/24"})
    ] = "10.83.0.0/24"
    """The lab's own network; its last address but one is the bridge's."""
    tick_hz: Annotated[int, Field(strict=True, ge=5, le=200)] = 50
    """How often power, temperature and load are brought up to date."""
    jtop: Annotated[bool, Field(strict=True)] = True
    """Whether boards run the jtop service."""
    systemd: Annotated[bool, Field(strict=True)] = False
    """Whether process 1 of each host is systemd instead of a small supervisor."""
    seed: Annotated[int, Field(strict=True)] = 0
    """The seed of all noise."""
    noise_percent: Annotated[float, Field(ge=0, le=50)] = 0.0
    """The standard deviation of power readings, in per cent; none by default."""
    disk_mib: Count = 4096
    """What each host may write to its private overlay; it is held in memory."""
    hosts: dict[Name, Limits] = Field(default={})
    """Hosts that differ from this."""


def load_lab(path: Path) -> LabSpec:
    """Read an inventory file and return the lab that it describes.

    Args:
        path: The inventory file.

    Raises:
        InputError: The file holds a mistake, or no ``emulation:`` section.
    """
    inventory = load_inventory(path)
    document = read_yaml(path)
    if not isinstance(document.data, dict) or inventory.emulation is None:
        raise InputError.at(
            path, None, "emulation", "this section is missing: the inventory describes no emulated lab"
        )
    settings = validate(
        document,
        Emulation,
        data=document.data["emulation"] or {},
        relocate=lambda place: ("emulation", *place),
    )
    return lab_spec(inventory, settings, document)


def lab_spec(inventory: Inventory, settings: Emulation, document: Document) -> LabSpec:
    """Return the lab of an inventory.

    Args:
        inventory: The inventory.
        settings: Its ``emulation:`` section.
        document: The file that both come from, for the lines of mistakes.

    Raises:
        InputError: Hosts or settings do not fit an emulated lab; one line for each mistake.
    """
    problems = []
    try:
        network = ipaddress.IPv4Network(settings.network)
    except ValueError as error:
        raise InputError(
            document.problem(("emulation", "network"), f"an IPv4 network was expected: {error}")
        ) from None
    if network.prefixlen > 28:
        problems.append(document.problem(("emulation", "network"), "a prefix of at most 28 was expected"))
    gateway = network.broadcast_address - 1
    for name, own in settings.hosts.items():
        place = ("emulation", "hosts", name)
        if name not in inventory.hosts:
            problems.append(document.problem(place, "no host of that name in `hosts`"))
        else:
            limits = _limit_problems(inventory.hosts[name], own)
            problems += [document.problem((*place, key), text) for key, text in limits]
    hosts = []
    for name, host in inventory.hosts.items():
        found = _host_problems(host, network, gateway)
        problems += [document.problem(("hosts", name, key), text) for key, text in found]
        if not found:
            hosts.append(_host_spec(host, settings))
    if problems:
        raise InputError(
            problems[0] if len(problems) == 1 else f"{document.file}: {len(problems)} mistakes",
            problems=problems if len(problems) > 1 else (),
        )
    return LabSpec(
        lab=inventory.lab,
        prefix=network.prefixlen,
        gateway=str(gateway),
        tick_hz=settings.tick_hz,
        seed=settings.seed,
        interpreter=sys.executable,
        needed=needed_folders(),
        hosts=tuple(hosts),
    )


def _limit_problems(host: Host, own: Limits) -> Iterator[tuple[str, str]]:
    """Yield what one host cannot differ in, by key."""
    known, plain = kind(host.board or ""), "the base station of an emulated lab is a plain machine without"
    if own.sudo is not None and host.user == "root":
        yield (
            "sudo",
            f"a host whose user is not root was expected: root logs in to {host.name} and needs no sudo",
        )
    if own.jtop is not None and not host.is_device:
        yield "jtop", f"a device was expected: {plain} jtop"
    if own.l4t is not None and not host.is_device:
        yield "l4t", f"a device was expected: {plain} such a release"
    elif own.l4t is not None and isinstance(known, Kind) and not known.runs(own.l4t):
        majors = ", ".join(map(str, known.l4t.majors))
        yield "l4t", f"a release that runs on the {known.title} was expected (L4T {majors}), not {own.l4t}"


def _host_problems(
    host: Host, network: ipaddress.IPv4Network, gateway: ipaddress.IPv4Address
) -> list[tuple[str, str]]:
    problems = []
    try:
        address = ipaddress.IPv4Address(host.address)
    except ValueError:
        address = None
    if address is None or address not in network.hosts():
        problems.append(
            ("address", f"an address of the lab's network {network} was expected, not {host.address}")
        )
    elif address == gateway:
        problems.append(("address", f"{gateway} is the bridge's own address"))
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,30}", host.user):
        problems.append(("user", "a user name of small letters, digits, dashes and underscores was expected"))
    known = kind(host.board or "")
    if host.is_device and known is None:
        close = difflib.get_close_matches(host.board or "", kinds(), n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(kinds())}"
        problems.append(("board", f"a board that can be emulated was expected; {hint}"))
    if not host.is_device and host.board is not None:
        problems.append(("board", "the base station of an emulated lab is a plain machine without a board"))
    return problems


def _host_spec(host: Host, settings: Emulation) -> HostSpec:
    own = settings.hosts.get(host.name, Limits())
    known = kind(host.board or "")
    board = known.at(own.l4t) if isinstance(known, Kind) else None
    cores = own.cpu_cores or (board.cpus if board else os.cpu_count() or 1)
    release = release_of(board.l4t) if board else None
    memory_mib = own.memory_mib or (board.memory_mib if board else _PLAIN_MEMORY_MIB)
    return HostSpec(
        name=host.name,
        address=host.address,
        port=host.port,
        board=host.board or "",
        cpu_cores=float(cores),
        memory_mib=memory_mib,
        disk_mib=own.disk_mib or settings.disk_mib,
        noise_percent=settings.noise_percent if own.noise_percent is None else own.noise_percent,
        user=host.user,
        sudo=own.sudo or "nopasswd",
        jtop=board is not None and (settings.jtop if own.jtop is None else own.jtop),
        systemd=settings.systemd if own.systemd is None else own.systemd,
        kind=board,
        clock_offset_s=own.clock_offset_s,
        release=release,
        python=find_python(release.python) if release else None,
    )


def needed_folders() -> tuple[str, ...]:
    """Return the folders without which this Python and this project do not run."""
    found = {sys.prefix, sys.base_prefix, str(Path(__file__).absolute().parents[2])}
    found |= {os.path.realpath(path) for path in found}
    return tuple(sorted(found - {"/"}))
