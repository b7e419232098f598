"""What linkd is compared with in scripts/bench/shaping.py: the usual HTB recipe, and tcconfig's command list.

Both shape at the sender: the base station each downlink, every device its uplink.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from shaping_lab import BS_ADDRESS, INTERFACE, Lab

TCCONFIG = "0.30.1"
CACHE = Path("~/.cache/testbed/bench").expanduser()

#: A recipe's commands by host, for a rate in Mbit/s.
Recipe = Callable[[Lab, float], dict[str, list[str]]]


def htb_recipe(lab: Lab, rate_mbit: float) -> dict[str, list[str]]:
    """Return the usual recipe: a class of htb with the rate and a burst of 15k."""
    tc = f"tc qdisc add dev {INTERFACE} root handle 1: htb default 1"
    commands = {
        "bs": [tc, f"tc class add dev {INTERFACE} parent 1: classid 1:1 htb rate 10gbit quantum 60000"]
    }
    for number, device in enumerate(lab.devices, 10):
        shaped = f"htb rate {rate_mbit:g}mbit burst 15k quantum 60000"
        match = f"u32 match ip dst {lab.address(device)}/32 flowid 1:{number}"
        commands["bs"] += [
            f"tc class add dev {INTERFACE} parent 1: classid 1:{number} {shaped}",
            f"tc filter add dev {INTERFACE} parent 1: protocol ip prio 1 {match}",
        ]
        commands[device] = [tc, f"tc class add dev {INTERFACE} parent 1: classid 1:1 {shaped}"]
    return commands


def tcconfig_recipe(tcset: str, netem: bool) -> Recipe:
    """Return what tcconfig prints, its netem leaves left out where the kernel has no netem.

    Args:
        tcset: The program.
        netem: Whether the kernel has netem.
    """

    def recipe(lab: Lab, rate_mbit: float) -> dict[str, list[str]]:
        commands: dict[str, list[str]] = {"bs": []}
        rate = ("--rate", f"{rate_mbit:g}Mbps")
        for number, device in enumerate(lab.devices):
            add = ("--add",) if number else ()
            printed = lab.run(
                "bs", tcset, INTERFACE, *rate, "--network", lab.address(device), *add, "--tc-command"
            )
            # With --add it repeats what the first list has made.
            commands["bs"] += [line for line in printed.splitlines() if line not in commands["bs"]]
            printed = lab.run(device, tcset, INTERFACE, *rate, "--network", BS_ADDRESS, "--tc-command")
            commands[device] = printed.splitlines()
        return {
            host: [line for line in lines if line.strip() and (netem or not line.endswith("netem"))]
            for host, lines in commands.items()
        }

    return recipe


def apply_recipe(lab: Lab, recipe: Recipe, rate_mbit: float) -> None:
    """Run a recipe's commands in the hosts' namespaces."""
    for host, lines in recipe(lab, rate_mbit).items():
        for line in lines:
            lab.run(host, *shlex.split(line))


def take_away(lab: Lab) -> None:
    """Take a recipe away from all hosts."""
    for host in ("bs", *lab.devices):
        lab.run(host, "tc", "qdisc", "del", "dev", INTERFACE, "root")


def has_netem(lab: Lab) -> bool:
    """Return whether this kernel has netem, by trying."""
    try:
        lab.run("switch", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms")
    except RuntimeError:
        return False
    lab.run("switch", "tc", "qdisc", "del", "dev", "lo", "root")
    return True


def find_tcset() -> tuple[str | None, str]:
    """Return tcconfig's program and its version, or None and why it cannot be had.

    One that is installed is taken; else one is installed in a virtual environment of the bench's own.
    """
    if found := shutil.which("tcset"):
        done = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=60)
        return found, done.stdout.strip()
    folder = CACHE / f"tcconfig-{TCCONFIG}"
    program = folder / "bin" / "tcset"
    if not program.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        for command in ([sys.executable, "-m", "venv", str(folder)], [*pip, f"tcconfig=={TCCONFIG}"]):
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=180)
            except (OSError, subprocess.TimeoutExpired) as error:
                return None, f"it could not be installed: {error}"
            if done.returncode:
                lines = (done.stderr or done.stdout).strip().splitlines()
                return None, f"it could not be installed: {lines[-1] if lines else 'pip failed'}"
    return str(program), f"tcset {TCCONFIG}"
