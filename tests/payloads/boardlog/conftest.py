from __future__ import annotations

from pathlib import Path
from typing import Callable, Dict, Tuple

import pytest

Chip = Dict[str, Dict[int, Tuple[str, int, int]]]


@pytest.fixture
def sysfs(tmp_path) -> Callable[..., Path]:
    """Make a tree as the kernel shows it: chip -> channel -> (label, mV, mA)."""

    def make(chips: Chip, *, ina238_microwatts: int | None = None) -> Path:
        root = tmp_path / "sys"
        for number, (chip, channels) in enumerate(chips.items()):
            folder = root / f"bus/i2c/devices/{chip}/hwmon/hwmon{number}"
            folder.mkdir(parents=True)
            (folder / "in7_label").write_text("sum of shunt voltages\n")
            (folder / "in7_input").write_text("12\n")
            (folder / "curr7_input").write_text("12\n")
            for channel, (label, millivolts, milliamperes) in channels.items():
                (folder / f"in{channel}_label").write_text(f"{label}\n")
                (folder / f"in{channel}_input").write_text(f"{millivolts}\n")
                (folder / f"curr{channel}_input").write_text(f"{milliamperes}\n")
        if ina238_microwatts is not None:
            folder = root / "bus/i2c/devices/2-0044/hwmon/hwmon9"
            folder.mkdir(parents=True)
            (folder / "label").write_text("VIN\n")
            (folder / "power1_input").write_text(f"{ina238_microwatts}\n")
        return root

    return make
