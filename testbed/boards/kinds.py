"""The kinds of Jetson: one file a kind in ``data/kinds``, and what the rest of testbed asks about them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from testbed.boards.model import Board, PowerMode, Rail, RailPower
from testbed.boards.releases import L4tVersion, jetpack_of
from testbed.config.model import Count, Model, Name, Problem, Rate, problems_error, validate
from testbed.config.yaml import read_yaml
from testbed.errors import InputError

__all__ = [
    "KINDS_FOLDER",
    "AnyKind",
    "Kind",
    "RefusedKind",
    "board",
    "dense_ops_per_s",
    "kind",
    "kind_names",
    "kinds",
    "memory_bandwidth_bytes_per_s",
    "read_kind",
    "refusal",
    "unknown",
]

KINDS_FOLDER = Path(__file__).parent / "data/kinds"
UNKNOWN_GB_PER_S = 50.0  # a board that has no file takes part, with the share of a small one
UNKNOWN_TERA_OPS = 5.0

Capability = Annotated[
    str,
    Field(
        pattern=r"^[0-9]+\.[0-9]$", json_schema_extra={"expected": 'a capability in quotes, such as "8.7"'}
    ),
]
Label = Annotated[
    str,
    Field(pattern=r"^[A-Z0-9][A-Z0-9_]*$", json_schema_extra={"expected": "a rail's label, such as VDD_IN"}),
]
Milliwatts = Annotated[float, Field(strict=True, ge=0)]


class DeviceTree(Model):
    """What the device tree of a board says."""

    model: Annotated[str, Field(min_length=1)]
    """The model's name."""
    super_since: L4tVersion | None = None
    """From this release on the name ends in ` Super`, and so does the first compatible name in ``-super``."""
    compatible: Annotated[tuple[str, ...], Field(min_length=1)]
    """Compatible names, most exact first."""


class Releases(Model):
    """The releases of Linux for Tegra that run on a board."""

    default: L4tVersion
    """The one that an emulated board has, unless the inventory says otherwise."""
    majors: Annotated[tuple[Count, ...], Field(min_length=1)]
    """All of them, by their major number."""


class Cpu(Model):
    """The cores."""

    cores: Count
    """How many."""
    min_khz: Count
    """Their least clock."""
    max_khz: Count
    """Their greatest clock."""


class Gpu(Model):
    """The GPU."""

    node: Annotated[str, Field(min_length=1)]
    """Its device node, such as ``17000000.gpu``."""
    name: Annotated[str, Field(min_length=1)]
    """Its name in the device tree."""
    min_hz: Count
    """Its least clock."""
    max_hz: Count
    """Its greatest clock."""


class RailEntry(Model):
    """One channel of a power monitor."""

    label: Label
    """The rail's name; ``NC`` where nothing is connected."""
    chip: Annotated[
        str,
        Field(pattern=r"^[0-9]+-00[0-9a-f]{2}$", json_schema_extra={"expected": "an I2C address, as 1-0040"}),
    ]
    """The monitor's bus and address."""
    channel: Annotated[int, Field(strict=True, ge=1, le=3)]
    """The channel of that monitor."""
    millivolts: Count = 5000
    """The rail's voltage."""
    idle_mw: Milliwatts = 0.0
    """What an emulated one draws at no load."""
    active_mw: Milliwatts = 0.0
    """What full load adds."""
    sensor: Literal["ina3221", "ina238"] = "ina3221"
    """The kind of monitor."""


class Total(Model):
    """Which rails add up to what the board draws."""

    rails: Annotated[tuple[Label, ...], Field(min_length=1)]
    """Their labels."""
    why: Annotated[str, Field(min_length=1)]
    """Why these."""


class ModeEntry(Model):
    """One power mode."""

    id: Annotated[int, Field(strict=True, ge=0)]
    """Its number for ``nvpmodel -m``."""
    name: Annotated[
        str,
        Field(pattern=r"^[A-Z0-9][A-Z0-9_]*$", json_schema_extra={"expected": "a mode's name, such as MAXN"}),
    ]
    """Its name."""
    cpus: Count
    """How many cores are online."""
    cpu_mhz: Count
    """The cap of the cores."""
    gpu_mhz: Count
    """The cap of the GPU."""
    tpc_pg_mask: Annotated[int, Field(strict=True, ge=0)] = 0
    """The mask of switched-off GPU clusters. A change of it needs a reboot."""


class ModeTable(Model):
    """The power modes of some releases."""

    since: L4tVersion | None = None
    """The first release that has them; the oldest if left out."""
    default: str
    """The name of the one that a board starts in."""
    modes: Annotated[tuple[ModeEntry, ...], Field(min_length=1)]
    """The modes."""


