"""A whole rack of boards of unequal kinds and JetPacks, of which some are broken, each in another way.

Eight boards, two of them well. With TESTBED_RACK_BOARDS=32 in the environment it is 32 with every breakage, 22 of them
well.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed.emulation import lab as lab_module
from testbed.emulation.settings import load_lab
from testbed.emulation.spec import LabSpec

pytestmark = [pytest.mark.emulated]

REPOSITORY = Path(__file__).parents[2]
NETWORK = "10.97.0"
USER = "jetson"

#: What boards that are well are: kind, release of Linux for Tegra, power mode (another than the one they start in).
WELL = (
    ("jetson-orin-nano-8gb", "36.4.3", "25W"),
    ("jetson-xavier-nx-16gb", "35.5.0", "MODE_15W_6CORE"),
    ("jetson-agx-orin-64gb", "36.4.3", "MODE_50W"),
    ("jetson-agx-thor-128gb", "38.2", None),
    ("jetson-orin-nx-16gb", "36.4.3", "15W"),
    ("jetson-agx-xavier-32gb", "35.6", None),
    ("jetson-agx-orin-32gb", "35.6", None),
    ("jetson-orin-nano-4gb", "36.4.3", None),
)


@dataclass
class Rack:
    """A rack under test.

    Attributes:
        folder: Where its files lie.
        spec: Its lab.
        broken: The boards that are broken, each with its breakage's name.
        well: The others.
    """

    folder: Path
    spec: LabSpec
    broken: Mapping[str, str]
    well: tuple[str, ...]

    @property
    def inventory(self) -> Path:
        return self.folder / "rack.yaml"

    def root(self, host: str, script: str, *argv: str, interpreter: str = "sh") -> str:
        """Run a script on a board as root, and return what it prints."""
        line = lab_module.shell_command(self.spec, host, [interpreter, "-", *argv], user="root")
        return subprocess.run(
            line, input=script, capture_output=True, text=True, timeout=90, check=True
        ).stdout

    def provision(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run `testbed provision`, with a memory of hosts of its own."""
        line = [sys.executable, "-c", "from testbed.cli.main import run; run()", "provision"]
        environ = os.environ | {"XDG_CACHE_HOME": str(self.folder / "cache")}
        return subprocess.run(
            [*line, "--inventory", str(self.inventory), *options],
            capture_output=True,
            text=True,
            timeout=900,
            cwd=REPOSITORY,
            env=environ,
        )


@dataclass(frozen=True)
class Breakage:
    """One way in which a board is broken.

    Attributes:
        text: What the failure must say.
        hint: What the remedy must say.
        board: The kind of board and its release.
        host: What the inventory says of it besides.
        emulation: How it is emulated.
        by: Breaks it once it is up.
    """

    text: str
    hint: str
    board: tuple[str, str] = ("jetson-orin-nano-8gb", "36.4.3")
    host: Mapping[str, Any] = field(default_factory=dict)
    emulation: Mapping[str, Any] = field(default_factory=dict)
    by: Callable[[Rack, str], None] | None = None


def other_key(rack: Rack, host: str) -> None:
    """Record another key for the host than the one it has."""
    path = rack.folder / "known_hosts"
    address = next(entry.address for entry in rack.spec.hosts if entry.name == host)
    known = path.read_text().splitlines()
    lines = [line for line in known if address not in line.split()[0].split(",")]
    assert len(lines) == len(known) - 1
    public = (rack.folder / "other.pub").read_text().split()
    path.write_text("\n".join([*lines, f"{address} {public[0]} {public[1]}"]) + "\n")


def fill_disk(rack: Rack, host: str) -> None:
    """Leave no room in the home."""
    rack.root(host, f"dd if=/dev/zero of=/home/{USER}/full bs=1M 2>/dev/null || true")


def other_jtop(rack: Rack, host: str) -> None:
    """Let the jtop service be installed with another version of jetson-stats than the client."""
    rack.root(
        host,
        """
        program=$(command -v jtop)
        mkdir -p /opt/older/jetson_stats-4.2.9.dist-info
        printf 'Metadata-Version: 2.1\\nName: jetson-stats\\nVersion: 4.2.9\\n' \\
            >/opt/older/jetson_stats-4.2.9.dist-info/METADATA
        printf '#!/bin/sh\\nPYTHONPATH=/opt/older exec /opt/testbed/python "$@"\\n' >/opt/older/python
        chmod 755 /opt/older/python
        rm -f "$program"
        printf '#!/bin/sh\\nexec /opt/older/python -m jtop "$@"\\n' >"$program"
        chmod 755 "$program"
        """,
    )


