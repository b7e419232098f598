"""All that an emulated board is: its whole file tree by digest, its groups, services, power, clocks and network.

A board's root is an overlay over this machine's own: what was ever written there lies in the overlay's upper folders,
which only the lab's keeper sees. So the whole tree is compared by looking at those few files alone, from outside and
without a login that would itself leave traces: a path that is in no upper folder is this machine's own file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from testbed.emulation.spec import LabSpec

__all__ = ["BoardState", "board_states", "differences", "not_put_back", "states_at_rest"]

REPOSITORY = Path(__file__).parents[2]
IN_MEMORY = ("/run", "/tmp", "/dev/shm")
"""Where a board has file systems of its own, in memory: they are looked at as a whole, but for overlays below them."""
EMULATION = ("/dev/shm/faketime*", "/dev/shm/sem.faketime*")
"""What the emulation of a clock that is off leaves there, with each program that asks for the time."""

#: Runs on a board, in one go: what it says beside its files. Each part begins with a line of its own.
ABOUT = r"""
part() { echo "== $1"; }
part power; nvpmodel -q
part clocks; jetson_clocks --show
part user; id jetson
part processes; ps -eo user:32,args --no-headers
part swap; awk '{print $1, $2, $3}' /proc/swaps
part name; hostname
part mounts; cat /proc/mounts
part settings; grep -rsE . /sys --include='*_max_freq' --include='*_min_freq' --include='*governor' --include=online \
    --include='pwm*' --include=railgate_enable --include='*_pg_mask' | sort
part links; ip -o link | sed 's/qlen.*//'
part addresses; ip -o address | sed 's/valid_lft.*//'
part routes; ip route show table all; ip rule; ip -6 rule; ip neigh show nud permanent
part qdiscs; tc qdisc show
for device in $(ls /sys/class/net); do
    { tc class show dev $device; tc filter show dev $device; } | sed "s/^/$device: /"
done
part netfilter; if command -v nft >/dev/null; then nft list ruleset; fi
if command -v iptables-save >/dev/null; then iptables-save | grep -v '^#'; fi
part sysctl; grep -rs . /proc/sys/net/core /proc/sys/net/ipv4 /proc/sys/net/ipv6 | sort
if [ -d /run/systemd/system ]; then
    part files-of-units; systemctl list-unit-files --no-legend --no-pager
    part units; systemctl list-units --no-legend --plain --type=service,socket,timer,path,mount,swap
    part jobs; systemctl list-jobs --no-legend
    part lingers; ls /var/lib/systemd/linger 2>/dev/null
fi
true
"""
#: What of that comes and goes by itself, by the part: logins, what asks (jtop too), and what systemd starts on demand.
PASSING = {
    "processes": re.compile(
        r" sshd: | sh -s$| ps -eo |nvpmodel -q|swapon --show|systemd-(hostnamed|logind|timedated|localed|executor)|"
        r"\(sd-pam\)|systemd --user|dbus-daemon "
    ),
    "units": re.compile(
        r"systemd-(hostnamed|logind|timedated|localed|tmpfiles-clean)\.service|"
        r"^(user@|user-runtime-dir@|run-user-|dbus\.service)"
    ),
    "mounts": re.compile(r" /run/user/\d+ "),
}


@dataclass(frozen=True)
class BoardState:
    """What a board is.

    Attributes:
        files: Each path that may differ from this machine's, with its mode, owner, attributes and digest; None where
            it is not.
        lower: The folder of this machine that shows wherever nothing was written, by the place where it does.
        about: Groups, services, power, clocks and network, by the part.
    """

    files: Mapping[str, tuple[object, ...] | None]
    lower: Mapping[str, str]
    about: Mapping[str, tuple[str, ...]]

    def file(self, path: str) -> tuple[object, ...] | None:
        """Return what lies at a path."""
        if path in self.files:
            return self.files[path]
        point = max((point for point in (*self.lower, *IN_MEMORY) if _inside(path, point)), key=len)
        lower = self.lower.get(point)
        return None if lower is None else _look(Path(lower) / os.path.relpath(path, point))


def board_states(spec: LabSpec, hosts: list[str]) -> dict[str, BoardState]:
    """Return what some boards of a lab that is up are; each is asked by one command."""
    lab = json.loads(spec.files.state.read_text())
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda host: _state(lab["pid"], lab["hosts"][host]), hosts)
        return dict(zip(hosts, found, strict=True))


def states_at_rest(spec: LabSpec, hosts: list[str]) -> dict[str, BoardState]:
    """Return what some boards of a lab are once nothing of them changes by itself any more.

    A board that has just come up still asks whether its IPv6 address is its own, and its jtop service still notes what
    the clocks are.
    """
    services = {host.name for host in spec.hosts if host.jtop}
    deadline = time.monotonic() + 300
    found = board_states(spec, hosts)
    while True:
        time.sleep(0.3)
        before, found = found, board_states(spec, hosts)
        moving = {
            host: differences(before[host], state)
            for host, state in found.items()
            if differences(before[host], state) or not _has_started(state, host in services)
        }
        if not moving:
            return found
        assert time.monotonic() < deadline, f"these boards do not come to rest: {moving}"


def _has_started(state: BoardState, jtop: bool) -> bool:
    """Return whether a board has its addresses, no job of systemd's to do, and what its jtop service notes first."""
    return (
        not any(" tentative " in line for line in state.about["addresses"])
        and not state.about.get("jobs")
        and (not jtop or any(path.endswith("/jtop/l4t_dfs.conf") for path in state.files))
    )