class EmulationEntry(Model):
    """Settings of the emulation."""

    tau_s: Rate
    """The time constant of the power."""
    ohm_k_per_w: Rate
    """The temperature above the room's, per watt."""


class RefusedKind(Model):
    """A kind that testbed does not support."""

    name: Name
    """Its name in an inventory."""
    title: Annotated[str, Field(min_length=1)]
    """Its name for people."""
    refused: Annotated[str, Field(min_length=1)]
    """Why."""
    device_tree: DeviceTree
    """What its device tree says."""
    compute_capability: Capability
    """The compute capability of its GPU."""


class Kind(Model):
    """One kind of board."""

    name: Name
    """Its name in an inventory."""
    title: Annotated[str, Field(min_length=1)]
    """Its name for people."""
    device_tree: DeviceTree
    """What its device tree says."""
    l4t: Releases
    """The releases of Linux for Tegra that run on it."""
    compute_capability: Capability
    """The compute capability of its GPU."""
    memory_mib: Count
    """The memory that its system sees, shared by CPU and GPU."""
    memory_gb_per_s: Rate
    """What that memory can deliver at most, in GB/s."""
    dense_fp16_tera_ops: Rate
    """What the GPU computes at most, in dense FP16 Tops/s."""
    cpu: Cpu
    """The cores."""
    gpu: Gpu
    """The GPU."""
    memory_clock_hz: Count
    """The memory's clock."""
    thermal_zones: Annotated[tuple[str, ...], Field(min_length=1)]
    """The thermal zones."""
    rails: Annotated[tuple[RailEntry, ...], Field(min_length=1)]
    """Every channel of every power monitor, the unconnected ones too."""
    total: Total
    """Which of them add up to what the board draws."""
    power_modes: Annotated[tuple[ModeTable, ...], Field(min_length=1)]
    """The power modes, by release."""
    emulation: EmulationEntry
    """Settings of the emulation."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = [*self._rail_problems(), *self._mode_problems()]
        if int(self.l4t.default.partition(".")[0]) not in self.l4t.majors:
            problems.append(Problem(("l4t", "default"), "a release of one of the `majors` was expected"))
        if problems:
            raise problems_error(problems)
        return self

    def _rail_problems(self) -> Iterator[Problem]:
        labels = {rail.label for rail in self.rails} - {"NC"}
        for number, label in enumerate(self.total.rails):
            if label not in labels:
                yield Problem(("total", "rails", number), f"one of the `rails` was expected, not {label}")
        channels: dict[tuple[str, int], int] = {}
        for number, rail in enumerate(self.rails):
            other = channels.setdefault((rail.chip, rail.channel), number)
            if other != number:
                yield Problem(
                    ("rails", number), "this channel of the chip is there already", see=("rails", other)
                )

    def _mode_problems(self) -> Iterator[Problem]:
        for index, table in enumerate(self.power_modes):
            place = ("power_modes", index)
            if (table.since is None) != (index == 0):
                word = (
                    "no release was expected here" if index == 0 else "the first release that has these modes"
                )
                yield Problem((*place, "since"), word if index == 0 else f"{word} was expected")
            if table.default not in {mode.name for mode in table.modes}:
                yield Problem((*place, "default"), "the name of one of the `modes` was expected")
            for what in ("id", "name"):
                seen: dict[object, int] = {}
                for number, mode in enumerate(table.modes):
                    if seen.setdefault(getattr(mode, what), number) != number:
                        yield Problem((*place, "modes", number, what), "another mode has it already")
            for number, mode in enumerate(table.modes):
                if mode.cpus > self.cpu.cores:
                    yield Problem(
                        (*place, "modes", number, "cpus"), f"at most {self.cpu.cores} cores were expected"
                    )

    def runs(self, l4t: str) -> bool:
        """Return whether a release of Linux for Tegra runs on this kind."""
        return int(l4t.partition(".")[0]) in self.l4t.majors

    def modes_at(self, l4t: str) -> ModeTable:
        """Return the power modes of a release."""
        fitting = [table for table in self.power_modes if table.since is None or _at_least(l4t, table.since)]
        return fitting[-1]

    def at(self, l4t: str | None = None) -> Board:
        """Return a board of this kind with a release of Linux for Tegra; the default one if left out."""
        l4t = l4t or self.l4t.default
        table = self.modes_at(l4t)
        tree = self.device_tree
        is_super = tree.super_since is not None and _at_least(l4t, tree.super_since)
        first, *rest = tree.compatible
        return Board(
            key=self.name,
            model=f"{tree.model} Super" if is_super else tree.model,
            compatible=(f"{first}-super" if is_super else first, *rest),
            l4t=l4t,
            jetpack=jetpack_of(l4t) or "",
            capability=self.compute_capability,
            cpus=self.cpu.cores,
            memory_mib=self.memory_mib,
            gpu=(self.gpu.node, self.gpu.name),
            cpu_khz=(self.cpu.min_khz, self.cpu.max_khz),
            gpu_hz=(self.gpu.min_hz, self.gpu.max_hz),
            emc_hz=self.memory_clock_hz,
            rails=tuple(self._rail(rail) for rail in self.rails),
            zones=self.thermal_zones,
            modes=tuple(PowerMode(**dict(mode)) for mode in table.modes),
            start_mode=next(mode.id for mode in table.modes if mode.name == table.default),
            tau_s=self.emulation.tau_s,
            ohm_k_per_w=self.emulation.ohm_k_per_w,
            peak_ops_per_s=self.dense_fp16_tera_ops * 1e12,
            peak_bytes_per_s=self.memory_gb_per_s * 1e9,
        )

    def _rail(self, rail: RailEntry) -> Rail:
        power = RailPower(rail.idle_mw, rail.active_mw)
        in_total = rail.label in self.total.rails
        return Rail(rail.label, rail.chip, rail.channel, rail.millivolts, power, in_total, rail.sensor)


AnyKind = Kind | RefusedKind


def _at_least(l4t: str, since: str) -> bool:
    return _numbers(l4t) >= _numbers(since)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def read_kind(path: Path) -> AnyKind:
    """Return the kind of board that a file describes.

    Args:
        path: The file; its name is the kind's.

    Raises:
        InputError: The file holds a mistake; one line for each.
    """
    document = read_yaml(path)
    refused = isinstance(document.data, Mapping) and "refused" in document.data
    found: AnyKind = validate(document, RefusedKind) if refused else validate(document, Kind)
    if found.name != path.stem:
        # Whoever looks a kind up looks for the file of its name.
        raise InputError(document.problem(("name",), f"the file's own name, {path.stem}, was expected"))
    return found


@cache
def kind_names() -> tuple[str, ...]:
    """Return the names of all kinds, those that are refused too."""
    return tuple(sorted(path.stem for path in KINDS_FOLDER.glob("*.yaml")))


@cache
def kind(name: str) -> AnyKind | None:
    """Return a kind of board, or None where there is none of that name."""
    return read_kind(KINDS_FOLDER / f"{name}.yaml") if name in kind_names() else None


@cache
def refusal(name: str) -> str | None:
    """Return why a kind of board is not supported, or None for all others; only a refused kind's file is checked."""
    if name not in kind_names() or "\nrefused:" not in (KINDS_FOLDER / f"{name}.yaml").read_text():
        return None
    found = kind(name)
    return f"the {found.title} is not supported: {found.refused}" if isinstance(found, RefusedKind) else None


