"""A whole rack of boards of unequal kinds and JetPacks, of which some are broken, each in another way.

Eight boards, two of them well. With TESTBED_RACK_BOARDS=32 in the environment it is 32 with every breakage, 22 of them
well. One board more ends in the middle of its changes. What was done is undone on all of them, and each is compared as
a whole with what it was.
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
from tests.emulated.board_state import board_states, differences, not_put_back, states_at_rest

pytestmark = [pytest.mark.emulated]

REPOSITORY = Path(__file__).parents[2]
NETWORK = "10.97.0"
USER = "jetson"

#: What boards that are well are: kind, release of Linux for Tegra, what the inventory says of them, their emulation.
WELL: tuple[tuple[str, str, dict[str, Any], dict[str, Any]], ...] = (
    (
        "jetson-orin-nano-8gb",
        "36.4.3",
        {"power_mode": "25W", "jetson_clocks": True, "groups": ["dialout"], "packages": ["rack-tool"]},
        {"systemd": True},
    ),
    ("jetson-xavier-nx-16gb", "35.5.0", {"power_mode": "MODE_15W_6CORE"}, {}),
    ("jetson-agx-orin-64gb", "36.4.3", {"power_mode": "MODE_50W"}, {}),
    ("jetson-agx-thor-128gb", "38.2", {"jetson_clocks": True}, {}),
    ("jetson-orin-nx-16gb", "36.4.3", {"power_mode": "15W"}, {}),
    ("jetson-agx-xavier-32gb", "35.6", {}, {}),
    ("jetson-agx-orin-32gb", "35.6", {}, {}),
    ("jetson-orin-nano-4gb", "36.4.3", {}, {}),
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
            line, input=script, capture_output=True, text=True, timeout=300, check=True
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
        reached: Whether anybody gets in.
        half_way: Whether it shows itself only when something has been changed.
    """

    text: str
    hint: str
    board: tuple[str, str] = ("jetson-orin-nano-8gb", "36.4.3")
    host: Mapping[str, Any] = field(default_factory=dict)
    emulation: Mapping[str, Any] = field(default_factory=dict)
    by: Callable[[Rack, str], None] | None = None
    reached: bool = True
    half_way: bool = False


def offer_packages(rack: Rack, host: str) -> None:
    """Let the board's apt know of a package that needs another."""
    rack.root(
        host,
        """
        set -e
        mkdir -p /srv/packages
        cd /srv/packages
        for name in rack-tool rack-data; do
            mkdir -p $name/DEBIAN $name/usr/share/$name
            echo $name >$name/usr/share/$name/file
            printf 'Package: %s\nVersion: 1.0\nArchitecture: all\nMaintainer: a <a@b>\nDescription: -\n' $name \
                >$name/DEBIAN/control
        done
        echo 'Depends: rack-data' >>rack-tool/DEBIAN/control
        chmod -R u=rwX,go=rX .
        for name in rack-tool rack-data; do
            dpkg-deb -b --root-owner-group $name $name.deb
            dpkg-deb -f $name.deb
            printf 'Filename: ./%s.deb\nSize: %s\n' $name $(stat -c %s $name.deb)
            printf 'SHA256: %s\n\n' $(sha256sum $name.deb | cut -d ' ' -f 1)
        done | grep -v '^dpkg-deb:' >Packages
        rm -f /etc/apt/sources.list.d/*
        echo 'deb [trusted=yes] file:/srv/packages ./' >/etc/apt/sources.list
        apt-get -q update
        """,
    )


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


def weak_supply(rack: Rack, host: str) -> None:
    """Let the board refuse a power mode that draws more than the one it is in."""
    rack.root(
        host,
        """
        program=$(readlink -f "$(command -v nvpmodel)")
        mv "$program" /opt/nvpmodel
        printf '%s\n' '#!/bin/sh' 'if [ "$1" = -m ] && [ "$2" != 0 ]; then' \
            'echo "nvpmodel: the supply is too weak" >&2; exit 1; fi' 'exec /opt/nvpmodel "$@"' >"$program"
        chmod 755 "$program"
        """,
    )


def unplug(rack: Rack, host: str) -> None:
    """Take the board off the network, from outside: a login would be cut off by it."""
    first = json.loads(rack.spec.files.state.read_text())["hosts"][host]
    subprocess.run(["nsenter", f"--target={first}", "--net", "ip", "link", "set", "eth0", "down"], check=True)


