"""The first process of the stock kernel that ``stock_kernel.py`` starts: not to be run by hand.

It loads the modules, puts an overlay in memory over the host's files, runs the command there, reaps what the
command leaves behind, writes its exit code to the run's folder on the host and powers off.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

MODULES = Path("/usr/lib/uml/modules")
#: What a Debian server has, and the links or their tests use. Loaded here, because a kernel asks modprobe of
#: the package kmod for what is missing, which a container's or a minimal host has not.
WANTED = (
    *("overlay", "veth", "ifb", "tun", "dummy", "bridge", "ipv6", "tcp_bbr"),
    *("sch_htb", "sch_tbf", "sch_netem", "sch_fq", "sch_fq_codel", "sch_ingress"),
    *("sch_cake", "sch_codel", "sch_pie", "sch_prio", "sch_red", "sch_sfq"),
    *("cls_u32", "cls_flower", "cls_matchall", "act_mirred", "act_gact", "act_police"),
)
#: A new root is put together here; every Debian has the folder.
_STAGE = Path("/mnt")
_POWER_OFF = 0x4321FEDC
_FINIT_MODULE = 313  # the number of the system call on x86-64
_FLUSH_S = 0.25

_libc = ctypes.CDLL(None, use_errno=True)


def _mount(kind: str, where: Path, options: str = "", source: str = "none") -> None:
    words = ["mount", "-t", kind, *(["-o", options] if options else []), source, str(where)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")


def _name(path: str) -> str:
    return path.strip().rsplit("/", 1)[-1].split(".")[0].replace("-", "_")


def load_modules(folder: Path, wanted: tuple[str, ...]) -> None:
    """Load the modules, each after those that it needs."""
    lines = (line.split(":", 1) for line in (folder / "modules.dep").read_text().splitlines())
    known = {_name(path): (folder / path, needs.split()) for path, needs in lines}
    done: set[str] = set()

    def load(name: str) -> None:
        if name in done:
            return
        done.add(name)
        path, needs = known[name]
        for other in needs:
            load(_name(other))
        with path.open("rb") as file:
            if _libc.syscall(_FINIT_MODULE, file.fileno(), b"", 0):
                print(f"module {name}: {os.strerror(ctypes.get_errno())}", flush=True)

    for name in wanted:
        if name in known:
            load(name)
        else:
            print(f"module {name}: not in {folder}", flush=True)


def change_root(folder: Path, keep: str | None, needed: list[str]) -> None:
    """Make an overlay in memory over the host's files the root; ``folder`` and ``keep`` stay the host's own."""
    _mount("tmpfs", _STAGE)
    upper, work, root = (_STAGE / name for name in ("upper", "work", "root"))
    for path in (upper, work, root):
        path.mkdir()
    _mount("overlay", root, f"lowerdir=/,upperdir={upper},workdir={work}", "overlay")
    _mount("proc", root / "proc")
    _mount("sysfs", root / "sys")
    _mount("devtmpfs", root / "dev")
    for name, kind in (("pts", "devpts"), ("shm", "tmpfs")):
        (root / "dev" / name).mkdir(exist_ok=True)
        _mount(kind, root / "dev" / name)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        (root / "dev" / name).symlink_to(f"/proc/self/fd/{number}")
    (root / "dev/fd").symlink_to("/proc/self/fd")
    for scratch in ("tmp", "run"):
        # The host's own sockets and namespaces are not this kernel's. What is needed from there stays in sight.
        if not any(path == f"/{scratch}" or path.startswith(f"/{scratch}/") for path in needed):
            _mount("tmpfs", root / scratch, "mode=1777" if scratch == "tmp" else "mode=755")
    for shared in [str(folder), *([keep] if keep else [])]:
        target = root / shared.lstrip("/")
        target.mkdir(parents=True, exist_ok=True)
        _mount("hostfs", target, shared)
    os.chroot(root)
    os.chdir("/")


def run_command(job: dict[str, Any], folder: Path) -> int:
    """Run the command and return its exit code, 128 and the signal's number where one ended it."""
    with (folder / "stdout").open("ab") as out, (folder / "stderr").open("ab") as err:
        try:
            process = subprocess.Popen(
                job["command"],
                cwd=job["directory"],
                env=job["environment"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        except OSError as error:
            err.write(f"==> {job['command'][0]}: {error.strerror}\n".encode())
            return 127
        while True:
            # Written pages reach the host when they are flushed. A child's end cuts the wait short.
            signal.sigtimedwait([signal.SIGCHLD], _FLUSH_S)
            os.fsync(out.fileno())
            os.fsync(err.fileno())
            while True:
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    pid = 0
                if pid == process.pid:
                    process.returncode = os.waitstatus_to_exitcode(status)
                    code = process.returncode
                    return code if code >= 0 else 128 - code
                if pid == 0:
                    break


def main(folder: Path) -> None:
    """Run the job of a folder; its exit code is left there in ``code``."""
    _mount("proc", Path("/proc"))
    job = json.loads((folder / "job.json").read_text())
    load_modules(MODULES / os.uname().release, WANTED)
    change_root(folder, job["keep"], job["needed"])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, env=job["environment"])
    code = run_command(job, folder)
    with (folder / "code").open("w") as file:
        file.write(str(code))
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    os.environ.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    try:
        main(Path(sys.argv[1]))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os.sync()
        _libc.reboot(_POWER_OFF)
