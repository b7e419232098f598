"""Look at this machine. Changes nothing: what has to be tried out is tried in processes and namespaces that end."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

from testbed.config.inventory import Inventory
from testbed.doctor.machine import KeyFile, Machine, Ssh, Sudo, Torch
from testbed.emulation.namespaces import effective_capabilities
from testbed.emulation.preflight import PROGRAM_PATH, missing_programs
from testbed.emulation.pythons import find_python
from testbed.hosts.probes.host import memory

__all__ = [
    "BOARD_PYTHONS",
    "cgroup_problems",
    "clock_state",
    "look_at_keys",
    "look_at_machine",
    "read_requirements",
]

BOARD_PYTHONS = ("3.8", "3.10", "3.12")
"""The Pythons of JetPack 5, 6 and 7."""
DISTRIBUTION = "wireless-testbed"
TRIAL_S = 60.0
TORCH_S = 180.0
# Beside those of every emulated lab: of the tests, and of boards whose user is not root.
_MORE_PROGRAMS = ("ps", "sudo", "openssl")
_CAPABILITIES = {12: "NET_ADMIN", 21: "SYS_ADMIN"}
_STA_UNSYNC = 0x40
_KEY_NAMES = ("id_ed25519", "id_ecdsa", "id_rsa")  # those that paramiko looks for
_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[([^\]]*)\])?\s*(?:==\s*([^\s;]+))?")

_TORCH = """
import json, torch
a = torch.arange(4.0).reshape(2, 2)
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
answer = {"version": torch.__version__, "cuda": torch.version.cuda, "gpu": gpu, "right": False}
try:
    b = a.cuda() if gpu else a
    answer["right"] = (b @ b).cpu().tolist() == [[2.0, 3.0], [6.0, 11.0]]
