"""What is wrong on a host and cannot be put right from here, each with what to do about it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from testbed.config.inventory import Host
from testbed.hosts.facts import Facts, required_modules
from testbed.provision.changes import Change, Desired, desired_state

__all__ = ["CLOCK_LIMIT_S", "Finding", "Level", "check_host"]

CLOCK_LIMIT_S = 0.05
DISK_LIMIT_BYTES = 2 << 30
SHAPING = ("htb", "tbf", "ifb")
OLDEST_PYTHON = (3, 8)

Level = Literal["failure", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing that a person should know of a host.

    Attributes:
        host: The host's name.
        level: A failure keeps the host from being used; a warning may spoil results; a note is good to know.
        item: What it is about, in one word.
        text: What was found.
        hint: What to do about it.
    """

    host: str
    level: Level
    item: str
    text: str
    hint: str = ""


def check_host(
    host: Host, facts: Facts, changes: Sequence[Change] = (), desired: Desired | None = None
) -> list[Finding]:
    """Return what is wrong on a host besides what the changes put right.

    Args:
        host: The host.
        facts: What it is.
        changes: What is about to be changed.
        desired: What it should be; by the inventory where left out.
    """
    desired = desired or desired_state(host)
    if facts.assumed:
        return []
    return [
        *_board(host, facts),
        *_python(host, facts, changes),
        *_sudo(host, facts, changes),
        *(_jtop(host, facts, changes) if desired.jtop else ()),
        *_clock(host, facts),
        *_kernel(host, facts),
        *_space(host, facts),
        *_power_mode(host, facts),
    ]


def _board(host: Host, facts: Facts) -> Iterator[Finding]:
    if facts.jetpack is not None and int(facts.jetpack.split(".")[0]) < 5:
        text = f"JetPack {facts.jetpack} (L4T {facts.l4t}) is not supported; its Python is too old"
        yield Finding(host.name, "failure", "board", text, "flash the board with JetPack 5, 6 or 7")


def _python(host: Host, facts: Facts, changes: Sequence[Change]) -> Iterator[Finding]:
    if any(change.item == "python" for change in changes):
        return  # what will be there is judged when it is there
    environment = facts.environment
    where = "its `python.interpreter`" if not host.python.manage else "its `python.packages`"
    if environment.error is not None or environment.version is None:
        text = environment.error or "the Python of the payload code does not run"
        yield Finding(host.name, "failure", "python", text, f"see {where} in the inventory")
        return
    version = tuple(int(part) for part in environment.version.split(".")[:2])
    if version < OLDEST_PYTHON:
        text = f"Python {environment.version} is too old; 3.8 or newer is needed"
        yield Finding(host.name, "failure", "python", text, f"see {where} in the inventory")
    for module in required_modules(host):
        if module not in environment.modules:
            text = f"{module} cannot be imported: {environment.errors.get(module, 'no reason given')}"
            hint = f"add it to {where}" if host.python.manage else f"install it for the Python of {where}"
            yield Finding(host.name, "failure", "python", text, f"{hint} in the inventory")
    if host.is_device and facts.l4t and facts.torch is not None and facts.cuda is None:
        hint = "name NVIDIA's own wheels for this JetPack as the host's `python.index`"
        yield Finding(host.name, "note", "python", "torch has no GPU here: the device runs on its CPU", hint)


def _sudo(host: Host, facts: Facts, changes: Sequence[Change]) -> Iterator[Finding]:
    needs = any(getattr(step, "become", False) for change in changes for step in change.steps)
    if needs and not facts.sudo:
        text = f"{facts.user} cannot become root without a password"
        hint = f"on the host: echo '{facts.user} ALL=(ALL) NOPASSWD: ALL' | sudo tee /etc/sudoers.d/testbed"
        yield Finding(host.name, "failure", "sudo", text, hint)


def _jtop(host: Host, facts: Facts, changes: Sequence[Change]) -> Iterator[Finding]:
    jtop = facts.jtop
    if jtop.program is None:
        hint = "on the host: sudo pip3 install -U jetson-stats && sudo systemctl restart jtop.service"
        yield Finding(host.name, "failure", "jtop", "jtop (jetson-stats) is not installed", hint)
        return
    if jtop.version is None and not any(change.item == "python" for change in changes):
        text = "the Python of the payload code does not see jetson-stats"
        hint = "set `python.system_packages: true`, or add jetson-stats to the packages or the interpreter"
        yield Finding(host.name, "failure", "jtop", text, hint)
    if not jtop.socket and not any(change.item == "jtop service" for change in changes):
        text = "the jtop service does not run (there is no /run/jtop.sock)"
        hint = "on the host, as root: JTOP_SERVICE=True jtop --force"
        yield Finding(host.name, "failure", "jtop", text, hint)
    elif not jtop.group and not jtop.member:
        yield Finding(
            host.name, "failure", "jtop", "there is no group jtop", "install jetson-stats as root on the host"
        )


def _clock(host: Host, facts: Facts) -> Iterator[Finding]:
    offset, error = facts.clock_offset_s, facts.clock_error_s or 0.0
    if offset is not None and abs(offset) > CLOCK_LIMIT_S + error:
        way = "ahead of" if offset > 0 else "behind"
        text = f"its clock is {abs(offset) * 1000:.0f} ms {way} ours"
        yield Finding(host.name, "warning", "clock", text, "on the host: sudo timedatectl set-ntp true")


def _kernel(host: Host, facts: Facts) -> Iterator[Finding]:
    if host.is_device or facts.qdiscs is None:
        return
    missing = [name for name in SHAPING if name not in facts.qdiscs]
    if missing:
        text = f"its kernel has no {', '.join(missing)}: links cannot be shaped in the kernel"
        hint = f"on the host: sudo apt install linux-modules-extra-{facts.kernel or '$(uname -r)'}"
        yield Finding(host.name, "warning", "kernel", text, hint)


def _space(host: Host, facts: Facts) -> Iterator[Finding]:
    if facts.disk_free_bytes is not None and facts.disk_free_bytes < DISK_LIMIT_BYTES:
        text = f"only {facts.disk_free_bytes / 2**30:.1f} GiB of disk are free"
        yield Finding(host.name, "warning", "disk", text, "make room in the user's home")


def _power_mode(host: Host, facts: Facts) -> Iterator[Finding]:
    if host.power_mode and facts.power_mode != host.power_mode:
        text = f"its power mode is {facts.power_mode or 'unknown'} instead of {host.power_mode}"
        hint = "on the host: sudo nvpmodel -q --verbose lists the modes; a change may need a reboot"
        yield Finding(host.name, "warning", "power mode", text, hint)
