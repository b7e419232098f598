"""The kinds of boards that can be emulated, as one table.

Where the figures come from:

- Model names, CPU counts, memory, clocks and the two peaks are the module data sheets'.
  ``peak_bytes_per_s`` is the LPDDR's (bus width x transfer rate); ``peak_ops_per_s`` is the GPU's dense
  FP16 (a quarter of its sparse INT8 figure).
- The rails, their I2C addresses and channels are those of the developer kits' INA3221 monitors.
- Idle and active power are typical figures in the power mode that the board starts in, chosen so that
  full load comes near that mode's budget. They and the time constants are settings of a model, not
  measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from testbed.emulation.power import RailPower

__all__ = ["BOARDS", "BYTES_EFFICIENCY", "OPS_EFFICIENCY", "Board", "PowerMode", "Rail", "Speed"]

OPS_EFFICIENCY = 0.4
"""The part of the peak operations that a good kernel reaches."""
BYTES_EFFICIENCY = 0.7
"""The part of the peak memory rate that a good kernel reaches."""


_NOTHING = RailPower(0, 0)


@dataclass(frozen=True)
class Rail:
    """One channel of an INA3221.

    Attributes:
        label: The rail's name, ``NC`` where nothing is connected.
        chip: The monitor's I2C address, such as ``1-0040``.
        channel: 1, 2 or 3.
        millivolts: The rail's voltage.
        power: What it draws.
        in_total: Whether the rail is a part of the board's total.
    """

    label: str
    chip: str
    channel: int
    millivolts: int = 5000
    power: RailPower = _NOTHING
    in_total: bool = False


@dataclass(frozen=True)
class PowerMode:
    """One entry of ``/etc/nvpmodel.conf``.

    Attributes:
        name: Its name; its number is its place in the list.
        cpus: How many cores are online.
        cpu_mhz: The cap of the cores.
        gpu_mhz: The cap of the GPU.
        tpc_pg_mask: The mask of switched-off GPU clusters. A change of it needs a reboot.
    """

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
        cpus: CPU cores.
        memory_mib: Memory, shared by CPU and GPU.
        gpu: The GPU's device node and name, such as ``17000000.gpu`` and ``gpu``.
        cpu_khz: Least and greatest clock of the cores.
        gpu_hz: Least and greatest clock of the GPU.
        emc_hz: The memory's clock.
        rails: Every channel of every power monitor, the unconnected ones too.
        zones: The thermal zones.
        modes: The power modes by number.
        start_mode: The mode that the board starts in and that all figures are meant for.
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


_ORIN_ZONES = ("cpu-thermal", "gpu-thermal", "soc0-thermal", "soc1-thermal", "soc2-thermal", "tj-thermal")


def _three_rails(chip: str, vdd_in: RailPower, cpu_gpu_cv: RailPower, soc: RailPower) -> tuple[Rail, ...]:
    """Return the rails of an NX or Nano module; VDD_IN is the input of all, so it alone is the total."""
    return (
        Rail("VDD_IN", chip, 1, 5000, vdd_in, in_total=True),
        Rail("VDD_CPU_GPU_CV", chip, 2, 5000, cpu_gpu_cv),
        Rail("VDD_SOC", chip, 3, 5000, soc),
    )


_AGX_ORIN = Board(
    key="jetson-agx-orin-64gb",
    model="NVIDIA Jetson AGX Orin Developer Kit",
    compatible=("nvidia,p3737-0000+p3701-0005", "nvidia,p3701-0005", "nvidia,tegra234"),
    l4t="36.4.3",
    jetpack="6.2",
    cpus=12,
    memory_mib=62840,
    gpu=("17000000.gpu", "gpu"),
    cpu_khz=(115_200, 2_201_600),
    gpu_hz=(306_000_000, 1_300_500_000),
    emc_hz=3_199_000_000,
    rails=(
        Rail("VDD_GPU_SOC", "1-0040", 1, 20_000, RailPower(3600, 21_000), in_total=True),
        Rail("VDD_CPU_CV", "1-0040", 2, 20_000, RailPower(1000, 4500), in_total=True),
        Rail("VIN_SYS_5V0", "1-0040", 3, 5000, RailPower(3700, 6200), in_total=True),
        Rail("NC", "1-0041", 1),
        # Fed from VIN_SYS_5V0: adding it to the total would count it twice.
        Rail("VDDQ_VDD2_1V8AO", "1-0041", 2, 5000, RailPower(700, 2300)),
        Rail("NC", "1-0041", 3),
    ),
    zones=_ORIN_ZONES,
    modes=(
        PowerMode("MAXN", 12, 2201, 1300),
        PowerMode("MODE_15W", 4, 1113, 420, tpc_pg_mask=240),
        PowerMode("MODE_30W", 8, 1728, 612, tpc_pg_mask=240),
        PowerMode("MODE_50W", 12, 1497, 828),
    ),
    start_mode=0,
    tau_s=0.3,
    ohm_k_per_w=0.9,
    peak_ops_per_s=42.5e12,
    peak_bytes_per_s=204.8e9,
)

_ORIN_NX = Board(
    key="jetson-orin-nx-16gb",
    model="NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
    compatible=("nvidia,p3768-0000+p3767-0000", "nvidia,p3767-0000", "nvidia,tegra234"),
    l4t="36.4.3",
    jetpack="6.2",
    cpus=8,
    memory_mib=15656,
    gpu=("17000000.gpu", "gpu"),
    cpu_khz=(115_200, 1_984_000),
    gpu_hz=(306_000_000, 918_000_000),
    emc_hz=3_199_000_000,
    rails=_three_rails("1-0040", RailPower(5200, 16_800), RailPower(900, 10_200), RailPower(1500, 2900)),
    zones=_ORIN_ZONES,
    modes=(
        PowerMode("MAXN", 8, 1984, 918),
        PowerMode("10W", 4, 1190, 612, tpc_pg_mask=12),
        PowerMode("15W", 4, 1420, 612),
        PowerMode("25W", 8, 1497, 408),
    ),
    start_mode=0,
    tau_s=0.25,
    ohm_k_per_w=1.6,
    peak_ops_per_s=15.0e12,
    peak_bytes_per_s=102.4e9,
)

_ORIN_NANO = Board(
    key="jetson-orin-nano-8gb",
    model="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
    compatible=("nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234"),
    l4t="36.4.3",
    jetpack="6.2",
    cpus=6,
    memory_mib=7620,
    gpu=("17000000.gpu", "gpu"),
    cpu_khz=(115_200, 1_510_400),
    gpu_hz=(306_000_000, 624_750_000),
    emc_hz=2_133_000_000,
    rails=_three_rails("1-0040", RailPower(4000, 9500), RailPower(600, 5300), RailPower(1200, 2000)),
    zones=_ORIN_ZONES,
    modes=(
        PowerMode("15W", 6, 1510, 624),
        PowerMode("25W", 6, 1344, 918),
        PowerMode("MAXN_SUPER", 6, 1728, 1020),
        PowerMode("7W", 4, 960, 408, tpc_pg_mask=12),
    ),
    start_mode=0,
    tau_s=0.2,
    ohm_k_per_w=2.2,
    peak_ops_per_s=10.2e12,
    peak_bytes_per_s=68.3e9,
)

_XAVIER_NX = Board(
    key="jetson-xavier-nx-16gb",
    model="NVIDIA Jetson Xavier NX Developer Kit",
    compatible=("nvidia,p3509-0000+p3668-0003", "nvidia,p3668-0003", "nvidia,tegra194"),
    l4t="35.5.0",
    jetpack="5.1.3",
    cpus=6,
    memory_mib=15820,
    gpu=("17000000.gv11b", "gv11b"),
    cpu_khz=(115_200, 1_907_200),
    gpu_hz=(114_750_000, 1_109_250_000),
    emc_hz=1_866_000_000,
    rails=_three_rails("7-0040", RailPower(4200, 13_800), RailPower(700, 8700), RailPower(1100, 2100)),
    zones=("CPU-therm", "GPU-therm", "AUX-therm", "AO-therm"),
    modes=(
        PowerMode("MODE_15W_2CORE", 2, 1907, 1109),
        PowerMode("MODE_15W_4CORE", 4, 1420, 1109),
        PowerMode("MODE_15W_6CORE", 6, 1420, 1109),
        PowerMode("MODE_10W_2CORE", 2, 1497, 803),
        PowerMode("MODE_10W_4CORE", 4, 1190, 803),
        PowerMode("MODE_10W_DESKTOP", 4, 1907, 510),
        PowerMode("MODE_20W_2CORE", 2, 1907, 1109),
        PowerMode("MODE_20W_4CORE", 4, 1907, 1109),
        PowerMode("MODE_20W_6CORE", 6, 1420, 1109),
    ),
    start_mode=8,
    tau_s=0.3,
    ohm_k_per_w=1.9,
    peak_ops_per_s=6.0e12,
    peak_bytes_per_s=59.7e9,
)

BOARDS = MappingProxyType({board.key: board for board in (_AGX_ORIN, _ORIN_NX, _ORIN_NANO, _XAVIER_NX)})
"""The boards by their names in an inventory."""
