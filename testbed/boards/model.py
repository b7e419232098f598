"""What is known of a board, as plain data; ``kinds`` and ``releases`` read it from files.

Only the standard library is needed here, so that the keeper of an emulated lab stays small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "BYTES_EFFICIENCY",
    "OPS_EFFICIENCY",
    "Board",
    "PowerMode",
    "Rail",
    "RailPower",
    "Release",
    "Speed",
    "board_from_json",
]

OPS_EFFICIENCY = 0.4
"""The part of the peak operations that a good kernel reaches."""
BYTES_EFFICIENCY = 0.7
"""The part of the peak memory rate that a good kernel reaches."""


@dataclass(frozen=True)
class Release:
    """A major release of Linux for Tegra.

    Attributes:
        major: Its number, such as 36.
        jetpack: The major release of JetPack that it is in.
        ubuntu: The release of Ubuntu below it.
        codename: That one's code name.
        kernel: The version of its kernel.
        python: The version of its ``python3``.
        missing: Options of the kernel that testbed could use and that it is built without.
        versions: The releases of JetPack, by the releases of Linux for Tegra that they come with.
    """

    major: int
    jetpack: str
    ubuntu: str
    codename: str
    kernel: str
    python: str
    missing: tuple[str, ...]
    versions: Mapping[str, str]

    def jetpack_of(self, l4t: str) -> str:
        """Return the JetPack of an exact version such as ``36.4.3``; its major version where in doubt."""
        parts = l4t.split(".")
        names = (self.versions.get(".".join(parts[:length])) for length in (3, 2))
        return next((name for name in names if name), self.jetpack)


@dataclass(frozen=True)
class RailPower:
    """What one rail draws.

    Attributes:
        idle_mw: Power at no load.
        active_mw: What full load adds.
    """

    idle_mw: float
    active_mw: float

    def at(self, level: float) -> float:
        """Return the power in mW at a lagged load."""
        return self.idle_mw + self.active_mw * level


_NOTHING = RailPower(0, 0)


@dataclass(frozen=True)
class Rail:
    """One channel of a power monitor.

    Attributes:
        label: The rail's name, ``NC`` where nothing is connected.
        chip: The monitor's I2C address, such as ``1-0040``.
        channel: 1, 2 or 3; 1 on an INA238.
        millivolts: The rail's voltage.
        power: What it draws.
        in_total: Whether the rail is a part of the board's total.
        sensor: The kind of monitor: ``ina3221`` shows mV and mA of each channel, ``ina238`` microwatts.
    """

    label: str
    chip: str
    channel: int
    millivolts: int = 5000
    power: RailPower = _NOTHING
    in_total: bool = False
    sensor: str = "ina3221"


@dataclass(frozen=True)
class PowerMode:
    """One entry of ``/etc/nvpmodel.conf``.

    Attributes:
        id: Its number; another board may have another number for the same name.
        name: Its name.
        cpus: How many cores are online.
        cpu_mhz: The cap of the cores.
        gpu_mhz: The cap of the GPU.
        tpc_pg_mask: The mask of switched-off GPU clusters. A change of it needs a reboot.
    """

    id: int
    name: str
    cpus: int
    cpu_mhz: int
    gpu_mhz: int
    tpc_pg_mask: int = 0


@dataclass(frozen=True)
class Speed:
    """How fast something computes: both terms of a roofline."""

    ops_per_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Board:
    """One kind of board.

    Attributes:
        key: Its name in an inventory.
        model: What its device tree calls it.
        compatible: The device tree's list of compatible names, most exact first.
        l4t: The L4T release, such as ``36.4.3``.
        jetpack: The JetPack release that goes with it.
        capability: The compute capability of its GPU, such as ``8.7``.
        cpus: CPU cores.
        memory_mib: Memory, shared by CPU and GPU.
        gpu: The GPU's device node and name, such as ``17000000.gpu`` and ``gpu``.
        cpu_khz: Least and greatest clock of the cores.
        gpu_hz: Least and greatest clock of the GPU.
        emc_hz: The memory's clock.
        rails: Every channel of every power monitor, the unconnected ones too.
        zones: The thermal zones.
        modes: The power modes.
        start_mode: The number of the mode that the board starts in.
        tau_s: The time constant of its power.
        ohm_k_per_w: Its temperature above the room's, per watt.
        peak_ops_per_s: Dense FP16 operations of the GPU.
        peak_bytes_per_s: What the memory can deliver.
    """

    key: str
    model: str
    compatible: tuple[str, ...]
    l4t: str
    jetpack: str
    capability: str
    cpus: int
    memory_mib: int
    gpu: tuple[str, str]
    cpu_khz: tuple[int, int]
    gpu_hz: tuple[int, int]
    emc_hz: int
    rails: tuple[Rail, ...]
    zones: tuple[str, ...]
    modes: tuple[PowerMode, ...]
    start_mode: int
    tau_s: float
    ohm_k_per_w: float
    peak_ops_per_s: float
    peak_bytes_per_s: float

    def mode(self, number: int) -> PowerMode:
        """Return the power mode of a number; the one that the board starts in where it has none of that number."""
        found = {mode.id: mode for mode in self.modes}
        return found.get(number, found[self.start_mode])

    @property
    def live_rails(self) -> tuple[Rail, ...]:
        """The channels with something connected."""
        return tuple(rail for rail in self.rails if rail.label != "NC")

    @property
    def total_rule(self) -> str:
        """Which rails add up to the board's total, such as ``VDD_IN``."""
        return "+".join(rail.label for rail in self.rails if rail.in_total)

    @property
    def total(self) -> RailPower:
        """What the whole board draws."""
        parts = [rail.power for rail in self.rails if rail.in_total]
        return RailPower(sum(part.idle_mw for part in parts), sum(part.active_mw for part in parts))

    def speed(self, scale: float = 1.0) -> Speed:
        """Return what the board reaches, divided by a scale.

        Args:
            scale: How many times more weights each expert is meant to have than it has. With 100, an
                expert takes as long as one a hundred times its size would take on the real board.
        """
        return Speed(
            self.peak_ops_per_s * OPS_EFFICIENCY / scale, self.peak_bytes_per_s * BYTES_EFFICIENCY / scale
        )


def board_from_json(data: dict[str, Any]) -> Board:
    """Return the board of plain data that ``dataclasses.asdict`` has made of one."""
    rails = tuple(Rail(**{**rail, "power": RailPower(**rail["power"])}) for rail in data["rails"])
    modes = tuple(PowerMode(**mode) for mode in data["modes"])
    pairs = {key: tuple(data[key]) for key in ("compatible", "gpu", "cpu_khz", "gpu_hz", "zones")}
    return Board(**{**data, **pairs, "rails": rails, "modes": modes})
