"""What a board is, beyond its name and its JetPack: its power modes and clocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Board", "PowerMode", "board_of"]


@dataclass(frozen=True)
class PowerMode:
    """One power mode of a board's nvpmodel.conf.

    Attributes:
        id: Its number, another one on each kind of board.
        name: Its name.
        gates: The masks of the GPU's parts that it switches off: where they change, the board must be booted again.
    """

    id: int
    name: str
    gates: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Board:
    """The power modes and clocks of a board.

    Attributes:
        nvpmodel: Whether there is the program that sets power modes.
        conf: The file that defines the modes; None where it is not known.
        modes: The modes in that file.
        mode_id: The number of the mode that the board is in.
        needs_reboot: The mode that the program would not set, in this boot, without booting again.
        jetson_clocks: Whether there is the program that locks the clocks at their greatest.
        locked: Whether they are locked; None where that cannot be seen.
    """

    nvpmodel: bool = False
    conf: str | None = None
    modes: tuple[PowerMode, ...] = ()
    mode_id: int | None = None
    needs_reboot: str | None = None
    jetson_clocks: bool = False
    locked: bool | None = None

    def mode(self, name: str | None) -> PowerMode | None:
        """Return the mode of a name, whatever its letters' case; None where the board has none."""
        exact = next((mode for mode in self.modes if mode.name == name), None)
        folded = (name or "").casefold()
        return exact or next((mode for mode in self.modes if mode.name.casefold() == folded), None)

    def by_id(self, number: int | None) -> PowerMode | None:
        """Return the mode of a number; None where the board has none."""
        return next((mode for mode in self.modes if mode.id == number), None)


def board_of(raw: Mapping[str, Any]) -> Board:
    """Return what the probe says of the board."""
    modes = tuple(PowerMode(mode["id"], mode["name"], mode["gates"]) for mode in raw.get("modes", ()))
    names = ("nvpmodel", "conf", "mode_id", "needs_reboot", "jetson_clocks", "locked")
    return Board(modes=modes, **{name: raw[name] for name in names if name in raw})