def differences(
    one: BoardState, other: BoardState, left_out: tuple[str, ...] = ()
) -> dict[str, tuple[object, object]]:
    """Return what differs between two states of a board.

    Args:
        one: One state.
        other: The other.
        left_out: Patterns of paths that may differ.
    """
    found: dict[str, tuple[object, object]] = {}
    for path in sorted({*one.files, *other.files}):
        if any(fnmatchcase(path, pattern) for pattern in (*EMULATION, *left_out)):
            continue
        pair = one.file(path), other.file(path)
        if pair[0] != pair[1]:
            found[path] = pair
    for part in sorted({*one.about, *other.about}):
        lines = set(one.about.get(part, ())), set(other.about.get(part, ()))
        if lines[0] != lines[1]:
            found[part] = sorted(lines[0] - lines[1]), sorted(lines[1] - lines[0])
    return found


def not_put_back() -> tuple[str, ...]:
    """Return the patterns of what `--undo` does not put back: the table in docs/provision.md is where they stand."""
    text = (REPOSITORY / "docs/provision.md").read_text()
    table = text.partition("| not put back |")[2].partition("\n\n")[0]
    patterns = [
        pattern
        for line in table.splitlines()[2:]
        for pattern in re.findall(r"`(/[^`]*)`", line.split("|")[1])
    ]
    assert patterns, "docs/provision.md has no table of what is not put back"
    return tuple(patterns)


def _state(keeper: int, first: int) -> BoardState:
    """Return what a board is.

    Args:
        keeper: The process that sees the upper folders.
        first: The board's process 1.
    """
    root, lower = Path(f"/proc/{first}/root"), {}
    paths: set[str] = set()
    for line in Path(f"/proc/{first}/mountinfo").read_text().splitlines():
        point, options = line.split()[4], line.split()[-1]
        upper = re.search(r"lowerdir=([^,]*),upperdir=([^,]*)", options)
        if upper is not None:
            lower[point] = upper[1]
            names = _names(Path(f"/proc/{keeper}/root{upper[2]}"), Path(upper[1]))
            paths |= {f"{point.rstrip('/')}/{name}" for name in names}
    # This project, where it lies below /tmp, is an overlay too: this machine's own files are not looked at.
    overlays = {str(root / point[1:]) for point in lower}
    for folder in IN_MEMORY:
        paths |= {f"{folder}/{name}" for name in _names(root / folder[1:], left_out=overlays)}
    said = subprocess.run(
        ["nsenter", f"--target={first}", "--mount", "--uts", "--ipc", "--net", "--pid", "--", "sh", "-s"],
        input=ABOUT, capture_output=True, text=True, timeout=300, check=True,
    ).stdout  # fmt: skip
    parts = {part.partition("\n")[0]: part.splitlines()[1:] for part in said.split("== ")[1:]}
    about = {
        name: tuple(line for line in lines if name not in PASSING or not PASSING[name].search(line))
        for name, lines in parts.items()
    }
    return BoardState({path: _look(root / path[1:]) for path in paths}, lower, about)


def _names(folder: Path, lower: Path | None = None, left_out: Collection[str] = ()) -> Iterator[str]:
    """Yield what lies in a folder, by its relative path; in an upper folder, also what it hides of the lower one."""
    for at, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if f"{at}/{name}" not in left_out]
        inner = Path(at).relative_to(folder)
        yield from (str(inner / name) for name in [*folders, *files])
        if lower is not None and at != str(folder) and _opaque(at):
            yield from (str(inner / name) for name in _names(lower / inner))


def _opaque(folder: str) -> bool:
    try:
        return os.getxattr(folder, "trusted.overlay.opaque", follow_symlinks=False) == b"y"
    except OSError:
        return False


def _look(path: Path) -> tuple[object, ...] | None:
    """Return a file's mode, owner, attributes and content, the latter as a digest; None where there is none."""
    try:
        about = path.lstat()
        what = ""
        if stat.S_ISLNK(about.st_mode):
            what = str(path.readlink())
        elif stat.S_ISREG(about.st_mode):
            with path.open("rb") as file:
                what = hashlib.file_digest(file, "sha256").hexdigest()
        elif stat.S_ISCHR(about.st_mode) or stat.S_ISBLK(about.st_mode):
            what = f"device {about.st_rdev:#x}"
    except (FileNotFoundError, NotADirectoryError):
        return None
    return oct(about.st_mode), about.st_uid, about.st_gid, _attributes(path), what


def _attributes(path: Path) -> tuple[tuple[str, bytes], ...]:
    """Return a file's extended attributes: capabilities, access lists, what a user put there."""
    try:
        names = sorted(os.listxattr(path, follow_symlinks=False))
    except OSError:  # this file system has none
        return ()
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)


def _inside(path: str, outer: str) -> bool:
    return path == outer or path.startswith(outer.rstrip("/") + "/")
