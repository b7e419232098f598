"""The synthetic ``/sys`` of an emulated board: which files it has and what stands in them.

Pure data: :func:`sysfs` returns a :class:`Tree`, :func:`write_tree` puts one into a folder. The places of
the files that change while the board runs are functions of their own, so that the simulator writes
exactly what the tree declares.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from testbed.boards.model import Board, Rail

__all__ = [
    "Tree",
    "current_path",
    "current_text",
    "emc_activity_path",
    "gpu_load_path",
    "serial_number",
    "settings_at",
    "sysfs",
    "temperature_path",
    "write_tree",
]

_EMC = "kernel/debug/bpmp/debug/clk/emc"
_START_C = 35


@dataclass
class Tree:
    """Files, links and empty folders below one root, by their relative paths."""

    files: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)


def serial_number(lab: str, host: str) -> str:
    """Return a board's serial number: 13 digits that depend on nothing but the names."""
    return f"{int(hashlib.sha256(f'{lab}/{host}'.encode()).hexdigest(), 16) % 10**13:013d}"


def _gpu_folder(board: Board) -> str:
    return f"devices/platform/{board.gpu[0]}"


def _hwmon_number(board: Board, chip: str) -> int:
    chips = list(dict.fromkeys(rail.chip for rail in board.rails))
    return chips.index(chip) + 1


def _chip_folder(chip: str) -> str:
    return f"devices/platform/c240000.i2c/i2c-{chip.partition('-')[0]}/{chip}"


def _hwmon_folder(board: Board, chip: str) -> str:
    return f"{_chip_folder(chip)}/hwmon/hwmon{_hwmon_number(board, chip)}"


def current_path(board: Board, rail: Rail) -> str:
    """Return the file that shows what a rail draws: its current in mA, or its power in microwatts."""
    name = "power1_input" if rail.sensor == "ina238" else f"curr{rail.channel}_input"
    return f"{_hwmon_folder(board, rail.chip)}/{name}"


def current_text(rail: Rail, power_mw: float) -> str:
    """Return what stands in that file at some power."""
    if rail.sensor == "ina238":
        return f"{round(power_mw * 1000)}\n"
    return f"{round(power_mw * 1000 / rail.millivolts)}\n"


def gpu_load_path(board: Board) -> str:
    """Return the file of the GPU's load, per mille."""
    return f"{_gpu_folder(board)}/load"


def emc_activity_path() -> str:
    """Return the file of the memory's activity: per cent times its clock in kHz."""
    return "kernel/debug/bpmp/debug/actmon/mc_all_avg_activity"


def temperature_path(zone: int) -> str:
    """Return the file of a thermal zone's temperature in thousandths of a degree."""
    return f"devices/virtual/thermal/thermal_zone{zone}/temp"


def sysfs(board: Board, serial: str) -> Tree:
    """Return the ``/sys`` of a board at rest."""
    tree = Tree()
    _device_tree(tree, board, serial)
    _cpus(tree, board)
    _gpu(tree, board)
    _power_monitors(tree, board)
    _thermal(tree, board)
    _memory(tree, board)
    tree.folders += [
        "class/power_supply",
        "devices/virtual/dmi/id",
        # What follows is bound over with the kernel's own.
        "class/net",
        "devices/virtual/net",
        "fs/cgroup",
    ]
    return tree


def _device_tree(tree: Tree, board: Board, serial: str) -> None:
    base = "firmware/devicetree/base"
    tree.files[f"{base}/model"] = f"{board.model}\0"
    tree.files[f"{base}/serial-number"] = f"{serial}\0"
    tree.files[f"{base}/compatible"] = "".join(f"{name}\0" for name in board.compatible)


def _cpus(tree: Tree, board: Board) -> None:
    base = "devices/system/cpu"
    every = f"0-{board.cpus - 1}\n"
    tree.files |= {f"{base}/{name}": every for name in ("online", "possible", "present")}
    tree.files |= {f"{base}/offline": "\n", f"{base}/kernel_max": f"{board.cpus - 1}\n"}
    low, high = board.cpu_khz
    for number in range(board.cpus):
        cpu = f"{base}/cpu{number}"
        tree.files[f"{cpu}/online"] = "1\n"
        for kind in ("scaling", "cpuinfo"):
            tree.files[f"{cpu}/cpufreq/{kind}_min_freq"] = f"{low}\n"
            tree.files[f"{cpu}/cpufreq/{kind}_max_freq"] = f"{high}\n"
            tree.files[f"{cpu}/cpufreq/{kind}_cur_freq"] = f"{low}\n"
        tree.files[f"{cpu}/cpufreq/scaling_governor"] = "schedutil\n"
        tree.files[f"{cpu}/topology/physical_package_id"] = f"{number // 4}\n"
        tree.files[f"{cpu}/topology/core_id"] = f"{number % 4}\n"
        tree.files[f"{cpu}/topology/thread_siblings_list"] = f"{number}\n"
        first = number - number % 4
        tree.files[f"{cpu}/topology/core_siblings_list"] = f"{first}-{min(first + 3, board.cpus - 1)}\n"


