"""What a machine lacks for the demo, the tests and a rack, and how to get it. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from testbed.doctor.machine import KeyFile, Machine

__all__ = ["PURPOSES", "Check", "Purpose", "State", "check_machine", "is_ready"]

Purpose = Literal["demo", "tests", "rack"]
PURPOSES: tuple[Purpose, ...] = ("demo", "tests", "rack")

State = Literal["missing", "weak", "unknown", "ok"]
"""Missing: it does not work without. Weak: it works, and something is left out or worse. Unknown: not tried."""
STATES: tuple[State, ...] = ("missing", "weak", "unknown", "ok")

GIB = 2**30
#: What the demo's processes hold together at their peak, as `scripts/demo` itself checks.
MEMORY_BYTES = 4 * GIB
DISK_BYTES: Mapping[Purpose, int] = {"demo": 1 * GIB, "tests": 3 * GIB, "rack": 2 * GIB}
OLDEST_PYTHON = (3, 11)
LAB: tuple[Purpose, ...] = ("demo", "tests")
"""What an emulated lab is needed for."""
RACK: tuple[Purpose, ...] = ("rack",)

#: The Debian package of each program that is not called like it.
_PACKAGE_OF = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ip": "iproute2",
    "nc": "netcat-openbsd",
    "nsenter": "util-linux",
    "swapon": "mount",
    "ps": "procps",
}
#: What emulated boards have from this machine where their user is not root.
_FOR_USERS = ("sudo", "openssl")
_PRIVILEGED = "start the container with `--privileged`, or use a virtual machine"
_SOURCE = "pip install -c constraints.txt -e"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        item: What, in a word or two.
        state: How it is.
        text: What was found.
        purposes: What it is needed for.
        fix: What to do about it; empty where it is well.
    """

    item: str
    state: State
    text: str
    purposes: tuple[Purpose, ...] = PURPOSES
    fix: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the check as plain data."""
        return {
            "item": self.item,
            "state": self.state,
            "text": self.text,
            "purposes": list(self.purposes),
            "fix": self.fix,
        }


def check_machine(machine: Machine, purposes: Sequence[Purpose] = PURPOSES) -> list[Check]:
    """Return what is well and what is not for some purposes, the worst first.

    Args:
        machine: The machine.
        purposes: What it is to be used for.
    """
    found = [check for topic in _TOPICS for check in topic(machine) if set(check.purposes) & set(purposes)]
    return sorted(found, key=lambda check: STATES.index(check.state))


def is_ready(checks: Iterable[Check], purpose: Purpose) -> bool:
    """Return whether nothing is missing for a purpose."""
    return not any(check.state == "missing" and purpose in check.purposes for check in checks)


def _system(machine: Machine) -> Iterator[Check]:
    if not machine.kernel.startswith("Linux"):
        fix = "use a machine or a virtual machine with Debian or Ubuntu"
        yield Check("system", "missing", f"{machine.kernel}: testbed runs on Linux only", fix=fix)
    else:
        yield Check("system", "ok", f"{machine.system}, {machine.kernel}")


def _python(machine: Machine) -> Iterator[Check]:
    if tuple(int(part) for part in machine.python.split(".")[:2]) < OLDEST_PYTHON:
        text = f"Python {machine.python} ({machine.executable}) is too old; 3.11 or newer is needed"
        yield Check("python", "missing", text, fix="apt-get install python3 python3-venv; then scripts/demo")
    else:
        yield Check("python", "ok", f"Python {machine.python} ({machine.executable})")


def _packages(machine: Machine) -> Iterator[Check]:
    pip = f"{shlex.quote(machine.executable)} -m {_SOURCE}"
    wanted = {name: version for name, version in machine.packages.items() if name != "torch"}
    parts: list[tuple[str, tuple[Purpose, ...], str, bool]] = [
        ("packages", PURPOSES, f"{pip} .", False),
        ("test packages", ("tests",), f"{pip} '.[dev]'", True),
    ]
    for item, purposes, fix, dev in parts:
        mine = {n: version for n, version in wanted.items() if (n in machine.packages_dev) is dev}
        missing = sorted(name for name, version in mine.items() if version is None)
        other = sorted(
            f"{name} {version} instead of {machine.pinned[name]}"
            for name, version in mine.items()
            if version is not None and machine.pinned.get(name, version) != version
        )
        if missing:
            yield Check(item, "missing", f"not installed: {', '.join(missing)}", purposes, fix)
        elif other:
            text = f"other versions than testbed is tested with: {', '.join(other)}"
            yield Check(item, "weak", text, purposes, fix)
        elif mine:
            yield Check(item, "ok", f"{len(mine)} packages are installed", purposes)


def _torch(machine: Machine) -> Iterator[Check]:
    torch, pinned = machine.torch, machine.pinned.get("torch")
    wanted = f"torch{'==' + pinned if pinned else ''}"
    fix = f"{shlex.quote(machine.executable)} -m pip install --force-reinstall {shlex.quote(wanted)}"
    build = f"torch {torch.version} ({f'built for CUDA {torch.cuda}' if torch.cuda else 'CPU build'})"
    where = f"computes on {torch.gpu}" if torch.gpu else "computes on the CPU"
    if torch.version is None:
        yield Check(
            "torch", "missing", f"torch cannot be imported: {torch.error or 'no reason given'}", fix=fix
        )
    elif not torch.right:
        text = f"{build} gets a product of 2 x 2 numbers wrong{': ' + torch.error if torch.error else ''}"
        yield Check("torch", "missing", text, fix=fix)
    elif pinned and torch.version.split("+")[0] != pinned:
        yield Check("torch", "weak", f"{build}; testbed is tested with {pinned}", fix=fix)
    else:
        yield Check("torch", "ok", f"{build}, {where}")


def _root(machine: Machine) -> Iterator[Check]:
    if machine.sudo == "none":
        text = "this user is not root and there is no sudo: namespaces and links cannot be made"
        yield Check("root", "missing", text, LAB, "do it as root, or as root: apt-get install sudo")
    elif machine.sudo == "asks":
        text = "sudo asks for a password: `scripts/demo` and `scripts/test` will stop and ask"
        yield Check("root", "ok", text, LAB)
    else:
        text = {"root": "this user is root", "free": "sudo without a password"}[machine.sudo]
        yield Check("root", "ok", text, LAB)


def _programs(machine: Machine) -> Iterator[Check]:
    needed = {name: path for name, path in machine.programs.items() if name not in _FOR_USERS}
    lacking = sorted(name for name, path in machine.programs.items() if name in _FOR_USERS and path is None)
    missing = sorted(name for name, path in needed.items() if path is None)
    if missing:
        yield Check("programs", "missing", f"not installed: {', '.join(missing)}", LAB, _install(missing))
    elif needed:
        yield Check("programs", "ok", f"{', '.join(sorted(needed))}", LAB)
    if lacking:
        text = f"no {', '.join(lacking)}: no emulated boards whose user is not root or has a password"
        yield Check("board programs", "weak", text, LAB, _install(lacking))


def _install(programs: Iterable[str]) -> str:
    packages = " ".join(dict.fromkeys(_PACKAGE_OF.get(name, name) for name in programs))
    return f"apt-get install {packages}"


def _kernel(machine: Machine) -> Iterator[Check]:
    """Yield what an emulated board needs of the kernel: namespaces, interfaces, overlay."""
    if machine.namespaces is None or machine.interfaces is None or machine.overlay is None:
        text = "namespaces, overlay and the kernel's shaping can be tried by root only"
        program = str(Path(machine.executable).with_name("testbed"))
        yield Check("kernel", "unknown", text, LAB, f"sudo {shlex.quote(program)} doctor")
        return
    lacking = ", ".join(machine.capabilities_missing)
    why = f"; this container's root has not {lacking}" if lacking else ""
    fix = _PRIVILEGED if lacking else "a kernel with these namespaces, such as Debian's own; see `lsns`"
    yield from _all_work("namespaces", machine.namespaces, LAB, fix, why)
    modules = " ".join(name for name, reason in machine.interfaces.items() if reason is not None)
    fix = _PRIVILEGED if lacking else f"on the machine itself: modprobe {modules}"
    yield from _all_work("interfaces", machine.interfaces, LAB, fix, why)
    if machine.namespaces.get("mount") is not None:
        return  # an overlay is mounted in a namespace only
    if machine.overlay:
        fix = _PRIVILEGED if lacking else "on the machine itself: modprobe overlay"
        yield Check("overlay", "missing", f"no overlay filesystem: {machine.overlay}{why}", LAB, fix)
    else:
        yield Check("overlay", "ok", "an overlay filesystem can be mounted", LAB)


def _all_work(
    item: str, found: Mapping[str, str | None], purposes: tuple[Purpose, ...], fix: str, why: str
) -> Iterator[Check]:
    broken: dict[str, list[str]] = {}
    for name, reason in found.items():
        if reason is not None:
            broken.setdefault(reason, []).append(name)
    if broken:
        text = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in broken.items())
        yield Check(item, "missing", text + why, purposes, fix)
    elif found:
        yield Check(item, "ok", ", ".join(found), purposes)


def _links(machine: Machine) -> Iterator[Check]:
    """Yield whether the base station of an emulated lab, which has this kernel, can shape links."""
    backends, kinds = machine.link_backends, machine.link_kinds
    if backends is None or kinds is None:
        return  # the kernel was not tried, and that is said
    there = [name for name in backends if name.startswith("bs-") and backends[name] is None]
    lacking = {name: reason for name, reason in kinds.items() if reason is not None}
    words = ", ".join(f"{name} ({reason})" for name, reason in lacking.items())
    modules = "on the machine itself: apt-get install linux-modules-extra-$(uname -r)"
    if not there and machine.capabilities_missing:
        text = (
            f"this container's root has not {', '.join(machine.capabilities_missing)}: links cannot be shaped"
        )
        yield Check("links", "missing", text, LAB, _PRIVILEGED)
    elif not there and backends.get("socket-pacing") is None:
        text = f"the kernel cannot shape links: {words}"
        fix = f"{modules}; or `network: {{shaping: pacing}}` in the inventory, which paces testbed's own traffic"
        yield Check("links", "missing", text, LAB, fix)
    elif not there:
        yield Check("links", "missing", f"links cannot be shaped or paced: {words}", LAB, modules)
    elif "netem" in lacking and "tun" in lacking:
        text = f"no delay, jitter or loss: {words}"
        yield Check("links", "weak", text, LAB, f"{modules}; or: modprobe tun")
    elif "netem" in lacking:
        text = f"shaped by {', '.join(there)}; {words}: the user-space line gives delay, jitter and loss"
        yield Check("links", "ok", text, LAB)
    else:
        yield Check("links", "ok", f"shaped by {', '.join(there)}", LAB)


def _cgroups(machine: Machine) -> Iterator[Check]:
    if machine.cgroups:
        text = f"{'; '.join(machine.cgroups)}: boards have no such limits"
        fix = "mount control groups with the controllers cpu and memory, or start the container with `--privileged`"
        yield Check("control groups", "weak", text, LAB, fix)
    else:
        yield Check("control groups", "ok", "cpu and memory", LAB)


def _sizes(machine: Machine) -> Iterator[Check]:
    if machine.cpu_count < 2:
        text = "one processor: boards wait for each other, and links are late"
        yield Check("processors", "weak", text, LAB, "use a machine with two processors or more")
    else:
        yield Check("processors", "ok", f"{machine.cpu_count}", LAB)
    total, free = machine.memory_bytes, machine.memory_free_bytes
    text = f"{total / GIB:.1f} GiB, {free / GIB:.1f} free; up to {MEMORY_BYTES / GIB:.0f} GiB are used"
    if total < MEMORY_BYTES:
        yield Check(
            "memory", "missing", text, LAB, "use a machine with more memory, or a larger limit for this"
        )
    elif free < MEMORY_BYTES:
        yield Check("memory", "weak", text, LAB, "end what else runs: `ps aux --sort=-rss | head` names it")
    else:
        yield Check("memory", "ok", text, LAB)
    small = tuple(purpose for purpose in PURPOSES if machine.disk_free_bytes < DISK_BYTES[purpose])
    large = tuple(purpose for purpose in PURPOSES if purpose not in small)
    text = f"{machine.disk_free_bytes / GIB:.1f} GiB are free in this folder"
    if small:
        needed = max(DISK_BYTES[purpose] for purpose in small)
        fix = "make room: `du -xh --max-depth=2 . | sort -h | tail`; old runs are in results/"
        yield Check("disk", "missing", f"{text}; {needed / GIB:.0f} GiB are needed", small, fix)
    if large:
        yield Check("disk", "ok", text, large)


def _interpreters(machine: Machine) -> Iterator[Check]:
    missing = [version for version, path in machine.interpreters.items() if path is None]
    there = [version for version, path in machine.interpreters.items() if path is not None]
    if missing:
        text = (
            f"no Python {', '.join(missing)}: emulated boards that should have it keep this machine's, and the tests "
            "of the device code under it are skipped"
        )
        fix = f"by pyenv: {'; '.join(f'pyenv install {version}' for version in missing)}"
        yield Check("old Pythons", "weak", text, ("tests",), fix)
    elif there:
        yield Check("old Pythons", "ok", ", ".join(there), ("tests",))


def _extras(machine: Machine) -> Iterator[Check]:
    """Yield what only some tests need."""
    if machine.browser is None:
        text = "no Chromium (or google-chrome) with its driver: the browser tests of the report are skipped"
        fix = "apt-get install chromium chromium-driver"
        yield Check("browser", "weak", text, ("tests",), fix)
    else:
        yield Check("browser", "ok", machine.browser, ("tests",))
    if machine.stock_kernel is None:
        text = "no linux.uml: the tests under a stock kernel are skipped"
        yield Check(
            "stock kernel", "weak", text, ("tests",), "apt-get install user-mode-linux (on amd64 only)"
        )
    else:
        yield Check("stock kernel", "ok", machine.stock_kernel, ("tests",))


def _keys(machine: Machine) -> Iterator[Check]:
    """Yield whether this user can log in to hosts without being asked."""
    ssh = machine.ssh
    for key in ssh.keys:
        yield from _key(key, agent_keys=ssh.agent_keys)
    if ssh.unnamed == ():
        return  # every host names a key of its own
    own = [key for key in ssh.keys if not key.hosts]
    usable = [key.path for key in own if key.usable]
    whose = f" for {', '.join(ssh.unnamed)}, which name no `key_file`" if ssh.unnamed else ""
    if ssh.agent_keys:
        yield Check("login", "ok", f"the SSH agent holds {ssh.agent_keys} keys", RACK)
    elif usable:
        yield Check("login", "ok", ", ".join(usable), RACK)
    elif any(key.locked for key in own):
        locked = next(key.path for key in own if key.locked)
        text = f"every key has a passphrase and the SSH agent holds none{whose}"
        start = "" if ssh.agent else 'eval "$(ssh-agent)"; '
        yield Check("login", "missing", text, RACK, f"{start}ssh-add {shlex.quote(locked)}")
    else:
        text = f"no key to log in with, neither in the SSH agent nor in ~/.ssh{whose}"
        fix = "ssh-keygen -t ed25519; then for each host: ssh-copy-id USER@HOST"
        yield Check("login", "missing", text, RACK, fix)
    if ssh.agent is False:
        text = "SSH_AUTH_SOCK names an SSH agent that does not answer"
        yield Check("SSH agent", "weak", text, RACK, 'eval "$(ssh-agent)"; or: unset SSH_AUTH_SOCK')


def _key(key: KeyFile, *, agent_keys: int) -> Iterator[Check]:
    path = shlex.quote(key.path)
    whose = f" (the key of {', '.join(key.hosts)})" if key.hosts else ""
    needed: State = "missing" if key.hosts else "weak"
    if key.mode is None or key.error:
        text = f"{key.path}: {key.error or 'there is no such file'}{whose}"
        yield Check("key", needed, text, RACK, f"is the name right, and may you read it? ls -l {path}")
        return
    if key.mode & 0o077:
        text = f"{key.path} has the mode {key.mode:o}: others on this machine can read it{whose}"
        yield Check("key", "weak", text, RACK, f"chmod 600 {path}")
    if key.hosts and key.locked and not agent_keys:
        text = f"{key.path} has a passphrase and the SSH agent holds no key{whose}"
        yield Check("key", "missing", text, RACK, f"ssh-add {path}")


def _clock(machine: Machine) -> Iterator[Check]:
    if machine.clock_synchronised is False:
        text = "this machine's clock is not synchronised, and the hosts' clocks are held against it"
        fix = "sudo timedatectl set-ntp true; or: apt-get install chrony"
        yield Check("clock", "weak", text, RACK, fix)
    elif machine.clock_synchronised:
        error = machine.clock_error_s
        bound = f", at most {1000 * error:.0f} ms off" if error is not None else ""
        yield Check("clock", "ok", f"synchronised{bound}", RACK)


_TOPICS: tuple[Callable[[Machine], Iterator[Check]], ...] = (
    _system,
    _python,
    _packages,
    _torch,
    _root,
    _programs,
    _kernel,
    _links,
    _cgroups,
    _sizes,
    _interpreters,
    _extras,
    _keys,
    _clock,
)