def unknown(name: str) -> tuple[str, str] | None:
    """Return what there is to know of a name that is no kind of board, and a hint; None for a kind.

    It is no mistake: a board that has no file takes part. But it may be a slip of the pen, and then it counts for less.
    """
    if name in kind_names():
        return None
    close = difflib.get_close_matches(name, kinds(), n=2)
    hint = f"did you mean {' or '.join(close)}?" if close else "docs/emulation.md lists the kinds"
    counts = f"{UNKNOWN_GB_PER_S:g} GB/s and {UNKNOWN_TERA_OPS:g} Tops/s"
    return f"{name} is no kind of board that testbed knows: without a `pace` it counts as {counts}", hint


@cache
def kinds() -> Mapping[str, Kind]:
    """Return all kinds that are supported, by their names."""
    found = ((name, kind(name)) for name in kind_names())
    return MappingProxyType({name: entry for name, entry in found if isinstance(entry, Kind)})


def board(name: str, l4t: str | None = None) -> Board:
    """Return a board of a kind with a release; the kind's default one if left out.

    Raises:
        KeyError: There is no such kind, or it is refused.
    """
    found = kind(name)
    if not isinstance(found, Kind):
        raise KeyError(name)
    return found.at(l4t)


def memory_bandwidth_bytes_per_s(name: str | None) -> float:
    """Return the peak memory bandwidth of a kind of board: decoding reads every weight once a token."""
    found = kind(name or "")
    return (found.memory_gb_per_s if isinstance(found, Kind) else UNKNOWN_GB_PER_S) * 1e9


def dense_ops_per_s(name: str | None) -> float:
    """Return the peak rate of a kind of board's GPU in dense FP16 operations."""
    found = kind(name or "")
    return (found.dense_fp16_tera_ops if isinstance(found, Kind) else UNKNOWN_TERA_OPS) * 1e12
