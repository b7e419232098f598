"""The board: its kind, its JetPack, its power modes."""

import glob
import os
import re
import shutil
from typing import Any, Dict, List, Optional

from testbed.hosts.probes.start import output, read

GPU_NAMES = re.compile(r"gpu|gv11b|ga10b|gb10b|gpc")
POWER_CONFS = ("/etc/nvpmodel.conf", "/etc/nvpmodel/*.conf")
POWER_NOTE = "~/.testbed/power.reboot"


def board_model() -> Optional[str]:
    """Return the kind of machine: the device tree's model, or what the firmware says."""
    for path in ("/sys/firmware/devicetree/base/model", "/proc/device-tree/model"):
        if read(path):
            return read(path)
    return read("/sys/devices/virtual/dmi/id/product_name") or None


def power_modes(text: str) -> List[Dict[str, Any]]:
    """Return the power modes that an nvpmodel.conf defines, each with the parts of the GPU that it switches off.

    Those masks are read when the GPU starts: between modes whose masks differ lies a reboot.
    """
    modes: List[Dict[str, Any]] = []
    inside = False
    for line in text.splitlines():
        section = re.match(r"\s*<\s*(\w+)(.*)>", line)
        if section:
            about = dict(re.findall(r"(\w+)\s*=\s*(\S+)", section.group(2)))
            number = re.match(r"[0-9]{1,6}$", about.get("ID", ""))
            inside = section.group(1) == "POWER_MODEL" and bool(number) and "NAME" in about
            if inside:
                modes.append({"id": int(about["ID"]), "name": about["NAME"], "gates": {}})
            continue
        words = line.split("#")[0].split()
        if inside and len(words) == 3 and words[1].endswith("_PG_MASK"):
            modes[-1]["gates"][words[1]] = words[2]
    return modes


def power_mode_in(text: str) -> Dict[str, Any]:
    """Return the power mode in what `nvpmodel -q` says."""
    name = re.search(r"(?:NV Power Mode|POWER_MODEL)\s*:\s*(\S+)", text)
    number = re.search(r"^([0-9]{1,6})\s*$", text, re.MULTILINE)
    return {
        "power_mode": name.group(1) if name else None,
        "mode_id": int(number.group(1)) if number else None,
    }


def power_conf() -> Optional[str]:
    """Return the path of the board's nvpmodel.conf; None where there is none, or more than one to choose from."""
    for pattern in POWER_CONFS:
        paths = glob.glob(pattern)
        if len(paths) == 1:
            return paths[0]
    return None


def clocks_locked(root: str) -> Optional[bool]:
    """Return whether the clocks of processors and GPU have no room left, as jetson_clocks leaves them."""
    pairs = []
    for folder in glob.glob(root + "/devices/system/cpu/cpu[0-9]*/cpufreq"):
        pairs.append((read(folder + "/scaling_min_freq"), read(folder + "/scaling_max_freq")))
    for folder in glob.glob(root + "/class/devfreq/*"):
        if GPU_NAMES.search(os.path.basename(folder)):
            pairs.append((read(folder + "/min_freq"), read(folder + "/max_freq")))
    known = [pair for pair in pairs if pair[0] and pair[1]]
    return all(low == high for low, high in known) if known else None


def power() -> Dict[str, Any]:
    """Return the board's power modes and the one that it is in."""
    if not shutil.which("nvpmodel"):
        return {"power_mode": None}
    conf = power_conf()
    # The note of a change that turned out to need a reboot: the boot that it was made in, and the mode.
    note = (read(os.path.expanduser(POWER_NOTE)) or "").split()
    noted = len(note) == 2 and note[0] == read("/proc/sys/kernel/random/boot_id")
    answer = power_mode_in(output(["nvpmodel", "-q"]) or "")
    answer.update(
        {
            "nvpmodel": True,
            "conf": conf,
            "modes": power_modes(read(conf) or "") if conf else [],
            "needs_reboot": note[1] if noted else None,
            "jetson_clocks": bool(shutil.which("jetson_clocks")),
            "locked": clocks_locked("/sys"),
        }
    )
    return answer


def board_facts(asked: Dict[str, Any]) -> Dict[str, Any]:
    """Return what the board is."""
    answer = {"board_model": board_model(), "nv_tegra_release": read("/etc/nv_tegra_release")}
    answer.update(power())
    return answer