except Exception as error:
    answer["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(answer))
"""


def look_at_machine(inventory: Inventory | None = None, folder: Path = Path()) -> Machine:
    """Return what this machine is.

    Args:
        inventory: The lab whose keys are looked at beside the user's own.
        folder: The folder where results are to be written.
    """
    base, dev, pinned = read_requirements(_checkout())
    root = os.geteuid() == 0
    with ThreadPoolExecutor(thread_name_prefix="doctor") as pool:
        torch = pool.submit(_torch)
        tried = pool.submit(_trial) if root else None
        links = pool.submit(_link_kinds) if root else None
        pythons = pool.submit(_pythons)
        sudo = pool.submit(_sudo)
    kernel = tried.result() if tried else {}
    shaping = links.result() if links else {}
    disk = os.statvfs(folder)
    synchronised, error_s = clock_state()
    mask = effective_capabilities(Path("/proc/self/status").read_text()) if root else -1
    return Machine(
        system=_system_name(Path("/etc/os-release")),
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        executable=sys.executable,
        cpu_count=len(os.sched_getaffinity(0)),
        **memory(),
        disk_free_bytes=disk.f_bavail * disk.f_frsize,
        sudo=sudo.result(),
        capabilities_missing=tuple(name for bit, name in _CAPABILITIES.items() if not mask >> bit & 1),
        programs={
            name: shutil.which(name, path=PROGRAM_PATH)
            for name in (*_MORE_PROGRAMS, *missing_programs(lambda _program: None))
        },
        packages={name: _installed(name) for name in (*base, *dev)},
        packages_dev=frozenset(dev),
        pinned=pinned,
        torch=torch.result(),
        namespaces=kernel.get("namespaces"),
        interfaces=kernel.get("interfaces"),
        overlay=kernel.get("overlay"),
        link_kinds=shaping.get("kinds"),
        link_backends=shaping.get("backends"),
        cgroups=cgroup_problems(Path("/")),
        interpreters=pythons.result(),
        browser=_browser(),
        stock_kernel=shutil.which("linux.uml"),
        ssh=look_at_keys(inventory, Path.home(), os.environ.get("SSH_AUTH_SOCK")),
        clock_synchronised=synchronised,
        clock_error_s=error_s,
    )


def read_requirements(checkout: Path | None) -> tuple[list[str], list[str], dict[str, str]]:
    """Return the packages that testbed needs, those that only its tests need, and the versions it is tested with.

    Args:
        checkout: The folder of the project's source; None where it is installed without.
    """
    extras: dict[str, list[str]] = {}
    pinned: dict[str, str] = {}
    if checkout is not None:
        project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
        required = list(project["dependencies"])
        extras = project.get("optional-dependencies", {})
        constraints = checkout / "constraints.txt"
        lines = constraints.read_text().splitlines() if constraints.exists() else []
        pinned = {_normal(m[1]): m[3] for line in lines if (m := _REQUIREMENT.match(line)) and m[3]}
    else:
        required = []
        for line in metadata.requires(DISTRIBUTION) or []:
            extra = re.search(r"""extra == ["']([^"']+)["']""", line)
            (extras.setdefault(extra[1], []) if extra else required).append(line)
    base = _names(required, extras, pinned)
    dev = _names(extras.get("dev", []), extras, pinned)
    return base, [name for name in dev if name not in base], pinned


def _names(lines: Sequence[str], extras: Mapping[str, Sequence[str]], pinned: dict[str, str]) -> list[str]:
    """Return the names in requirements; one on this project's own extras stands for what they hold."""
    names: list[str] = []
    for line in lines:
        match = _REQUIREMENT.match(line)
        if match is None:
            continue
        name = _normal(match[1])
        if name == DISTRIBUTION:
            for extra in (match[2] or "").split(","):
                names += _names(extras.get(extra.strip(), []), extras, pinned)
            continue
        if match[3]:
            pinned.setdefault(name, match[3])
        names.append(name)
    return list(dict.fromkeys(names))


def _normal(name: str) -> str:
    """Return a package's name as the index writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def look_at_keys(inventory: Inventory | None, home: Path, agent_socket: str | None) -> Ssh:
    """Return what logs in to hosts.

    Args:
        inventory: The lab whose keys are looked at beside the user's own.
        home: The user's home folder.
        agent_socket: Where the SSH agent answers; None where there is none.
    """
    keys = [_key_file(home / ".ssh" / name, ()) for name in _KEY_NAMES]
    # Those without a mode are not there, or where this user may not look.
    own = [key for key in keys if key.mode is not None]
    named: dict[Path, list[str]] = {}
    unnamed: tuple[str, ...] | None = None
    if inventory is not None:
        unnamed = tuple(host.name for host in inventory.hosts.values() if host.key_file is None)
        for host in inventory.hosts.values():
            if host.key_file is not None:
                named.setdefault(host.key_file, []).append(host.name)
    agent, agent_keys = _agent(agent_socket)
    return Ssh(agent, agent_keys, (*own, *(_key_file(path, hosts) for path, hosts in named.items())), unnamed)


def _key_file(path: Path, hosts: Sequence[str]) -> KeyFile:
    import paramiko

    mode, locked, wrong = None, False, ""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        paramiko.PKey.from_path(path)
    except OSError as error:
        wrong = error.strerror or str(error)
    except paramiko.PasswordRequiredException:
        locked = True
    except (paramiko.SSHException, ValueError, TypeError) as error:
        # An encrypted key in OpenSSL's or OpenSSH's own format is refused by the library below paramiko.
        locked = "password" in str(error).lower() or "encrypted" in str(error).lower()
        wrong = "" if locked else f"no private key: {error}"
    except Exception as error:  # whatever the library makes of a file that is no key
        wrong = f"no private key: {error or type(error).__name__}"
    return KeyFile(str(path), mode, locked, wrong, tuple(hosts))


def _agent(agent_socket: str | None) -> tuple[bool | None, int]:
    """Return whether an SSH agent answers, and how many keys it holds."""
    if not agent_socket:
        return None, 0
    program = shutil.which("ssh-add")
    if program is None:
        return Path(agent_socket).is_socket(), 0
    done = _run([program, "-l"], 10.0, env={**os.environ, "SSH_AUTH_SOCK": agent_socket})
    # 1: it has no key; 2: it does not answer.
    if done is None or done.returncode not in (0, 1):
        return False, 0
    return True, len(done.stdout.splitlines()) if done.returncode == 0 else 0


def cgroup_problems(root: Path) -> tuple[str, ...]:
    """Return what of the control groups' CPU and memory limits cannot be had.

    Args:
        root: The root of the filesystem.
    """
    there: set[str] = set()
    mounted = False
    for line in (root / "proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, options = right.split()[0], right.split()[-1].split(",")
        if kind == "cgroup":
            mounted = True
            there.update(options)
        elif kind == "cgroup2":
            mounted = True
            listed = root / left.split()[4].lstrip("/") / "cgroup.controllers"
            there.update(listed.read_text().split() if listed.exists() else ())
    if not mounted:
        return ("no control groups are mounted",)
    return tuple(f"no {name} controller" for name in ("cpu", "memory") if name not in there)


def clock_state(read: Callable[[Any], int] | None = None) -> tuple[bool | None, float | None]:
    """Return whether the kernel takes its clock for synchronised, and how far off it may be, in seconds.

    Args:
        read: Fills the kernel's record of its clock (``struct timex``); the kernel does where left out.
    """
    record = ctypes.create_string_buffer(256)
    try:
        answer = (read or ctypes.CDLL(None).adjtimex)(record)
    except (AttributeError, OSError):
        return None, None
    if answer < 0:
        return None, None
    # modes, offset, frequency, the greatest error and the estimated one in microseconds, status: see adjtimex(2).
    _modes, _offset, _frequency, greatest_us, _estimated, status = struct.unpack_from("@illlli", record.raw)
    synchronised = not status & _STA_UNSYNC
    return synchronised, greatest_us / 1e6 if synchronised else None


def _checkout() -> Path | None:
    """Return the folder of the project's source, or None where testbed is installed without."""
    folder = Path(__file__).resolve().parents[2]
    return folder if (folder / "pyproject.toml").exists() else None


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _system_name(file: Path) -> str:
    text = file.read_text() if file.exists() else ""
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)', text, re.MULTILINE)
    return match[1] if match else platform.system()


