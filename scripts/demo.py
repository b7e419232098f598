"""The demo: an emulated rack of four unequal Jetsons, one campaign over it, and a report.

Run by scripts/demo, which installs what is missing. It prints each command that it runs, so that the same can be
typed by hand, and at the end how long it took and how much memory all its processes held together.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INVENTORY = "inventory/emulated.yaml"
CAMPAIGN = "campaigns/quickstart.yaml"
TESTBED = [str(Path(sys.executable).with_name("testbed"))]
LIMIT_SECONDS = 300
LIMIT_GIB = 4.0


class MemoryWatch(threading.Thread):
    """Samples once a second the resident memory of this process and all below it or below the lab's keeper."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.roots = {os.getpid()}
        self.peak_bytes = 0
        self.ended = threading.Event()

    def run(self) -> None:
        """Sample until ended."""
        while not self.ended.wait(1.0):
            self.peak_bytes = max(self.peak_bytes, resident_bytes(self.roots))


def resident_bytes(roots: set[int]) -> int:
    """Return the resident bytes of the processes in ``roots`` and their descendants, shared pages counted each time."""
    parents: dict[int, int] = {}
    resident: dict[int, int] = {}
    page = os.sysconf("SC_PAGE_SIZE")
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            resident[int(folder.name)] = int((folder / "statm").read_text().split()[1]) * page
            parents[int(folder.name)] = int(fields[1])
        except (OSError, IndexError):
            continue  # the process ended while it was being read

    def belongs(pid: int) -> bool:
        while pid not in roots:
            pid = parents.get(pid, 0)
            if pid == 0:
                return False
        return True

    return sum(size for pid, size in resident.items() if belongs(pid))


def call(*arguments: str, capture: bool = False) -> str:
    """Run one testbed command, shown first."""
    print(f"$ testbed {' '.join(arguments)}", file=sys.stderr, flush=True)
    line = [*TESTBED, *arguments]
    process = subprocess.Popen(line, text=True, stdout=subprocess.PIPE if capture else None)
    stopped = False
    while True:
        try:
            output = process.communicate()[0] or ""
            break
        except KeyboardInterrupt:
            stopped = True  # the command has been told too, and puts everything in order before it ends
    if stopped:
        raise KeyboardInterrupt
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, line, output)
    return output


def main() -> int:
    """Run the demo and return the exit status."""
    os.chdir(ROOT)
    watch = MemoryWatch()
    watch.start()
    began = time.monotonic()
    status = 0
    try:
        call("emulate", "up", "--inventory", INVENTORY)
        lab = json.loads(call("emulate", "status", "--inventory", INVENTORY, "--json", capture=True))
        watch.roots.add(int(lab["keeper_pid"]))
        call("provision", "--inventory", INVENTORY)
        result = json.loads(call("run", CAMPAIGN, "--json", *sys.argv[1:], capture=True))
    except subprocess.CalledProcessError as error:
        print(error.output or "", end="", file=sys.stderr)  # of a run: which trials failed, and the report
        print(f"the demo ended: `{' '.join(error.cmd[1:])}` returned {error.returncode}", file=sys.stderr)
        return error.returncode
    except KeyboardInterrupt:
        return 130
    finally:
        call("emulate", "down", "--inventory", INVENTORY)
        watch.ended.set()
        give_back(ROOT / "results")
    seconds = time.monotonic() - began
    gib = watch.peak_bytes / 2**30
    print(
        f"took {seconds:.0f} s (limit {LIMIT_SECONDS}), peak memory {gib:.2f} GiB resident (limit {LIMIT_GIB})"
    )
    print(f"report: {result['report']}")
    if gib > LIMIT_GIB:
        print("more memory than promised", file=sys.stderr)
        status = 1
    return status


def give_back(folder: Path) -> None:
    """Give the results to the user who called sudo."""
    owner = os.environ.get("TESTBED_FILES_OF", "")
    if owner and owner != "0:0" and folder.exists():
        subprocess.run(["chown", "-R", owner, str(folder)], check=True)


if __name__ == "__main__":
    sys.exit(main())
