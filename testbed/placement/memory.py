"""How many bytes of experts a device can take, by what its host said of itself."""

from __future__ import annotations

from collections.abc import Mapping

from testbed.boards.kinds import memory_bandwidth_bytes_per_s
from testbed.config.inventory import Host, Inventory
from testbed.hosts.facts import Facts
from testbed.placement.place import DeviceCapacity

__all__ = ["MEMORY_SHARE", "RESERVE_BYTES", "capacities", "capacity"]

#: Of a board's memory, for experts; the rest is for torch, the system and activations.
MEMORY_SHARE = 0.6
#: Of what is free, kept back for the worker itself: Python, torch, activations.
RESERVE_BYTES = 1 << 30


def capacities(inventory: Inventory, facts: Mapping[str, Facts]) -> list[DeviceCapacity]:
    """Return what each device can hold and how fast it is, for the placement."""
    return [capacity(device, facts[device.name]) for device in inventory.devices]


def capacity(device: Host, facts: Facts) -> DeviceCapacity:
    """Return what one device can hold: a share of its memory, and never more than what is free but for a reserve.

    Its speed is that of reading memory, which bounds decoding.
    """
    total, free = facts.memory_bytes or 0, facts.memory_free_bytes
    room, why = int(MEMORY_SHARE * total), f"{MEMORY_SHARE:g} of its {total / 2**30:.1f} GiB"
    if facts.memory_bytes is None:
        why = "nobody knows how much memory it has"
    if free is not None and free - RESERVE_BYTES < room:
        room = max(0, free - RESERVE_BYTES)
        why = f"{free / 2**30:.1f} GiB are free and {RESERVE_BYTES / 2**30:g} GiB of it kept back"
    speed = device.pace.bytes_per_s if device.pace else memory_bandwidth_bytes_per_s(device.board)
    return DeviceCapacity(device.name, room, speed, why)
