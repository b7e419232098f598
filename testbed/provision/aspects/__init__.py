"""The aspects of a host, each a module of its own."""

from __future__ import annotations

from testbed.provision.aspect import Aspect, Site
from testbed.provision.aspects.access import Access
from testbed.provision.aspects.board import BoardKind
from testbed.provision.aspects.clock import Clock
from testbed.provision.aspects.clocks import Clocks
from testbed.provision.aspects.code import Code
from testbed.provision.aspects.disk import Disk
from testbed.provision.aspects.firewall import Firewall
from testbed.provision.aspects.folders import Folders
from testbed.provision.aspects.jtop import Jtop
from testbed.provision.aspects.keeper import Keeper
from testbed.provision.aspects.kernel import Kernel
from testbed.provision.aspects.memory import Memory
from testbed.provision.aspects.packages import Packages
from testbed.provision.aspects.power import Power
from testbed.provision.aspects.python import Python
from testbed.provision.aspects.torch import Torch
from testbed.provision.aspects.units import Units

__all__ = ["RUN_ITEMS", "aspects_of"]

RUN_ITEMS = frozenset({"folders", "code", "access", "python", "torch", "jtop"})
"""What a run puts right by itself. The rest is for `testbed provision`, which a person asks for."""


def aspects_of(site: Site) -> tuple[Aspect, ...]:
    """Return all aspects, in the order in which they are put right; undoing goes the other way round."""
    return (
        BoardKind(),
        Folders(),
        Code(site.code),
        Access(),
        Packages(site.bundle),
        Memory(),
        Disk(),
        Clock(),
        Python(site.bundle),
        Torch(site.bundle),
        Jtop(site.bundle),
        Units(),
        Keeper(),
        Kernel(),
        Firewall(),
        Power(site.reboot),
        Clocks(),
    )
