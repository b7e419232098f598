"""Runs on a host, over the wire: prints its clock a few times, then one line of facts. Changes nothing.

Sent as text to the host's own Python, so: the standard library only, and the syntax of Python 3.6, since a
board with JetPack 4 must be able to say that it is one.
"""
# ruff: noqa: PTH110, PTH111, PTH112, PTH114, PTH115, PTH116, PTH118, PTH119, PTH120, PTH207, RUF005
# ruff: noqa: UP006, UP022, UP031, UP035, UP045

import glob
import grp
import gzip
import hashlib
import json
import os
import platform
import pwd
import re
import shutil
import subprocess
import sys
import time
from typing import Any, Dict, List, Optional, Set

CLOCK_READINGS = 5
CLOCK_PAUSE_S = 0.02
CHECK_TIMEOUT_S = 120

# What the asker knows already: the fingerprint of an environment whose modules were imported once.
KNOWN_FINGERPRINT = ""

# Runs under the Python that will run the payload code: changes with whatever is installed for it.
FINGERPRINT = r"""
import json, os, sys
folders = sorted(path for path in sys.path if path and os.path.isdir(path))
print(json.dumps([sys.version, sys.executable, [[path, os.stat(path).st_mtime_ns] for path in folders]]))
"""

# Runs under the same Python: what it is, and what it can import.
CHECK = r"""
import importlib, json, platform, sys
try:
    from importlib import metadata
except ImportError:
    metadata = None
answer = {"version": platform.python_version(), "modules": {}, "errors": {}, "cuda": None, "capability": None}
for name in sys.argv[1:]:
    try:
        module = importlib.import_module(name)
        answer["modules"][name] = str(getattr(module, "__version__", ""))
        if name == "torch" and module.cuda.is_available():
            answer["cuda"] = str(module.version.cuda)
            answer["capability"] = "%d.%d" % module.cuda.get_device_capability()
    except Exception as error:
        answer["errors"][name] = "%s: %s" % (type(error).__name__, error)
try:
    answer["jetson_stats"] = metadata.version("jetson-stats")
except Exception:  # not installed, or a Python without importlib.metadata
    answer["jetson_stats"] = None
print("\n" + json.dumps(answer))
"""


def read(path: str) -> Optional[str]:
    """Return the text of a file, or None where it cannot be read."""
    try:
        with open(path, errors="replace") as file:
            return file.read().strip("\0\n ")
    except OSError:
        return None


def output(argv: List[str], timeout_s: float = 10) -> Optional[str]:
    """Return what a program prints, or None where it is missing, fails or hangs."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout_s
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def board_model() -> Optional[str]:
    """Return the kind of machine: the device tree's model, or what the firmware says."""
    for path in ("/sys/firmware/devicetree/base/model", "/proc/device-tree/model"):
        if read(path):
            return read(path)
    return read("/sys/devices/virtual/dmi/id/product_name") or None


