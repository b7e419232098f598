"""The machine as such: names, processors, memory, disk, who is logged in."""

import os
import pwd
from typing import Any, Dict, List

from testbed.hosts.probes.start import number_in, number_of, read


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


def memory() -> Dict[str, int]:
    """Return the memory that processes here may use, and how much of it is free.

    Both are the machine's, or less by a control group. What is kept of files can be had back, so it counts as free.
    """
    about: Dict[str, int] = {}
    for line in (read("/proc/meminfo") or "").splitlines():
        words = line.split()
        if len(words) > 1 and words[1].isdecimal():
            about[words[0].rstrip(":")] = 1024 * int(words[1])
    machine = total = about.get("MemTotal", 0)
    free = about.get("MemAvailable", about.get("MemFree", 0))
    for folder in memory_groups():
        limit = number_in(folder, "memory.max", "memory.limit_in_bytes")
        if not limit or limit >= machine:
            continue
        total = min(total, limit)
        used = number_in(folder, "memory.current", "memory.usage_in_bytes")
        if used is not None:
            stat = dict(
                line.partition(" ")[::2] for line in (read(folder + "/memory.stat") or "").splitlines()
            )
            kept = number_of(stat.get("total_inactive_file", stat.get("inactive_file", "")))
            free = min(free, max(0, limit - used + (kept or 0)))
    return {"memory_bytes": total, "memory_free_bytes": min(free, total)}


def host_facts(asked: Dict[str, Any]) -> Dict[str, Any]:
    """Return what every machine has."""
    disk, names = os.statvfs(os.path.expanduser("~")), os.uname()
    return {
        "hostname": names.nodename,
        "machine": names.machine,
        "kernel": names.release,
        "boot_id": read("/proc/sys/kernel/random/boot_id"),
        "user": pwd.getpwuid(os.geteuid()).pw_name,
        "cpu_count": len(os.sched_getaffinity(0)),
        "disk_free_bytes": disk.f_bavail * disk.f_frsize,
        **memory(),
    }
