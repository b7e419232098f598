"""The rack of scripts/bench/provision.py: emulated boards of four kinds, in a lab that is gone afterwards."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from provision_peers import Rack

from testbed.config.inventory import load_inventory
from testbed.emulation import lab as emulated
from testbed.emulation.settings import load_lab
from testbed.provision.code import load_payload_code

__all__ = ["PACKAGES", "board_of", "inside", "rack_up", "write_inventory"]

#: Kinds of boards, each with a power mode that is not the one it starts in and asks for no reboot, and its number.
KINDS = (
    ("jetson-agx-orin-64gb", "MODE_50W", 3),
    ("jetson-orin-nx-16gb", "15W", 2),
    ("jetson-orin-nano-8gb", "25W", 1),
    ("jetson-xavier-nx-16gb", "MODE_15W_6CORE", 2),
)
PACKAGES = ("openssh-server", "iproute2", "util-linux")

INVENTORY = """\
lab: {name}
known_hosts: /run/testbed/labs/{name}/known_hosts
defaults:
  key_file: /run/testbed/labs/{name}/id_ed25519
  python: {{interpreter: /opt/testbed/python, manage: false}}
  packages: [{packages}]
hosts:
  bs: {{role: base_station, address: 10.98.0.1}}
{boards}
emulation: {{network: 10.98.0.0/24, disk_mib: 3072, tick_hz: 5}}
"""


def board_of(number: int) -> tuple[str, str, str, int]:
    """Return a board's name, kind, power mode and that one's number."""
    return (f"board-{number:02}", *KINDS[number % len(KINDS)])


def write_inventory(folder: Path, boards: int) -> Path:
    """Write the inventory of a lab with so many boards.

    It names no gateway: all contenders run in the lab's own network, so that nobody pays for a way into it.
    """
    lines = [
        f"  {name}: {{role: device, address: 10.98.0.{11 + number}, board: {kind}, power_mode: {mode}}}"
        for number in range(boards)
        for name, kind, mode, _ in [board_of(number)]
    ]
    path = folder / "rack.yaml"
    name = f"bench-provision-{os.getpid()}"
    path.write_text(INVENTORY.format(name=name, packages=", ".join(PACKAGES), boards="\n".join(lines)))
    return path


def inside(inventory: Path, argv: list[str]) -> list[str]:
    """Return the command line that runs a program in the lab's network."""
    spec = load_lab(inventory)
    return ["nsenter", f"--net={spec.files.net}", *argv]


@contextmanager
def rack_up(inventory: Path, folder: Path) -> Iterator[Rack]:
    """Bring the lab up, fresh, and end it afterwards."""
    spec = load_lab(inventory)
    emulated.down(spec.lab)
    emulated.up(spec)
    try:
        yield _rack(inventory, folder)
    finally:
        emulated.down(spec.lab)


def _rack(inventory: Path, folder: Path) -> Rack:
    lab = load_inventory(inventory)
    devices = [host for host in lab.hosts.values() if host.is_device]
    code = load_payload_code()
    archive = folder / "code.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in code.files.items():
            about = tarfile.TarInfo(f"{code.digest}/{name}")
            about.size, about.mode = len(content), 0o644
            tar.addfile(about, io.BytesIO(content))
    key_file = devices[0].key_file
    assert key_file is not None
    return Rack(
        addresses={host.name: host.address for host in devices},
        modes={board_of(number)[0]: board_of(number)[2:] for number in range(len(devices))},
        packages=PACKAGES,
        python=devices[0].python.interpreter,
        system_python=_python_with_apt(),
        key_file=key_file,
        known_hosts=lab.known_hosts,
        archive=archive,
        digest=code.digest,
    )


def _python_with_apt() -> str:
    """Return an interpreter of this machine, and so of the boards, that has Debian's module ``apt``.

    A board's own ``python3`` is its JetPack's, without the module that a real one would have.
    """
    for path in sorted(map(str, Path("/usr/bin").glob("python3.[0-9]*"))):
        if subprocess.run([path, "-c", "import apt"], capture_output=True).returncode == 0:
            return path
    raise SystemExit("Ansible's module apt needs Debian's package python3-apt: apt-get install python3-apt")
