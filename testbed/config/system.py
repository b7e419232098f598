"""What the inventory says of a host's system: packages, groups, clock, swap and disk."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from testbed.config.model import Count, Model

__all__ = ["Clock", "DebianPackage", "Disk", "GroupName", "Memory"]

DebianPackage = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9][a-z0-9+.-]+(?:=[A-Za-z0-9.+:~-]+)?$",
        json_schema_extra={"expected": "the name of a Debian package, such as `iperf3` or `iperf3=3.9-1`"},
    ),
]
GroupName = Annotated[
    str,
    Field(
        pattern=r"^[a-z_][a-z0-9_-]{0,31}$",
        json_schema_extra={"expected": "the name of a group, such as `video`"},
    ),
]
TimeServer = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9.:-]*[A-Za-z0-9])?$",
        max_length=253,
        json_schema_extra={"expected": "the address or the name of a time server"},
    ),
]


class Clock(Model):
    """How right a host's clock must be, and what keeps it so."""

    limit_ms: Annotated[float, Field(strict=True, gt=0)] = 50.0
    """How far the host's clock may be off this machine's; a host beyond it is not used."""
    ntp: Annotated[bool, Field(strict=True)] = False
    """Whether the host's time service (chrony, systemd-timesyncd or ntp) is started, and starts at boot."""
    servers: tuple[TimeServer, ...] = ()
    """The time servers that it asks; those that it is set up with where this is empty. They imply `ntp`."""


class Memory(Model):
    """What a host swaps to. Nothing is changed where a key is left out."""

    swap_mib: Annotated[Count, Field(le=1 << 20)] | None = None
    """The swap on disk that there should be at least; what is missing is added as a file."""
    swap_file: Annotated[
        str,
        Field(
            pattern=r"^/(?:[A-Za-z0-9_.-]+/)*[A-Za-z0-9_.-]+$",
            json_schema_extra={"expected": "an absolute path of letters, digits and `_.-`"},
        ),
    ] = "/var/swap.testbed"
    """Where that file lies."""
    zram: Annotated[bool, Field(strict=True)] | None = None
    """Whether memory is compressed into itself (JetPack's zram); as it is where this is left out."""


class Disk(Model):
    """The disk of a host."""

    free_gib: Annotated[float, Field(strict=True, ge=0)] = 2.0
    """How much room there should be in the user's home; less is warned of."""
