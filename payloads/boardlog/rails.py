"""The power rails of a board, as the kernel shows them, and the rule that makes a total of them.

Boards with an INA3221 show a voltage (mV) and a current (mA) for each labelled channel; Thor's INA238 shows
the power of the whole input in microwatts.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple, Sequence, Tuple

__all__ = ["Rail", "RailFile", "TotalRule", "find_rails", "read_rail_mw", "total_rule"]

_LABEL = re.compile(r"in([0-9]+)_label")
# INA3221: its channels have the numbers 1 to 3; 7 is the sum of their shunt voltages, which is no power.
_SUM_OF_SHUNTS = 7
_WHOLE_INPUTS = ("VIN", "VDD_IN", "POM_5V_IN")
_EMPTY_READS = 5


class Rail(NamedTuple):
    """One power rail.

    Attributes:
        name: Its label.
        sources: The files whose product is its power: mV and mA, or one file in microwatts.
    """

    name: str
    sources: Tuple[Path, ...]


class TotalRule(NamedTuple):
    """How the power of the board follows from its rails.

    Attributes:
        rule: The names of the rails that are added, with ``+`` between them.
        note: Why it is these.
    """

    rule: str
    note: str


def find_rails(root: Path) -> list[Rail]:
    """Return the rails of a board, sorted by device and channel.

    Args:
        root: Where sysfs is; ``/sys`` but in tests.
    """
    rails: list[Rail] = []
    for folder in sorted(root.glob("bus/i2c/devices/*/hwmon/hwmon*")):
        for label in sorted(folder.glob("in*_label")):
            match = _LABEL.fullmatch(label.name)
            name = label.read_text().strip()
            if match is None or int(match.group(1)) == _SUM_OF_SHUNTS or name.upper() in ("", "NC"):
                continue
            number = match.group(1)
            sources = (folder / f"in{number}_input", folder / f"curr{number}_input")
            if all(source.exists() for source in sources):
                rails.append(Rail(name, sources))
        power = folder / "power1_input"
        if power.exists():
            label = folder / "label"
            rails.append(Rail(label.read_text().strip() if label.exists() else "VIN", (power,)))
    names = [rail.name for rail in rails]
    # A second rail of the same name gets the name of its device too.
    return [
        rail
        if rail.name not in names[:index]
        else rail._replace(name=f"{rail.name}@{rail.sources[0].parents[2].name}")
        for index, rail in enumerate(rails)
    ]


def total_rule(names: Sequence[str]) -> TotalRule:
    """Return how the total follows from the rails of these names.

    Raises:
        ValueError: There are no rails.
    """
    if not names:
        raise ValueError("there are no power rails")
    for name in _WHOLE_INPUTS:
        if name in names:
            return TotalRule(name, f"{name} measures the whole input of the module")
    memory = [name for name in names if name.startswith("VDDQ")]
    if memory and "VIN_SYS_5V0" in names:
        added = [name for name in names if name not in memory]
        note = (
            f"sum of rails; {', '.join(memory)} is fed from VIN_SYS_5V0, so it is left out, not counted twice"
        )
        return TotalRule("+".join(added), note)
    return TotalRule("+".join(names), "sum of rails: no rail measures the whole input")


class RailFile:
    """One file of sysfs, kept open and read from its beginning each time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> int:
        """Return the number in the file.

        Raises:
            OSError: The sensor did not answer.
            ValueError: There is no number in the file.
        """
        if os.fstat(self._descriptor).st_nlink == 0:
            self.close()  # another file has taken its name, as when a driver is loaded anew
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        for _ in range(_EMPTY_READS):
            text = os.pread(self._descriptor, 32, 0)
            if text:  # a plain file that is being rewritten is empty for a moment
                return int(text)
        raise ValueError(f"{self._path}: no number in it")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def read_rail_mw(files: Sequence[RailFile]) -> float:
    """Return the power of a rail in milliwatts, from its one or two open files."""
    if len(files) == 1:
        return files[0].read() / 1000.0
    return files[0].read() * files[1].read() / 1000.0