def unplug(rack: Rack, host: str) -> None:
    """Take the board off the network."""
    rack.root(host, "(sleep 0.3; ip link set eth0 down) </dev/null >/dev/null 2>&1 &")


BREAKAGES = {
    "changed-host-key": Breakage(
        r"the host's key has changed: ssh-\S+ SHA256:\S+ instead of ssh-\S+ SHA256:",
        r"ssh-keygen -f \S+ -R .*`testbed trust",
        emulation={"jtop": False},
        by=other_key,
    ),
    "dead": Breakage(r"no (answer|SSH session)", r"is ", emulation={"jtop": False}, by=unplug),
    "disk-full": Breakage(
        r"of disk are free in the home; .* needed", r"du -xh", emulation={"disk_mib": 64}, by=fill_disk
    ),
    "no-sudo": Breakage(r"cannot become root", r"sudo", emulation={"sudo": "none"}),
    "power-mode-needs-reboot": Breakage(r"7W.*reboot|reboot.*7W", r"--reboot", host={"power_mode": "7W"}),
    "clock-off": Breakage(
        r"its clock is 5\.0 s ahead of ours",
        r"clock|timedatectl|date",
        board=("jetson-xavier-nx-16gb", "35.5.0"),
        emulation={"clock_offset_s": 5},
    ),
    # From here on only in the rack of 32.
    "wrong-key": Breakage(
        rf"does not let {USER} in", r"authorized_keys", host={"key_file": "other"}, emulation={"jtop": False}
    ),
    "wrong-python": Breakage(
        r"python3\.6: not found",
        r"python\.interpreter",
        host={"python": {"interpreter": "/usr/bin/python3.6", "manage": False}},
    ),
    "jtop-version": Breakage(
        r"jtop service is of version 4\.2\.9 and the payload code's client of \S+: they do not",
        r"jetson-stats==4\.2\.9",
        by=other_jtop,
    ),
    "torch-missing": Breakage(
        r"torch cannot be imported: ModuleNotFoundError",
        r"install it for the Python",
        board=("jetson-xavier-nx-16gb", "35.5.0"),
        host={"python": {"interpreter": "python3", "manage": False}},
    ),
}


def write_inventory(folder: Path, name: str, boards: int, breakages: list[str]) -> dict[str, str]:
    """Write a rack's inventory; return its broken boards, each with its breakage's name."""
    lab = f"/run/testbed/labs/{name}"
    hosts: dict[str, Any] = {"bs": {"role": "base_station", "address": f"{NETWORK}.1", "user": "root"}}
    emulated: dict[str, Any] = {}
    broken: dict[str, str] = {}
    for number in range(boards):
        address = f"{NETWORK}.{11 + number}"
        if number < len(breakages):
            host = breakages[number]
            breakage = BREAKAGES[host]
            kind, l4t = breakage.board
            broken[host] = host
            own: dict[str, Any] = dict(breakage.host)
            if own.get("key_file"):
                own["key_file"] = str(folder / own["key_file"])
            emulated[host] = {"l4t": l4t, **breakage.emulation}
        else:
            host = f"well-{number}"
            kind, l4t, mode = WELL[number % len(WELL)]
            own = {"power_mode": mode} if mode else {}
            emulated[host] = {"l4t": l4t}
        hosts[host] = {"role": "device", "address": address, "board": kind, **own}
    inventory = {
        "lab": name,
        "known_hosts": str(folder / "known_hosts"),
        "defaults": {
            "user": USER,
            "key_file": f"{lab}/id_ed25519",
            "gateway": f"nsenter --net={lab}/net nc {{address}} {{port}}",
            "python": {"interpreter": "/opt/testbed/python", "manage": False},
        },
        "hosts": hosts,
        "emulation": {"network": f"{NETWORK}.0/24", "disk_mib": 2048, "tick_hz": 5, "hosts": emulated},
    }
    (folder / "rack.yaml").write_text(yaml.safe_dump(inventory, sort_keys=False))
    return broken