HALF_WAY = "half-way"
BREAKAGES = {
    "changed-host-key": Breakage(
        r"the host's key has changed: ssh-\S+ SHA256:\S+ instead of ssh-\S+ SHA256:",
        r"ssh-keygen -f \S+ -R .*`testbed trust",
        emulation={"jtop": False},
        by=other_key,
        reached=False,
    ),
    "dead": Breakage(r"no (answer|SSH session)", r"is ", emulation={"jtop": False}, by=unplug, reached=False),
    "disk-full": Breakage(
        r"of disk are free in the home; .* needed", r"du -xh", emulation={"disk_mib": 64}, by=fill_disk
    ),
    "no-sudo": Breakage(r"cannot become root", r"sudo", emulation={"sudo": "none"}),
    "power-mode-needs-reboot": Breakage(r"7W.*reboot|reboot.*7W", r"--reboot", host={"power_mode": "7W"}),
    "clock-off": Breakage(
        r"its clock is (4\.9|5\.[01]) s ahead of ours",  # as well as a busy machine lets it be known
        r"clock|timedatectl|date",
        board=("jetson-xavier-nx-16gb", "35.5.0"),
        emulation={"clock_offset_s": 5},
    ),
    # Not one of those that are seen before anything is done: it ends in the middle of its changes.
    HALF_WAY: Breakage(
        r"could not set the power mode 25W: nvpmodel: the supply is too weak",
        r"goes on from there.*--undo",
        host={"power_mode": "25W"},
        by=weak_supply,
        half_way=True,
    ),
    # From here on only in the rack of 32.
    "wrong-key": Breakage(
        rf"does not let {USER} in",
        r"authorized_keys",
        host={"key_file": "other"},
        emulation={"jtop": False},
        reached=False,
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
        half_way=True,  # which version runs is told to members of the group alone
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
            kind, l4t, own, emulation = WELL[(number - len(breakages)) % len(WELL)]
            emulated[host] = {"l4t": l4t, **emulation}
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
    breakages = [HALF_WAY, *(name for name in BREAKAGES if name != HALF_WAY)][: 7 if boards < 12 else None]
    keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")]
    subprocess.run(keygen, check=True)
    broken = write_inventory(tmp_path, f"rack-{os.getpid()}", boards + 1, breakages)
    spec = load_lab(tmp_path / "rack.yaml")
    well = tuple(host.name for host in spec.hosts if host.name.startswith("well"))
    made = Rack(tmp_path, spec, broken, well)
    lab_module.up(spec)
    try:
        (tmp_path / "known_hosts").write_bytes(spec.files.known_hosts.read_bytes())
        for host, breakage in broken.items():
            if by := BREAKAGES[breakage].by:
                by(made, host)
        for host in well[:: len(WELL)]:  # those that are to have a package
            offer_packages(made, host)
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


#: One change of each sort that a comparison could be blind to, and what it must name.
BY_HAND = r"""
set -e
chmod 700 /etc/profile.d
chown daemon /usr/share/doc
rm /etc/issue
/opt/testbed/python -c 'import os; os.setxattr("/usr/bin/env", "security.capability", b"\1\0\0\2\0\40" + bytes(14))'
echo >>/etc/profile
gpasswd -d jetson audio >/dev/null
tc qdisc add dev eth0 root tbf rate 10mbit burst 10k latency 50ms
ip rule add from 192.0.2.1 table main
echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_ra
mount -t tmpfs by-hand /srv
hostname by-hand
for fan in /sys/class/hwmon/*/pwm1; do echo 77 >$fan; done
ln -s /dev/null /run/systemd/system/systemd-timedated.service
systemctl daemon-reload
systemd-run -q --unit=by-hand sleep 600
"""
BY_HAND_CHANGED = {
    *("/etc/profile.d", "/usr/share/doc", "/etc/issue", "/usr/bin/env", "/etc/profile"),
    *("/etc/group", "user", "qdiscs", "links", "routes", "sysctl", "mounts", "name", "settings"),
    *("/run/systemd/system/systemd-timedated.service", "/run/systemd/transient/by-hand.service"),
    *("files-of-units", "units", "processes"),
}


def test_a_rack_with_broken_boards(rack):
    boards = [*rack.broken, *rack.well]
    reached = [host for host in boards if host in rack.well or BREAKAGES[rack.broken[host]].reached]
    half_way = {host for host in rack.broken if BREAKAGES[rack.broken[host]].half_way}
    limits = [f"--limit={host}" for host in boards]  # the base station's own check takes the longest of all
    before = states_at_rest(rack.spec, boards)

    first = rack.provision(*limits)
    found = failures(first.stderr)
    assert first.returncode == 1, first.stderr
    assert set(found) == set(rack.broken), first.stderr
    for host, name in rack.broken.items():
        breakage = BREAKAGES[name]
        told = [hint for text, hint in found[host] if re.search(breakage.text, text)]
        assert told, (host, found[host])
        assert re.search(breakage.hint, told[0]), (host, found[host])
    assert named(first, "changed") == set(rack.well), first.stdout
    assert named(first, "changed in part") == half_way, first.stdout
    during = states_at_rest(rack.spec, boards)
    changes = {host: differences(before[host], during[host], not_put_back()) for host in boards}
    touched = {host for host, found in changes.items() if found}
    assert touched == {*rack.well, *half_way}, {
        host: changes[host] for host in touched ^ {*rack.well, *half_way}
    }
    assert {"/usr/share/rack-tool/file", "/usr/share/rack-data/file"} <= set(changes[rack.well[0]])

    limits = [f"--limit={host}" for host in reached]
    second = rack.provision(*limits)
    assert second.returncode == 1, second.stderr
    assert set(failures(second.stderr)) == set(rack.broken) & set(reached), second.stderr
    assert named(second, "changed") == {"nothing"}, second.stdout

    undone = rack.provision("--undo", *limits)
    assert undone.returncode == 0, undone.stdout + undone.stderr
    assert named(undone, "undone") == touched, undone.stdout
    after = states_at_rest(rack.spec, boards)
    for host in boards:
        assert differences(before[host], after[host], not_put_back()) == {}, host
    again = rack.provision("--undo", *limits)
    assert (again.returncode, named(again, "undone")) == (0, {"nothing"}), again.stdout + again.stderr

    refused = rack.provision("--limit=changed-host-key")
    assert refused.returncode == 3, refused.stderr

    host = rack.well[0]  # which has systemd
    rack.root(host, BY_HAND)
    by_hand = differences(before[host], board_states(rack.spec, [host])[host], not_put_back())
    assert set(by_hand) >= BY_HAND_CHANGED, by_hand


def named(done: subprocess.CompletedProcess[str], what: str) -> set[str]:
    """Return the hosts that the command named under a heading."""
    lines = [line for line in done.stdout.splitlines() if line.startswith(f"{what}: ")]
    return set(lines[-1].removeprefix(f"{what}: ").split(", ")) if lines else set()
