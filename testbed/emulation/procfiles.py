"""What covers ``/proc/stat`` and ``/proc/meminfo`` of an emulated board: its own CPUs and memory.

Every number has a fixed width, so that rewriting the file in place never leaves a reader with half a line.
"""

from __future__ import annotations

import time

__all__ = ["meminfo", "stat_file"]

_TICK_NS = 10_000_000
_BOOT_S = int(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME))


def stat_file(cpus: int, elapsed_ns: int, used_ns: int) -> bytes:
    """Return ``/proc/stat`` of a board.

    Args:
        cpus: How many CPUs it has.
        elapsed_ns: How long it has run.
        used_ns: The CPU time that it used, spread evenly over its CPUs.
    """
    elapsed = elapsed_ns // _TICK_NS
    user = min(used_ns // cpus // _TICK_NS, elapsed)
    idle = elapsed - user
    rest = b" 0 0 0 0 0 0"
    lines = [b"cpu  %012d 0 0 %012d%s" % (user * cpus, idle * cpus, rest)]
    lines += [b"cpu%d %012d 0 0 %012d%s" % (number, user, idle, rest) for number in range(cpus)]
    lines += [
        b"intr 0",
        b"ctxt 0",
        b"btime %d" % _BOOT_S,
        b"processes 0",
        b"procs_running 1",
        b"procs_blocked 0",
    ]
    return b"\n".join(lines) + b"\n"


def meminfo(total_kib: int, used_kib: int) -> bytes:
    """Return ``/proc/meminfo`` of a board.

    Args:
        total_kib: Its memory.
        used_kib: What is in use.
    """
    free = max(0, total_kib - used_kib)
    values = {
        "MemTotal": total_kib,
        "MemFree": free,
        "MemAvailable": free,
        "Buffers": 0,
        "Cached": 0,
        "SwapCached": 0,
        "Shmem": 0,
        "SReclaimable": 0,
        "SwapTotal": 0,
        "SwapFree": 0,
    }
    return b"".join(b"%-16s%10d kB\n" % (f"{name}:".encode(), value) for name, value in values.items())