def memory_groups() -> List[str]:
    """Return the folders of the control groups that bound this process' memory, its own first."""
    folders: List[str] = []
    for line in (read("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = "/sys/fs/cgroup/memory" if controllers else "/sys/fs/cgroup"
        while True:
            folders.append(os.path.join(root, path.lstrip("/")))
            if path in ("/", ""):
                break
            path = os.path.dirname(path)
    return folders


def number_in(folder: str, *names: str) -> Optional[int]:
    """Return the number in the first of some files that holds one."""
    texts = [str(read(os.path.join(folder, name))) for name in names]
    return next((int(text) for text in texts if text.isdigit()), None)


def memory() -> Dict[str, int]:
    """Return the memory that processes here may use, and how much of it is free.

    Both are the machine's, or less by a control group. What is kept of files can be had back, so it counts as free.
    """
    found = re.findall(r"(\w+):\s+(\d+)", read("/proc/meminfo") or "")
    about = {name: 1024 * int(number) for name, number in found}
    machine = total = about.get("MemTotal", 0)
    free = about.get("MemAvailable", about.get("MemFree", 0))
    for folder in memory_groups():
        limit = number_in(folder, "memory.max", "memory.limit_in_bytes")
        if not limit or limit >= machine:
            continue
        total = min(total, limit)
        used = number_in(folder, "memory.current", "memory.usage_in_bytes")
        if used is not None:
            stat = read(folder + "/memory.stat") or ""
            kept = re.search(r"^(?:total_)?inactive_file (\d+)", stat, re.MULTILINE)
            free = min(free, max(0, limit - used + (int(kept.group(1)) if kept else 0)))
    return {"memory_bytes": total, "memory_free_bytes": min(free, total)}


def power_mode() -> Optional[str]:
    """Return the name of the board's power mode, or None where it has none."""
    text = output(["nvpmodel", "-q"]) or ""
    match = re.search(r"(?:NV Power Mode|POWER_MODEL)\s*:\s*(\S+)", text)
    return match.group(1) if match else None


def qdiscs() -> Optional[List[str]]:
    """Return which of the kernel parts that shape links there are, or None where that cannot be seen."""
    wanted = {
        "htb": "sch_htb",
        "tbf": "sch_tbf",
        "netem": "sch_netem",
        "ingress": "sch_ingress",
        "ifb": "ifb",
    }
    known = False
    if os.path.exists("/proc/config.gz"):
        with gzip.open("/proc/config.gz", "rt") as file:
            options = set(re.findall(r"^CONFIG_(?:NET_)?(\w+)=[ym]$", file.read(), re.MULTILINE))
        return sorted(name for name, module in wanted.items() if module.upper() in options)
    folder = "/lib/modules/" + platform.release()
    found: Set[str] = set()
    for name in ("modules.builtin", "modules.dep"):
        text = read(os.path.join(folder, name))
        if text is not None:
            known = True
            found.update(re.findall(r"([^/\s:]+)\.ko", text))
    loaded = read("/proc/modules")
    found.update(line.split()[0] for line in (loaded or "").splitlines() if line)
    there = sorted(name for name, module in wanted.items() if module in found)
    return there if known or there else None


def can_sudo() -> bool:
    """Return whether commands can be run as root without asking for a password."""
    return os.geteuid() == 0 or output(["sudo", "-n", "true"]) is not None


def jtop(user: pwd.struct_passwd) -> Dict[str, Any]:
    """Return the state of the jtop service and of the user's access to it."""
    socket = "/run/jtop.sock"
    try:
        group = grp.getgrnam("jtop")
        there, member = True, user.pw_name in group.gr_mem or user.pw_gid == group.gr_gid
    except KeyError:
        there, member = False, False
    unit = output(["systemctl", "show", "-p", "LoadState", "--value", "jtop.service"])
    return {
        "program": shutil.which("jtop"),
        "group": there,
        "member": member or user.pw_uid == 0,
        "socket": os.path.exists(socket),
        "unit": (unit or "").strip() == "loaded",
    }


def code(home: str) -> Dict[str, Any]:
    """Return each payload code folder's name (its right digest) and its digest, and which one is current."""
    folders: Dict[str, str] = {}
    for folder in glob.glob(os.path.join(glob.escape(home), "code", "*")):
        if not os.path.isdir(folder):
            continue
        names = glob.glob(os.path.join(glob.escape(folder), "**", "*.py"), recursive=True)
        digest = hashlib.sha256()
        for name in sorted(os.path.relpath(path, folder).replace(os.sep, "/") for path in names):
            with open(os.path.join(folder, name), "rb") as file:
                digest.update(("%s\0%s\n" % (name, hashlib.sha256(file.read()).hexdigest())).encode())
        folders[os.path.basename(folder)] = digest.hexdigest()[:16]
    current = os.path.join(home, "current")
    target = os.readlink(current) if os.path.islink(current) else ""
    return {"folders": folders, "current": os.path.basename(target) or None}


def environment(python: str, modules: List[str]) -> Dict[str, Any]:
    """Return what the Python of the payload code is and can import.

    Importing takes seconds. An asker who knows the environment as it is, from a probe since the last boot, is told that
    nothing has changed.
    """
    path = os.path.expanduser(python)
    if not shutil.which(path):
        return {"error": "%s: not found" % python}
    recipe = (
        read(os.path.join(os.path.dirname(os.path.dirname(path)), "recipe.json")) if "/" in path else None
    )
    boot = read("/proc/sys/kernel/random/boot_id")
    # With the check itself: a later version may ask for more than what is remembered.
    about = "\n".join([output([path, "-c", FINGERPRINT]) or "", boot or "", recipe or "", CHECK] + modules)
    fingerprint = hashlib.sha256(about.encode()).hexdigest()
    if modules and fingerprint == KNOWN_FINGERPRINT:
        return {"fingerprint": fingerprint, "unchanged": True}
    try:
        done = subprocess.run(
            [path, "-c", CHECK] + modules,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=CHECK_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": "%s: %s" % (python, error)}
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        return {"error": "%s ended with status %d: %s" % (python, done.returncode, last[0])}
    answer: Dict[str, Any] = json.loads(done.stdout.decode(errors="replace").strip().splitlines()[-1])
    answer["recipe"] = json.loads(recipe) if recipe else None
    answer["fingerprint"] = fingerprint
    return answer


def facts(python: str, modules: List[str]) -> Dict[str, Any]:
    """Return all facts of the host."""
    user = pwd.getpwuid(os.geteuid())
    home = os.path.expanduser("~/.testbed")
    disk = os.statvfs(os.path.expanduser("~"))
    folders: Dict[str, int] = {}
    for path in [home] + glob.glob(os.path.join(glob.escape(home), "*")):
        if os.path.isdir(path):
            folders[os.path.relpath(path, home)] = os.stat(path).st_mode & 0o777
    return {
        "hostname": platform.node(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "board_model": board_model(),
        "nv_tegra_release": read("/etc/nv_tegra_release"),
        "user": user.pw_name,
        "sudo": can_sudo(),
        **memory(),
        "disk_free_bytes": disk.f_bavail * disk.f_frsize,
        "cpu_count": len(os.sched_getaffinity(0)),
        "power_mode": power_mode(),
        "qdiscs": qdiscs(),
        "systemd": os.path.isdir("/run/systemd/system"),
        "jtop": jtop(user),
        "folders": folders,
        "code": code(home),
        "environment": environment(python, modules),
    }


def main() -> None:
    """Print clock readings, then the facts."""
    os.environ["PATH"] = (
        os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
    )
    for _ in range(CLOCK_READINGS):
        print(json.dumps({"clock": time.time()}), flush=True)
        time.sleep(CLOCK_PAUSE_S)
    print(json.dumps({"facts": facts(sys.argv[1], sys.argv[2:])}), flush=True)


if __name__ == "__main__":
    main()