def _gpu(tree: Tree, board: Board) -> None:
    node, name = board.gpu
    folder = _gpu_folder(board)
    devfreq = f"{folder}/devfreq/{node}"
    low, high = board.gpu_hz
    tree.files |= {
        f"{folder}/load": "0\n",
        f"{folder}/railgate_enable": "0\n",
        f"{folder}/enable_3d_scaling": "1\n",
        f"{folder}/tpc_pg_mask": f"{board.mode(board.start_mode).tpc_pg_mask}\n",
        f"{folder}/of_node/name": f"{name}\0",
        f"{devfreq}/cur_freq": f"{low}\n",
        f"{devfreq}/min_freq": f"{low}\n",
        f"{devfreq}/max_freq": f"{high}\n",
        f"{devfreq}/governor": "nvhost_podgov\n",
        f"{devfreq}/available_governors": "nvhost_podgov performance userspace\n",
    }
    tree.links[f"{devfreq}/device"] = f"../../../{node}"
    tree.links[f"class/devfreq/{node}"] = f"../../{devfreq}"


def settings_at(board: Board, number: int) -> dict[str, str]:
    """Return the files that programs may have set, as a board has them that starts in a power mode.

    Args:
        board: The board.
        number: The mode.
    """
    tree = Tree()
    _cpus(tree, board)
    _gpu(tree, board)
    _memory(tree, board)
    mode = board.mode(number)
    live = {gpu_load_path(board), emc_activity_path()}
    found = {path: text for path, text in tree.files.items() if path not in live}
    if mode.id != board.start_mode:
        for core in range(board.cpus):
            found[f"devices/system/cpu/cpu{core}/cpufreq/scaling_max_freq"] = f"{mode.cpu_mhz * 1000}\n"
        found[f"{_gpu_folder(board)}/devfreq/{board.gpu[0]}/max_freq"] = f"{mode.gpu_mhz * 1_000_000}\n"
        found[f"{_gpu_folder(board)}/tpc_pg_mask"] = f"{mode.tpc_pg_mask}\n"
    return found


def _power_monitors(tree: Tree, board: Board) -> None:
    for chip, sensor in {rail.chip: rail.sensor for rail in board.rails}.items():
        folder = _hwmon_folder(board, chip)
        tree.files[f"{_chip_folder(chip)}/name"] = f"{sensor}\n"
        tree.files[f"{folder}/name"] = f"{sensor}\n"
        tree.links[f"bus/i2c/devices/{chip}"] = f"../../../{_chip_folder(chip)}"
        tree.links[f"class/hwmon/hwmon{_hwmon_number(board, chip)}"] = f"../../{folder}"
        if sensor == "ina3221":
            # The chip's seventh voltage is the sum of its shunt voltages: a trap for readers that take
            # it for a rail.
            tree.files[f"{folder}/in7_label"] = "sum of shunt voltages\n"
            tree.files[f"{folder}/in7_input"] = "0\n"
    for rail in board.rails:
        folder, number = _hwmon_folder(board, rail.chip), rail.channel
        tree.files[current_path(board, rail)] = current_text(rail, rail.power.idle_mw)
        if rail.sensor == "ina238":
            tree.files[f"{folder}/label"] = f"{rail.label}\n"
            tree.files[f"{folder}/in1_input"] = f"{rail.millivolts}\n"
            continue
        full_ma = round((rail.power.idle_mw + rail.power.active_mw) * 1000 / rail.millivolts)
        tree.files |= {
            f"{folder}/in{number}_label": f"{rail.label}\n",
            f"{folder}/in{number}_enable": "1\n",
            f"{folder}/in{number}_input": f"{rail.millivolts if rail.label != 'NC' else 0}\n",
            f"{folder}/curr{number}_max": f"{full_ma * 2 or 32760}\n",
            f"{folder}/curr{number}_crit": f"{full_ma * 3 or 32760}\n",
            f"{folder}/curr{number}_max_alarm": "0\n",
            f"{folder}/curr{number}_crit_alarm": "0\n",
        }


def _thermal(tree: Tree, board: Board) -> None:
    for number, zone in enumerate(board.zones):
        tree.files[f"devices/virtual/thermal/thermal_zone{number}/type"] = f"{zone}\n"
        tree.files[temperature_path(number)] = f"{_START_C * 1000}\n"
        tree.links[f"class/thermal/thermal_zone{number}"] = (
            f"../../devices/virtual/thermal/thermal_zone{number}"
        )
    fan = "devices/platform/pwm-fan/hwmon/hwmon9"
    tree.files |= {f"{fan}/name": "pwmfan\n", f"{fan}/pwm1": "64\n", f"{fan}/fan1_input": "1400\n"}
    tree.links["class/hwmon/hwmon9"] = f"../../{fan}"


def _memory(tree: Tree, board: Board) -> None:
    tree.files |= {f"{_EMC}/{name}": f"{board.emc_hz}\n" for name in ("rate", "max_rate")}
    tree.files |= {
        f"{_EMC}/min_rate": "204000000\n",
        f"{_EMC}/mrq_rate_locked": "0\n",
        emc_activity_path(): "0\n",
    }


def write_tree(tree: Tree, root: Path) -> None:
    """Write a tree into an empty folder."""
    for folder in tree.folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for path, text in tree.files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    for path, target in tree.links.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(target)
