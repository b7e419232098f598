"""A board's power mode, chosen by its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.config.inventory import Host
from testbed.hosts.facts import Facts
from testbed.hosts.facts.board import PowerMode
from testbed.hosts.payload import HOME, shell_path
from testbed.hosts.steps import Command, Step
from testbed.provision.aspect import NEEDS_REBOOT, Change, Finding

__all__ = ["Power"]

NOTE = f"{HOME}/power.reboot"
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Power:
    """The power mode of a board.

    Modes are numbered differently on each kind of board, so one is looked up by its name in the board's own
    nvpmodel.conf. Where the GPU's masks differ between two modes, the board must be booted again, and nvpmodel asks
    first. Where it asks and nobody has foreseen it, it is told no, and the next look knows.

    Attributes:
        reboot: Whether the board may be booted again.
    """

    reboot: bool = False
    item: str = "power"

    def changes(self, host: Host, facts: Facts) -> Iterator[Change]:
        """Yield the mode that is to be set."""
        board, now = facts.board, facts.power_mode or "unknown"
        target = target_mode(host, facts)
        if target is None:
            return
        boots = needs_boot(facts, target)
        steps: list[Step] = []
        # What was set by hand in the old mode is gone with it.
        stored = (
            f"{HOME}/power.{'x' if board.mode_id is None else board.mode_id}" if board.jetson_clocks else None
        )
        if stored is not None:
            shell = f"test -e {shell_path(stored)} || jetson_clocks --store {shell_path(stored)}"
            steps.append(_root(host, shell, "store the clocks of the old power mode"))
        steps.append(_root(host, _set(target, agree=boots), f"set the power mode {target.name}"))
        yield Change(
            host.name,
            self.item,
            f"power mode {target.name}",
            now,
            target.name,
            tuple(steps),
            recorded={"id": board.mode_id, "mode": now, "clocks": stored},
            reboots=boots,
        )

    def findings(self, host: Host, facts: Facts, changes: Sequence[Change]) -> Iterator[Finding]:
        """Yield a mode that the board has not, or that is not about to be set."""
        board, asked, now = facts.board, host.power_mode, facts.power_mode or "unknown"
        if asked is None or now.casefold() == asked.casefold():
            return
        if not board.nvpmodel:
            if host.is_device:
                text = f"its power mode is {now} instead of {asked}: there is no nvpmodel"
                hint = "on the host: sudo apt-get install nvidia-l4t-nvpmodel"
                yield Finding(host.name, "failure", self.item, text, hint)
        elif not board.modes:
            text = f"its power mode is {now} instead of {asked}, and its modes are unknown"
            hint = "on the host: one nvpmodel.conf is needed, in /etc or in /etc/nvpmodel"
            yield Finding(host.name, "failure", self.item, text, hint)
        elif board.mode(asked) is None:
            names = ", ".join(mode.name for mode in board.modes)
            hint = f"`power_mode` in the inventory: one of {names}"
            yield Finding(host.name, "failure", self.item, f"it has no power mode {asked}", hint)
        elif not any(change.item == self.item for change in changes):
            text = f"its power mode is {now} instead of {asked}"
            yield Finding(host.name, "warning", self.item, text, "testbed provision")

    def undo(self, host: Host, facts: Facts, recorded: Mapping[str, Any]) -> Iterator[Step]:
        """Yield what brings the mode back, then the clocks as they were in it."""
        if recorded["id"] is not None:
            mode = PowerMode(recorded["id"], str(recorded["mode"]))
            there = f"nvpmodel -q | grep -qx {mode.id}"
            known = facts.board.by_id(mode.id)
            boots = self.reboot and known is not None and _may_boot(facts, known)
            shell = f"{there} || {{ {_set(mode, agree=boots, must=True)}; }}"
            yield _root(host, shell, f"go back to the power mode {mode.name}", reboots=boots)
        if recorded["clocks"] is not None:
            path = shell_path(recorded["clocks"])
            shell = f"if test -e {path}; then jetson_clocks --restore {path} && rm -f {path}; fi"
            yield _root(host, shell, "give the clocks of the old power mode back")
        yield _root(host, f"rm -f {shell_path(NOTE)}", "forget what needed a reboot")


def target_mode(host: Host, facts: Facts) -> PowerMode | None:
    """Return the power mode that is to be set; None where there is nothing to set."""
    target = facts.board.mode(host.power_mode) if facts.board.nvpmodel else None
    return None if target is None or facts.power_mode == target.name else target


def needs_boot(facts: Facts, target: PowerMode) -> bool:
    """Return whether a mode needs a boot: by its masks, or since nvpmodel asked for one already."""
    now = facts.board.by_id(facts.board.mode_id)
    return facts.board.needs_reboot == target.name or (now is not None and now.gates != target.gates)


def _may_boot(facts: Facts, target: PowerMode) -> bool:
    """Return whether a mode needs a boot in the middle of an undoing, from whichever recorded mode it is by then."""
    ids = [entry.recorded["id"] for entry in facts.record if entry.item == "power"]
    between = filter(None, map(facts.board.by_id, ids))
    return needs_boot(facts, target) or any(mode.gates != target.gates for mode in between)


def _set(mode: PowerMode, *, agree: bool, must: bool = False) -> str:
    """Return the command that sets a mode.

    Args:
        mode: The mode.
        agree: Whether to say yes where nvpmodel asks to boot the board.
        must: Whether a mode that needs a boot is a failure. Otherwise the need is noted for the next look.
    """
    if agree:
        return f"echo YES | nvpmodel -m {mode.id}"
    name = shell_path(mode.name)
    if must:
        told = f'echo "it needs a reboot" >&2; exit {NEEDS_REBOOT}'
    else:
        boot = "$(cat /proc/sys/kernel/random/boot_id)"
        told = f'printf "%s %s\\n" "{boot}" {name} >{shell_path(NOTE)}'
    return (
        f"said=$(echo NO | nvpmodel -m {mode.id} 2>&1); status=$?; "
        f'case "$said" in *eboot*) {told};; '
        '*) test $status = 0 || { echo "$said" >&2; exit $status; };; esac'
    )


def _root(host: Host, shell: str, title: str, *, reboots: bool = False) -> Command:
    return Command(host.name, shell, title, TIMEOUT_S, become=True, reboots=reboots)
