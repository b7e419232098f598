"""What a host swaps to: a file on disk, and zram."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.config.inventory import Host
from testbed.hosts.facts import Facts
from testbed.hosts.payload import shell_path
from testbed.hosts.steps import Command, Step
from testbed.provision.aspect import Change, Finding

__all__ = ["Memory", "swap_unit"]

MIB = 1 << 20
PAGE = 1 << 16
"""The kernel keeps a file's first page for itself; none is larger than this."""
UNITS = "/etc/systemd/system"
TIMEOUT_S = 900.0
_PLAIN = frozenset(string.ascii_letters + string.digits + ":_.")


@dataclass(frozen=True)
class Memory:
    """What a host swaps to, where the inventory says so.

    A swap file is a unit of its own for systemd, and ``/etc/fstab`` stays as it is.
    """

    item: str = "memory"

    def changes(self, host: Host, facts: Facts) -> Iterator[Change]:
        """Yield a swap file that is missing or too small, and zram that is to be switched."""
        if not facts.systemd:
            return
        size_mib = self.missing_mib(host, facts)
        if size_mib:
            yield self._file(host, facts, size_mib)
        yield from self._zram(host, facts)

    def missing_mib(self, host: Host, facts: Facts) -> int:
        """Return the size in MiB of the swap file that is to be made; 0 where none is."""
        if host.memory.swap_mib is None:
            return 0
        areas = {area.path: area.size_bytes for area in facts.system.swap.areas if not area.zram}
        own = areas.pop(host.memory.swap_file, 0)
        wanted = host.memory.swap_mib - sum(areas.values()) // MIB
        return wanted if wanted > 0 and own + PAGE < wanted * MIB else 0

    def findings(self, host: Host, facts: Facts, changes: Sequence[Change]) -> Iterator[Finding]:
        """Yield what is asked for and cannot be had."""
        swap = facts.system.swap
        wants_zram = host.memory.zram and not any(area.zram for area in swap.areas)
        if not facts.systemd and (self.missing_mib(host, facts) or wants_zram):
            text = "its swap cannot be set up from here: services do not run under systemd"
            yield Finding(host.name, "failure", self.item, text, "take `memory` out of the inventory")
        elif wants_zram and not swap.zram_units:
            hint = "add `zram-tools` to its `packages` in the inventory"
            yield Finding(host.name, "failure", self.item, "it has no service that sets up zram", hint)

    def undo(self, host: Host, facts: Facts, recorded: Mapping[str, Any]) -> Iterator[Step]:
        """Yield what takes the swap file away, or switches zram back."""
        if "file" in recorded:
            # One that was made larger goes with the record of its first making.
            if not recorded["larger"]:
                yield _root(host, _remove(recorded["file"]), "remove the swap file")
            return
        unit = shell_path(f"{recorded['zram']}.service")
        if recorded["on"]:
            enable = f"systemctl enable {unit}; " if recorded["enabled"] else ""
            shell = f"grep -q '^/dev/zram' /proc/swaps || {{ {enable}systemctl restart {unit}; }}"
            yield _root(host, shell, "switch zram on again")
        else:
            keep = "" if recorded["enabled"] else f"systemctl disable {unit}; "
            # An undoing that was cut off may have removed the service's package already.
            shell = f"if systemctl cat {unit} >/dev/null 2>&1; then {keep}{_zram_off(unit)}; fi"
            yield _root(host, shell, "switch zram off again")

    def _file(self, host: Host, facts: Facts, size_mib: int) -> Change:
        path = host.memory.swap_file
        larger = any(area.path == path for area in facts.system.swap.areas)
        file, unit = shell_path(path), shell_path(f"{UNITS}/{swap_unit(path)}")
        # The unit is written first: a file without it is none of ours, and is left alone.
        guard = f"if test -e {file} && ! test -e {unit}; then echo {file} is there already >&2; exit 1; fi"
        text = f"[Unit]\nDescription=Swap file of testbed\n\n[Swap]\nWhat={path}\n\n[Install]\nWantedBy=swap.target\n"
        note = f"{{ {guard}; }} && cat >{unit}.part && mv {unit}.part {unit}"
        make = [
            *([f"swapoff {file}"] if larger else []),
            f"rm -f {file}",
            f"{{ fallocate -l {size_mib}M {file} || dd if=/dev/zero of={file} bs=1M count={size_mib}; }}",
            f"chmod 600 {file}",
            f"mkswap {file}",
        ]
        start = f"systemctl daemon-reload && systemctl enable --now {shell_path(swap_unit(path))}"
        disk = sum(area.size_bytes for area in facts.system.swap.areas if not area.zram)
        return Change(
            host.name,
            self.item,
            "make a swap file",
            f"{disk // MIB} MiB of swap on disk",
            f"{host.memory.swap_mib} MiB, {size_mib} of them in {path}",
            (
                Command(
                    host.name, note, "describe the swap file", TIMEOUT_S, stdin=text.encode(), become=True
                ),
                _root(host, " && ".join(make), "make the swap file"),
                _root(host, start, "swap to it"),
            ),
            recorded={"file": path, "larger": larger},
        )

    def _zram(self, host: Host, facts: Facts) -> Iterator[Change]:
        wanted, swap = host.memory.zram, facts.system.swap
        on = any(area.zram for area in swap.areas)
        if wanted is None or wanted == on or not swap.zram_units:
            return
        name, about = next(iter(swap.zram_units.items()))
        unit = shell_path(f"{name}.service")
        shell = f"systemctl enable {unit} && systemctl restart {unit}"
        if on:
            shell = f"systemctl disable {unit} && {_zram_off(unit)}"
        yield Change(
            host.name,
            self.item,
            f"switch zram {'off' if on else 'on'}",
            f"zram {'on' if on else 'off'}",
            f"zram {'off' if on else 'on'}",
            (_root(host, shell, f"switch zram {'off' if on else 'on'}"),),
            recorded={"zram": name, "on": on, "enabled": about.enabled == "enabled"},
        )


def swap_unit(path: str) -> str:
    """Return the name that systemd gives the unit of a swap file: ``systemd-escape --path --suffix=swap``."""
    escaped = ""
    for number, char in enumerate(path.strip("/")):
        if char == "/":
            escaped += "-"
        elif char not in _PLAIN or (char == "." and number == 0):
            escaped += "".join(f"\\x{byte:02x}" for byte in char.encode())
        else:
            escaped += char
    return f"{escaped}.swap"


def _remove(path: str) -> str:
    """Return the command that removes a swap file that testbed made, as much of it as there is."""
    file, name = shell_path(path), shell_path(swap_unit(path))
    unit = f"{UNITS}/{swap_unit(path)}"
    gone = [
        f"systemctl disable --now {name}",
        f"rm -f {file}",
        f"rm -f {shell_path(unit)}",
        "systemctl daemon-reload",
    ]
    return f"rm -f {shell_path(f'{unit}.part')}; if test -e {shell_path(unit)}; then {' && '.join(gone)}; fi"


def _zram_off(unit: str) -> str:
    """Return the command that stops swapping to zram; the devices must be reset before they can be set up again."""
    each = 'swapoff "$area" && echo 1 >"/sys/block/${area#/dev/}/reset" || exit 1'
    return f"for area in $(grep -o '^/dev/zram[0-9]*' /proc/swaps); do {each}; done; systemctl stop {unit}"


def _root(host: Host, shell: str, title: str) -> Command:
    return Command(host.name, shell, title, TIMEOUT_S, become=True)