@pytest.fixture
def rack(tmp_path: Path) -> Iterator[Rack]:
    """A rack that is up, with its boards broken."""
    if os.geteuid() != 0:
        pytest.skip("an emulated lab needs root")
    boards = int(os.environ.get("TESTBED_RACK_BOARDS", "8"))
    breakages = list(BREAKAGES)[: 6 if boards < 12 else None]
    keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")]
    subprocess.run(keygen, check=True)
    broken = write_inventory(tmp_path, f"rack-{os.getpid()}", boards, breakages)
    spec = load_lab(tmp_path / "rack.yaml")
    well = tuple(host.name for host in spec.hosts if host.name.startswith("well"))
    made = Rack(tmp_path, spec, broken, well)
    lab_module.up(spec)
    try:
        (tmp_path / "known_hosts").write_bytes(spec.files.known_hosts.read_bytes())
        for host, breakage in broken.items():
            if by := BREAKAGES[breakage].by:
                by(made, host)
        yield made
    finally:
        lab_module.down(spec.lab)


def failures(stderr: str) -> dict[str, list[tuple[str, str]]]:
    """Return each host's failures and remedies, of what the command said on its standard error."""
    found: dict[str, list[tuple[str, str]]] = {}
    lines = stderr.splitlines()
    for number, line in enumerate(lines):
        match = re.match(r"failure: (?:\d+ hosts \((.*?)\)|([\w.-]+)): (.*)", line)
        if match:
            hint = lines[number + 1] if lines[number + 1 : number + 2] else ""
            for host in (match[1] or match[2]).split(", "):
                found.setdefault(host, []).append((match[3], hint if hint.startswith("  hint: ") else ""))
    return found


#: Runs on a board: a digest of each file, with its mode and owner, of groups and of the power mode.
STATE = r"""
import hashlib, json, os, stat, subprocess, sys
# Caches, and what the programs that write groups keep of their own last writing.
LEFT_OUT = {".cache", "__pycache__", "group-", "gshadow-"}
state = {}
for root in sys.argv[1:]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        for name in ["."] + folders + names:
            path = os.path.normpath(os.path.join(folder, name))
            about = os.lstat(path)
            if name in LEFT_OUT or path in state:
                continue
            what = ""
            if stat.S_ISLNK(about.st_mode):
                what = os.readlink(path)
            elif stat.S_ISREG(about.st_mode):
                with open(path, "rb") as file:
                    what = hashlib.sha256(file.read()).hexdigest()
            state[path] = [oct(about.st_mode), about.st_uid, about.st_gid, what]
for argv in (["nvpmodel", "-q"], ["id", "jetson"], ["jetson_clocks", "--show"]):
    state[" ".join(argv)] = subprocess.run(argv, stdout=subprocess.PIPE, universal_newlines=True).stdout
print(json.dumps(state))
"""
PLACES = (
    "/etc",
    "/home",
    "/usr/local",
    "/var/lib/systemd",
    "/var/lib/nvpmodel",
    "/var/spool",
    "/srv",
    "/boot",
)


def test_a_rack_with_broken_boards(rack):
    boards = [*rack.broken, *rack.well]
    limits = [f"--limit={host}" for host in boards]  # the base station's own check takes the longest of all
    before = {host: json.loads(rack.root(host, STATE, *PLACES, interpreter="python3")) for host in rack.well}

    first = rack.provision(*limits)
    found = failures(first.stderr)
    assert first.returncode == 1, first.stderr
    assert set(found) == set(rack.broken), first.stderr
    for host, name in rack.broken.items():
        breakage = BREAKAGES[name]
        told = [hint for text, hint in found[host] if re.search(breakage.text, text)]
        assert told, (host, found[host])
        assert re.search(breakage.hint, told[0]), (host, found[host])
    changed = next(line for line in first.stdout.splitlines() if line.startswith("changed: "))
    assert set(rack.well) <= set(changed.removeprefix("changed: ").split(", ")), first.stdout
    during = {host: json.loads(rack.root(host, STATE, *PLACES, interpreter="python3")) for host in rack.well}
    assert all(during[host] != before[host] for host in rack.well)

    well = [f"--limit={host}" for host in rack.well]
    second = rack.provision(*well)
    assert (second.returncode, "changed: nothing" in second.stdout) == (0, True), (
        second.stdout + second.stderr
    )

    undone = rack.provision("--undo", *well)
    assert undone.returncode == 0, undone.stdout + undone.stderr
    after = {host: json.loads(rack.root(host, STATE, *PLACES, interpreter="python3")) for host in rack.well}
    for host in rack.well:
        assert sorted(differences(before[host], after[host])) == []
    again = rack.provision("--undo", *well)
    assert (again.returncode, "undone: nothing" in again.stdout) == (0, True), again.stdout + again.stderr

    refused = rack.provision("--limit=changed-host-key")
    assert refused.returncode == 3, refused.stderr


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two states of a board."""
    names = sorted({*one, *other})
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}
