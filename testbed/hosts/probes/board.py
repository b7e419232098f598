"""The board: its kind, its JetPack, its power modes."""

import os
from typing import Any, Dict, List, Optional

from testbed.hosts.probes.start import names_in, number_of, output, read, which

GPU_NAMES = ("gpu", "gv11b", "ga10b", "gb10b", "gpc")
POWER_CONF, POWER_CONFS = "/etc/nvpmodel.conf", "/etc/nvpmodel"
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
        begin, end = line.lstrip(), line.rfind(">")
        if begin.startswith("<") and end >= 0:
            kind, *words = begin[1 : end - len(line)].replace("=", " = ").split() or [""]
            about = {words[at - 1]: words[at + 1] for at in range(1, len(words) - 1) if words[at] == "="}
            number = number_of(about.get("ID", ""), 6)
            inside = kind == "POWER_MODEL" and number is not None and "NAME" in about
            if inside:
                modes.append({"id": number, "name": about["NAME"], "gates": {}})
            continue
        words = line.split("#")[0].split()
        if inside and len(words) == 3 and words[1].endswith("_PG_MASK"):
            modes[-1]["gates"][words[1]] = words[2]
    return modes


def power_mode_in(text: str) -> Dict[str, Any]:
    """Return the power mode in what `nvpmodel -q` says."""
    found: Dict[str, Any] = {"power_mode": None, "mode_id": None}
    for line in text.splitlines():
        before, colon, after = line.partition(":")
        if colon and after.split() and before.strip().endswith(("NV Power Mode", "POWER_MODEL")):
            found["power_mode"] = found["power_mode"] or after.split()[0]
        elif found["mode_id"] is None:
            found["mode_id"] = number_of(line.rstrip(), 6)
    return found


def power_conf() -> Optional[str]:
    """Return the path of the board's nvpmodel.conf; None where there is none, or more than one to choose from."""
    if os.path.exists(POWER_CONF):
        return POWER_CONF
    names = [name for name in names_in(POWER_CONFS) if name.endswith(".conf")]
    return os.path.join(POWER_CONFS, names[0]) if len(names) == 1 else None


def clocks_locked(root: str) -> Optional[bool]:
    """Return whether the clocks of processors and GPU have no room left, as jetson_clocks leaves them."""
    pairs = []
    cpus, devices = root + "/devices/system/cpu", root + "/class/devfreq"
    for name in names_in(cpus):
        folder = os.path.join(cpus, name, "cpufreq")
        if name.startswith("cpu") and name[3:4].isdigit() and os.path.isdir(folder):
            pairs.append((read(folder + "/scaling_min_freq"), read(folder + "/scaling_max_freq")))
    for name in names_in(devices):
        if any(part in name for part in GPU_NAMES):
            folder = os.path.join(devices, name)
            pairs.append((read(folder + "/min_freq"), read(folder + "/max_freq")))
    known = [pair for pair in pairs if pair[0] and pair[1]]
    return all(low == high for low, high in known) if known else None


def power() -> Dict[str, Any]:
    """Return the board's power modes and the one that it is in."""
    if not which("nvpmodel"):
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
            "jetson_clocks": bool(which("jetson_clocks")),
            "locked": clocks_locked("/sys"),
        }
    )
    return answer


def board_facts(asked: Dict[str, Any]) -> Dict[str, Any]:
    """Return what the board is."""
    answer = {"board_model": board_model(), "nv_tegra_release": read("/etc/nv_tegra_release")}
    answer.update(power())
    return answer