def _run(
    argv: Sequence[str], timeout_s: float, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str] | None:
    """Return how a program ended, or None where it cannot be run or hangs."""
    try:
        return _ended(argv, timeout_s, env)
    except (OSError, subprocess.TimeoutExpired):
        return None


def _ended(
    argv: Sequence[str], timeout_s: float, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=env,
        check=False,
    )


def _answer(argv: Sequence[str], timeout_s: float) -> tuple[dict[str, Any], str]:
    """Return the JSON object that a program of this Python prints, and what it said instead."""
    try:
        done = _ended([sys.executable, *argv], timeout_s)
    except subprocess.TimeoutExpired:
        return {}, f"no answer within {timeout_s:g} s"
    except OSError as error:
        return {}, f"{sys.executable} cannot be run: {error.strerror}"
    try:
        return dict(json.loads(done.stdout)), ""
    except ValueError:
        said = (done.stderr or done.stdout).strip().splitlines()
        return {}, said[-1] if said else f"ended with status {done.returncode} and said nothing"


def _torch() -> Torch:
    found, said = _answer(["-c", _TORCH], TORCH_S)
    return Torch(**found) if found else Torch(error=said)


def _trial() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="testbed-doctor-") as folder:
        found, said = _answer(["-m", "testbed.doctor.trial", folder], TRIAL_S)
    failed = {"namespaces": {"trial": said}, "interfaces": {"trial": said}, "overlay": said}
    return found or failed


def _link_kinds() -> dict[str, Any]:
    found, said = _answer(["-m", "payloads.linkd", "capabilities"], TRIAL_S)
    return found or {"kinds": {"trial": said}, "backends": {"socket-pacing": said}}


def _sudo() -> Sudo:
    if os.geteuid() == 0:
        return "root"
    program = shutil.which("sudo")
    if program is None:
        return "none"
    done = _run([program, "-n", "true"], 10.0)
    return "free" if done is not None and done.returncode == 0 else "asks"


def _pythons() -> dict[str, str | None]:
    found = {version: find_python(version) for version in BOARD_PYTHONS}
    return {v: None if one is None else f"{one.prefix}/{one.program}" for v, one in found.items()}


def _browser() -> str | None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    return browser if shutil.which("chromedriver") else None
